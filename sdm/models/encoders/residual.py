"""Environment encoder of TaxaBind: the residual network of SINR (Cole et al. 2023, arXiv 2306.02564)."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualLayer(nn.Module):
    """`x + relu(w2 dropout(relu(w1 x)))`."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, width)
        self.w2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.w2(self.dropout(self.w1(x).relu())).relu()


class ResidualNet(nn.Module):
    """Linear, ReLU, residual layers; no head. In training mode it drops half of each layer: call `eval`."""

    def __init__(self, inputs: int = 20, width: int = 512, depth: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        self.inputs, self.dim = inputs, width
        self.feats = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), *[ResidualLayer(width, dropout) for _ in range(depth)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) z-scores -> (B, width), not of unit length."""
        return self.feats(x)
