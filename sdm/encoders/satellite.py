"""Satellite encoder: the true-colour image around a place, as a vector."""

from torch import Tensor, nn


class SatelliteEncoder(nn.Module):
    """A three-layer convolutional network over a square RGB crop."""

    def __init__(self, dim: int, size: int, channels: list[int], dropout: float = 0.0) -> None:
        super().__init__()
        a, b, c = channels
        self.net = nn.Sequential(
            nn.Conv2d(3, a, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(b, c, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(c * (size // 4) ** 2, dim),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """(B, size, size, 3) uint8, row 0 north -> (B, dim)."""
        return self.net(crops.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
