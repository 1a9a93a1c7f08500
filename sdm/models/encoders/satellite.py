"""Satellite encoder: the true-colour image around a place, as a vector."""

import torch
from torch import Tensor, nn

from sdm.models.encoders.blocks import PlainResidual

CENTRED = (1 / 6, 1 / 3)
"""Widths (standard deviations) of the two windows on the place, as shares of the crop."""
RING = (0.25, 1 / 6)
"""Distance from the place of the eight windows around it, and their width, as shares of the crop."""


class SatelliteEncoder(nn.Module):
    """Mean and spread of each colour in Gaussian windows on and around the place, then a residual network.

    Imagery is encoded on a coarse lattice and interpolated, so its vector must vary slowly in space. Statistics of
    wide windows do; convolutions over the pixels of a crop jump from one place to the next. The windows also
    generalise better to unseen regions, at a tenth of the arithmetic.
    """

    def __init__(self, dim: int, size: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.windows: Tensor
        self.register_buffer("windows", _windows(size))  # (size * size * 3, 3 * windows)
        self.net = nn.Sequential(
            nn.Linear(2 * self.windows.shape[1], width),
            nn.ReLU(inplace=True),
            *[PlainResidual(width, dropout) for _ in range(depth)],
            nn.ReLU(inplace=True),
            nn.Linear(width, dim),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """(B, size, size, 3) uint8, row 0 north -> (B, dim)."""
        # A variance computed as a difference of squares needs full precision.
        with torch.autocast(crops.device.type, enabled=False):
            colour = crops.flatten(1).float() / 255.0
            mean = colour @ self.windows
            variance = (colour * colour) @ self.windows - mean * mean
            spread = (variance.clamp_min(0.0) + 1e-4).sqrt()  # 1e-4: no infinite slope over calm sea
            statistics = torch.cat([4.0 * mean - 1.0, 10.0 * spread - 0.5], dim=-1)  # about -1..1
        return self.net(statistics)


def _windows(size: int) -> Tensor:
    """Weights of the pixels of a crop in each window, for each colour alone: (size * size * 3, 3 * windows)."""
    far, wide = RING[0] * size, RING[1] * size
    ring = [(x, y, wide) for y in (-far, 0.0, far) for x in (-far, 0.0, far) if x or y]
    windows = [*((0.0, 0.0, w * size) for w in CENTRED), *ring]
    if torch.empty(0).is_meta:  # weights are about to be loaded, and torch would import its compiler, a second and more
        return torch.empty(size * size * 3, 3 * len(windows))
    # The place lies in the pixel at index size // 2.
    offset = torch.arange(size, dtype=torch.float32) - size // 2
    weights = []
    for x, y, width in windows:
        across, down = (torch.exp(-0.5 * ((offset - at) / width) ** 2) for at in (x, y))
        window = down[:, None] * across[None, :]
        weights.append((window / window.sum()).flatten())
    return torch.kron(torch.stack(weights, dim=1), torch.eye(3))
