"""The text tower of CLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdm.models.encoders.blocks import normal_
from sdm.models.encoders.vit import Transformer


class TextTower(nn.Module):
    """A causal transformer over tokens; the vector of a text is that of its end token.

    Named as in open_clip, at the top level of its checkpoints.
    """

    def __init__(
        self,
        dim: int = 512,
        context: int = 77,
        vocabulary: int = 49408,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        hidden: int = 2048,
        quick_gelu: bool = False,
    ) -> None:
        super().__init__()
        self.context, self.dim = context, dim
        # From an existing tensor: nn.Embedding itself would draw 25 million random numbers that nobody needs.
        self.token_embedding = nn.Embedding.from_pretrained(normal_(torch.empty(vocabulary, width), 0.02), freeze=False)
        self.positional_embedding = nn.Parameter(normal_(torch.empty(context, width), 0.01))
        self.transformer = Transformer(width, layers, heads, hidden, quick_gelu, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(normal_(torch.empty(width, dim), width**-0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N) token ids, N up to the context, the end token the highest id -> (B, dim), not of unit length."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)] @ self.text_projection
