"""The transformer of CLIP, and its vision tower.

Radford et al. 2021 (arXiv 2103.00020). Modules and weights are named as open_clip names them, so a
checkpoint of open_clip fits as it is; `sdm.models.taxabind` renames those of transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdm.models.encoders.blocks import normal_


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(normal_(torch.empty(3 * width, width), width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        b, n, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).reshape(b, n, width))


class MLP(nn.Module):
    """Two layers with GELU, exact (open_clip's default) or as `x * sigmoid(1.702 x)` (OpenAI's)."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, quick_gelu)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; `causal`: a token sees only itself and those before it."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        quick_gelu: bool,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.resblocks = nn.ModuleList([Block(width, heads, hidden, quick_gelu) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        for block in self.resblocks:
            x = block(x, self.causal)
        return x


class VisionTower(nn.Module):
    """ViT with a class token and a linear projection: the image and the satellite encoder of TaxaBind."""

    def __init__(
        self,
        dim: int = 512,
        image: int = 224,
        patch: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        quick_gelu: bool = False,
    ) -> None:
        super().__init__()
        self.image, self.dim = image, dim
        std = width**-0.5
        self.class_embedding = nn.Parameter(normal_(torch.empty(width), std))
        self.positional_embedding = nn.Parameter(normal_(torch.empty((image // patch) ** 2 + 1, width), std))
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, hidden, quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(normal_(torch.empty(width, dim), std))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, image, image) normalised -> (B, dim), not of unit length."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, patches, width)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj
