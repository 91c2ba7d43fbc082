"""Attention and feed-forward blocks shared by the transformers of the methods."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (QK-norm, arXiv 2010.04245).

    Normalising q and k bounds the logits, which keeps half-precision training stable at any width.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        """Build the projections.

        Args:
            width: channels of the queries and of the output.
            heads: number of heads; must divide `width`.
            context_width: channels of what is attended to; None for self-attention.

        Raises:
            ValueError: if `heads` does not divide `width`.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: width {width} is not a multiple of heads {heads}; choose a divisor")
        context_width = width if context_width is None else context_width
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(context_width, 2 * width)
        self.norm_q = nn.RMSNorm(width // heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(width // heads, eps=1e-6)
        self.to_out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, context_BSC: Tensor | None = None) -> Tensor:
        """Attend from `x` to `context`, or to itself.

        Args:
            x_BLD: [B, L, width] queries.
            context_BSC: [B, S, context_width]; `x` itself by default.

        Returns:
            [B, L, width].
        """
        context_BSC = x_BLD if context_BSC is None else context_BSC
        q = self.to_q(x_BLD).unflatten(-1, (self.heads, -1))
        k, v = self.to_kv(context_BSC).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        # Under autocast back to the precision of the weights: torch has no fused kernel for a mixture of the two.
        q, k = self.norm_q(q.to(self.norm_q.weight.dtype)), self.norm_k(k.to(self.norm_k.weight.dtype))
        out = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out(out.transpose(1, 2).flatten(-2))


def feed_forward(width: int, ratio: int = 4) -> nn.Sequential:
    """Two linear layers with a tanh-approximated GELU between them.

    Args:
        width: channels in and out.
        ratio: hidden channels / width.

    Returns:
        The layers, [..., width] -> [..., width].
    """
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(approximate="tanh"), nn.Linear(ratio * width, width))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Modulate as AdaLN does: x * (1 + scale) + shift.

    Args:
        x: [..., D] normalised activations.
        shift: broadcasts against `x`.
        scale: broadcasts against `x`.

    Returns:
        [..., D].

    Source:
        Scalable Diffusion Models with Transformers (arXiv 2212.09748).
    """
    return torch.addcmul(shift, x, 1 + scale)
