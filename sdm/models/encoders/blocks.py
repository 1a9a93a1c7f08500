"""Residual blocks shared by the encoders."""

import torch
from torch import Tensor, nn


def normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with N(0, std^2), in place; nothing on the meta device, where weights are about to be loaded.

    There torch would import its compiler, a second and more, to fill a tensor that holds nothing.
    """
    return tensor if tensor.is_meta else nn.init.normal_(tensor, std=std)


class NormedResidual(nn.Module):
    """`x + W2 gelu(W1 layernorm(x))`: (B, width) -> (B, width)."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.w1 = nn.Linear(width, width)
        self.w2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return self.w2(self.dropout(nn.functional.gelu(self.w1(self.norm(x))))).add_(x)


class PlainResidual(nn.Module):
    """`x + W2 relu(W1 x)`: (B, width) -> (B, width); no normalisation, for the per-pixel path."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, width)
        self.w2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        # Start near the identity: without normalisation a deep sum would grow at the start.
        normal_(self.w2.weight, 0.02)
        nn.init.zeros_(self.w2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        # In place where autograd allows it: this is the per-pixel path.
        return self.w2(self.dropout(torch.relu_(self.w1(x)))).add_(x)
