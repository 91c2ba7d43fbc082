"""Attention against the softmax formula written out, and what its normalisation promises."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from gsforge.nn.attention import Attention, feed_forward, modulate


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit_rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("context_width", [None, 5])
def test_attention_is_its_formula_head_by_head(context_width: int | None) -> None:
    torch.manual_seed(0)
    layer = Attention(12, heads=3, context_width=context_width).double()
    for norm in (layer.norm_q, layer.norm_k):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = random(2, 4, 12)
    context = None if context_width is None else random(2, 7, 5, seed=1)
    source = x if context is None else context
    q, kv = layer.to_q(x), layer.to_kv(source)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        queries = unit_rms(q[..., part], layer.norm_q.weight)
        keys = unit_rms(kv[..., :12][..., part], layer.norm_k.weight)
        weights = (queries @ keys.mT / 4**0.5).softmax(-1)
        heads.append(weights @ kv[..., 12:][..., part])
    torch.testing.assert_close(layer(x, context), layer.to_out(torch.cat(heads, dim=-1)))


def test_logits_stay_bounded_whatever_the_size_of_the_input() -> None:
    torch.manual_seed(0)
    layer = Attention(8, heads=2).double()
    for linear_layer in (layer.to_q, layer.to_kv):
        torch.nn.init.zeros_(linear_layer.bias)
    x = 100 * random(1, 5, 8)  # beside which the 1e-6 of the norm is nothing
    # Queries and keys lose their length, so only the values (linear in x) grow.
    bias = layer.to_out.bias
    torch.testing.assert_close((layer(1e4 * x) - bias) / 1e4, layer(x) - bias, rtol=1e-4, atol=1e-6)


def test_order_of_the_context_does_not_matter() -> None:
    torch.manual_seed(0)
    layer = Attention(8, heads=2, context_width=3).double()
    x, context = random(1, 4, 8), random(1, 6, 3, seed=1)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(layer(x, context[:, order]), layer(x, context))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4; choose a divisor"):
        Attention(10, heads=4)


def test_gradients() -> None:
    torch.manual_seed(0)
    layer = Attention(6, heads=2, context_width=3).double()
    x, context = random(1, 3, 6).requires_grad_(), random(1, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, context))


def test_feed_forward_is_two_layers_with_the_tanh_gelu() -> None:
    torch.manual_seed(0)
    layers = feed_forward(3, ratio=5).double()
    x = random(4, 3)
    first, _, last = layers
    assert first.out_features == 15
    hidden = gelu(linear(x, first.weight, first.bias), approximate="tanh")
    torch.testing.assert_close(layers(x), linear(hidden, last.weight, last.bias))


def test_modulation_scales_and_shifts_channels() -> None:
    x, shift, scale = random(2, 5, 3), random(3, seed=1), random(3, seed=2)
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)
    assert torch.equal(modulate(x, torch.zeros(3).double(), torch.zeros(3).double()), x)


@pytest.mark.filterwarnings("error")
def test_normalisation_keeps_its_fused_kernel_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = Attention(12, heads=3), random(1, 5, 12).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), exact, rtol=0.02, atol=0.02)
