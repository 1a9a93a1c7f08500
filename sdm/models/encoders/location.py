"""Location encoder: where on the globe, as a vector."""

import torch
from torch import Tensor, nn

from sdm.models.encoders.blocks import NormedResidual, normal_


class LocationEncoder(nn.Module):
    """Random Fourier features of the point on the unit sphere, then a residual network.

    Features of a point of the sphere have no seam at 180 degrees and no singular pole. Each
    `sigma` gives `features` random frequencies (radians^-1) drawn from N(0, sigma^2): small ones
    carry continents, large ones range edges (Tancik et al. 2020, arXiv 2006.10739). With `season` the
    month is a point of a circle, so December lies beside January.
    """

    def __init__(
        self,
        dim: int,
        sigmas: list[float],
        features: int,
        width: int,
        depth: int,
        dropout: float = 0.0,
        season: bool = False,
    ) -> None:
        super().__init__()
        self.season = season
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.empty(3, features * len(sigmas)))  # (3, F)
        for k, sigma in enumerate(sigmas):
            normal_(self.frequencies[:, k * features : (k + 1) * features], sigma)
        self.net = nn.Sequential(
            nn.Linear(3 + 2 * features * len(sigmas) + (3 if season else 0), width),
            *[NormedResidual(width, dropout) for _ in range(depth)],
            nn.LayerNorm(width),
            nn.Linear(width, dim),
        )

    def forward(self, place: Tensor) -> Tensor:
        """(B, 2) degrees, **(lon, lat)** -> (B, dim); with season (B, 3): lon, lat, month 1..12 or 0, whole year."""
        lon, lat = torch.deg2rad(place[:, :2]).unbind(-1)
        xyz = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)  # (B, 3)
        # A phase of many turns has no digits left in bfloat16, to which a GPU would round it under autocast.
        with torch.autocast("cuda", enabled=False):
            phase = xyz @ self.frequencies  # (B, F)
        return self.net(torch.cat([xyz, phase.cos(), phase.sin(), *self._season(place)], dim=-1))

    def _season(self, place: Tensor) -> list[Tensor]:
        """(B, 3): the middle of the month on the circle of the year, and 1; zeros for the whole year."""
        if place.shape[-1] != (3 if self.season else 2):
            raise ValueError(f"location values of shape {tuple(place.shape)}; a month is given if and only if season.")
        if not self.season:
            return []
        month = place[:, 2:]
        turn = 2 * torch.pi * (month - 0.5) / 12
        return [torch.cat([turn.sin(), turn.cos(), torch.ones_like(turn)], dim=-1) * (month > 0)]
