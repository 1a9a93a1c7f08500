"""Location encoder: where on the globe, as a vector."""

import torch
from torch import Tensor, nn

from sdm.encoders.blocks import NormedResidual, normal_


class LocationEncoder(nn.Module):
    """Random Fourier features of the point on the unit sphere, then a residual network.

    Features of a point of the sphere have no seam at 180 degrees and no singular pole. Each
    `sigma` gives `features` random frequencies (radians^-1) drawn from N(0, sigma^2): small ones
    carry continents, large ones range edges (Tancik et al. 2020, arXiv 2006.10739).
    """

    def __init__(self, dim: int, sigmas: list[float], features: int, width: int, depth: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("frequencies", torch.empty(3, features * len(sigmas)))  # (3, F)
        for k, sigma in enumerate(sigmas):
            normal_(self.frequencies[:, k * features : (k + 1) * features], sigma)
        self.net = nn.Sequential(
            nn.Linear(3 + 2 * features * len(sigmas), width),
            *[NormedResidual(width, dropout) for _ in range(depth)],
            nn.LayerNorm(width),
            nn.Linear(width, dim),
        )

    def forward(self, lonlat: Tensor) -> Tensor:
        """(B, 2) degrees, **(lon, lat)** -> (B, dim)."""
        lon, lat = torch.deg2rad(lonlat).unbind(-1)
        xyz = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)  # (B, 3)
        # A phase of many turns has no digits left in bfloat16, to which a GPU would round it under autocast.
        with torch.autocast("cuda", enabled=False):
            phase = xyz @ self.frequencies  # (B, F)
        return self.net(torch.cat([xyz, phase.cos(), phase.sin()], dim=-1))
