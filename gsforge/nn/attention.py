"""Attention and feed-forward blocks shared by the transformers of the methods."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention


class HeadNorm(nn.Module):
    """Root-mean-square norm over the channels of a head, with a gain for every head and channel (QK-norm).

    Normalised queries and keys bound the logits, which keeps half-precision training stable at any width.

    Source:
        Query-Key Normalization for Transformers (arXiv 2010.04245).
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build the norm; its gains start at 1.

        Args:
            width: channels of all heads together.
            heads: number of heads; must divide `width`.

        Raises:
            ValueError: if `heads` does not divide `width`.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: width {width} is not a multiple of heads {heads}; choose a divisor")
        self.gain = nn.Parameter(torch.ones(heads, width // heads))

    def forward(self, x_BLHC: Tensor) -> Tensor:
        """Normalise, in float32 or better.

        Args:
            x_BLHC: [B, L, heads, channels].

        Returns:
            [B, L, heads, channels] of the dtype of `x`.
        """
        exact = x_BLHC.to(torch.promote_types(x_BLHC.dtype, torch.float32))
        return (normalize(exact, dim=-1) * exact.shape[-1] ** 0.5 * self.gain).to(x_BLHC.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other, with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the projections.

        Args:
            width: channels of the tokens.
            heads: number of heads; must divide `width`.

        Raises:
            ValueError: if `heads` does not divide `width`.
        """
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k = HeadNorm(width, heads), HeadNorm(width, heads)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, angles_BLHR: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x_BLD: [B, L, width] tokens.
            angles_BLHR: [B, L, heads, width / heads / 2] radians by which each pair of channels of queries and keys is
                turned, before they are normalised; none by default.

        Returns:
            [B, L, width].
        """
        q, k, v = self.to_qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if angles_BLHR is not None:
            q, k = rotate_pairs(q, angles_BLHR), rotate_pairs(k, angles_BLHR)
        return self.to_out(_attend(self.norm_q(q), self.norm_k(k), v))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context, with normalised queries and keys."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        """Build the projections.

        Args:
            width: channels of the tokens.
            heads: number of heads; must divide `width`.
            context_width: channels of what is attended to.

        Raises:
            ValueError: if `heads` does not divide `width`.
        """
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k = HeadNorm(width, heads), HeadNorm(width, heads)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(context_width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, context_BSC: Tensor) -> Tensor:
        """Attend.

        Args:
            x_BLD: [B, L, width] tokens.
            context_BSC: [B, S, context_width].

        Returns:
            [B, L, width].
        """
        q = self.to_q(x_BLD).unflatten(-1, (self.heads, -1))
        k, v = self.to_kv(context_BSC).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return self.to_out(_attend(self.norm_q(q), self.norm_k(k), v))


def _attend(q_BLHC: Tensor, k_BSHC: Tensor, v_BSHC: Tensor) -> Tensor:
    """[B, L, heads * channels], the heads side by side."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHC, k_BSHC, v_BSHC))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels, in float32 or better (rotary embedding).

    Args:
        x: [..., 2 R].
        angles: [..., R] radians.

    Returns:
        [..., 2 R] of the dtype of `x`.

    Source:
        RoFormer (arXiv 2104.09864), eq. 34.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.to(dtype).cos(), angles.to(dtype).sin()
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)


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


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for a linear layer; apply it to all before some are set to zero.

    Args:
        module: changed in place if it is a linear layer.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
