"""Environment encoder: climate, terrain and land cover, as a vector."""

from torch import Tensor, nn

from sdm.models.encoders.blocks import PlainResidual


class EnvironmentEncoder(nn.Module):
    """A residual network over the standardised environment vector.

    It runs at every pixel and so dominates the time of a map: hence ReLU, and no normalisation layers.
    """

    def __init__(self, dim: int, inputs: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, width),
            nn.ReLU(inplace=True),
            *[PlainResidual(width, dropout) for _ in range(depth)],
            nn.ReLU(inplace=True),
            nn.Linear(width, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) standardised -> (B, dim)."""
        return self.net(x)
