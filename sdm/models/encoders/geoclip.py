"""Location encoder of GeoCLIP (Vivanco Cepeda et al. 2023, arXiv 2309.16020), as TaxaBind uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdm.models.encoders.blocks import normal_

# Equal Earth projection: Savric, Patterson, Jenny 2018, doi:10.1080/13658816.2018.1504949.
_A1, _A2, _A3, _A4 = 1.340264, -0.081106, 0.000893, 0.003796
_SCALE = 66.50336


def equal_earth(latlon: Tensor) -> Tensor:
    """(B, 2) degrees, **(lat, lon)** -> (B, 2) projected (x, y), as GeoCLIP scales them.

    In float32 and in this order of operations: at sigma 256 the last bit of x and y is seen in the result.
    """
    lat, lon = torch.deg2rad(latlon).unbind(-1)
    root3 = lat.new_tensor(3.0).sqrt()
    theta = torch.asin(root3 / 2 * lat.sin())
    denominator = 3 * (9 * _A4 * theta**8 + 7 * _A3 * theta**6 + 3 * _A2 * theta**2 + _A1)
    x = 2 * root3 * lon * theta.cos() / denominator
    y = _A4 * theta**9 + _A3 * theta**7 + _A2 * theta**3 + _A1 * theta
    return torch.stack([x, y], dim=-1) * _SCALE / 180


class FourierFeatures(nn.Module):
    """`cos` and `sin` of `2 pi b v`; `b` is drawn once and stored with the weights."""

    def __init__(self, inputs: int, features: int, sigma: float) -> None:
        super().__init__()
        self.b = nn.Parameter(normal_(torch.empty(features, inputs), sigma), requires_grad=False)

    def forward(self, v: Tensor) -> Tensor:
        """(B, inputs) -> (B, 2 * features)."""
        phase = 2 * math.pi * v @ self.b.T
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Capsule(nn.Module):
    """One scale: Fourier features, three hidden layers, a linear head."""

    def __init__(self, dim: int, features: int, hidden: int, sigma: float) -> None:
        super().__init__()
        self.capsule = nn.Sequential(
            FourierFeatures(2, features, sigma),
            nn.Linear(2 * features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(hidden, dim))

    def forward(self, xy: Tensor) -> Tensor:
        """(B, 2) projected -> (B, dim)."""
        # At sigma 256 the phases reach thousands of radians: in half precision only noise would be left.
        with torch.autocast(xy.device.type, enabled=False):
            features = self.capsule[0](xy.float())
        return self.head(self.capsule[1:](features)).float()  # three of these are added up


class GeoCLIPLocation(nn.Module):
    """The sum of one capsule per sigma. Not periodic: wrap longitudes to [-180, 180) first."""

    def __init__(
        self, dim: int = 512, features: int = 256, hidden: int = 1024, sigmas: Sequence[float] = (1.0, 16.0, 256.0)
    ) -> None:
        super().__init__()
        self.dim, self.count = dim, len(sigmas)
        for k, sigma in enumerate(sigmas):
            self.add_module(f"LocEnc{k}", Capsule(dim, features, hidden, sigma))

    def forward(self, latlon: Tensor) -> Tensor:
        """(B, 2) float32 degrees, **(lat, lon)** -> (B, dim), not of unit length."""
        xy = equal_earth(latlon)
        vectors = [getattr(self, f"LocEnc{k}")(xy) for k in range(self.count)]
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        return total
