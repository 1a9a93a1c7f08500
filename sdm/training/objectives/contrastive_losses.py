"""Contrastive losses between two modalities, and the learned temperature. Pure functions, float32 inside.

Every loss takes the embeddings of a whole batch, row i of `a` and of `b` being of the same observation, and
`rows`, the queries that this process accounts for. In one process that is all of them. Where several share a
batch, `sdm.training.distributed.gather` brings all embeddings together with their gradients, each process takes
the loss of its own rows, and the mean over processes is the loss of the whole batch.

Formulas: InfoNCE as in CLIP (Radford et al. 2021, arXiv 2103.00020); several positives as `L_out` of SupCon
(Khosla et al. 2020, arXiv 2004.11362), across modalities; the location loss of TaxaBind (arXiv 2411.00683 and
its code); sigmoid of pairs as in SigLIP (Zhai et al. 2023, arXiv 2303.15343).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

ALL = slice(None)

MAX_SCALE = 100.0
"""The learned scale never exceeds this, as in CLIP: beyond it, training becomes unstable."""


def logits(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """`scale * a . b` in float32 under autocast too: unit vectors (N, dim), (M, dim) -> (N, M)."""
    with torch.autocast(a.device.type, enabled=False):
        return scale * (a.float() @ b.float().T)


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, rows: slice = ALL) -> Tensor:
    """Symmetric InfoNCE: each observation's own partner against all others. Unit vectors (N, dim) each."""
    own = torch.arange(len(a), device=a.device)[rows]
    return (cross_entropy(logits(a[rows], b, scale), own) + cross_entropy(logits(b[rows], a, scale), own)) / 2


def supcon(a: Tensor, b: Tensor, species: Tensor, scale: Tensor | float, rows: slice = ALL) -> Tensor:
    """Symmetric InfoNCE with several positives: all of the same `species` (N,) int64 are partners.

    Per query the mean over its positives of -log softmax. With no species twice it is `info_nce`.
    """
    same = (species[rows, None] == species[None, :]).float()
    share = same / same.sum(1, keepdim=True)
    # With probabilities as targets, cross_entropy is this mean.
    return (cross_entropy(logits(a[rows], b, scale), share) + cross_entropy(logits(b[rows], a, scale), share)) / 2


def location_loss(
    anchor: Tensor,
    location: Tensor,
    negatives: Tensor,
    species: Tensor,
    scale: Tensor | float,
    weights: tuple[float, float] = (0.4, 0.6),
    rows: slice = ALL,
) -> Tensor:
    """TaxaBind's loss for locations: `w0 * CE(anchor -> location) + w1 * CE(location -> anchor)`.

    Parameters
    ----------
    anchor, location : (N, dim) unit vectors of the same observations
    negatives : (M, dim) unit vectors of random places, which an anchor must tell from its own place; M may be 0
    species : (N,) int64; other observations of the same species are not negatives, since it may live there too
    scale : factor of the cosines
    weights : of the two directions
    rows : the queries that this process accounts for
    """
    own = torch.arange(len(anchor), device=anchor.device)[rows]
    other = (species[rows, None] == species[None, :]).scatter(1, own[:, None], False)
    to_place = logits(anchor[rows], location, scale).masked_fill(other, -math.inf)
    if len(negatives):
        to_place = torch.cat([to_place, logits(anchor[rows], negatives, scale)], dim=1)
    to_anchor = logits(location[rows], anchor, scale).masked_fill(other, -math.inf)
    return weights[0] * cross_entropy(to_place, own) + weights[1] * cross_entropy(to_anchor, own)


def sigmoid_pairs(
    a: Tensor, b: Tensor, species: Tensor | None, scale: Tensor | float, bias: Tensor | float, rows: slice = ALL
) -> Tensor:
    """Binary cross-entropy of every pair, summed over partners, mean over queries.

    Pairs of the same `species` (N,) are positive; without species, only an observation's own pair.
    """
    label = torch.arange(len(a), device=a.device) if species is None else species
    sign = 2.0 * (label[rows, None] == label[None, :]).float() - 1.0
    return -logsigmoid(sign * (logits(a[rows], b, scale) + bias)).sum(1).mean()


class Temperature(nn.Module):
    """The factor of cosines in a contrastive loss: learned, initially 1 / 0.07, at most 100; or fixed.

    `bias` is for `sigmoid_pairs` and starts at -10, as in SigLIP; other losses do not use it.
    """

    def __init__(self, start: float = 0.07, learned: bool = True) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)), requires_grad=learned)
        self.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=learned)

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp the scale to its maximum; call it after every step."""
        self.log_scale.clamp_(max=math.log(MAX_SCALE))
