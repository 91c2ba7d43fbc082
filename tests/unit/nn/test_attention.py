"""Attention against the softmax formula written out, and what its normalisation promises."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from gsforge.nn.attention import CrossAttention, HeadNorm, SelfAttention, feed_forward, modulate, rotate_pairs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit_rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt() * gain


def gained(layer: SelfAttention | CrossAttention) -> None:
    for norm in (layer.norm_q, layer.norm_k):
        torch.nn.init.uniform_(norm.gain, 0.5, 2.0)


def by_hand(layer: SelfAttention | CrossAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        queries, keys = unit_rms(q[..., part], layer.norm_q.gain[head]), unit_rms(k[..., part], layer.norm_k.gain[head])
        heads.append((queries @ keys.mT / 4**0.5).softmax(-1) @ v[..., part])
    return layer.to_out(torch.cat(heads, dim=-1))


def test_self_attention_is_its_formula_head_by_head() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(12, heads=3).double(), random(2, 4, 12)
    gained(layer)
    torch.testing.assert_close(layer(x), by_hand(layer, *layer.to_qkv(x).split(12, dim=-1)))


def test_cross_attention_is_its_formula_head_by_head() -> None:
    torch.manual_seed(0)
    layer, x, context = CrossAttention(12, heads=3, context_width=5).double(), random(2, 4, 12), random(2, 7, 5, seed=1)
    gained(layer)
    torch.testing.assert_close(layer(x, context), by_hand(layer, layer.to_q(x), *layer.to_kv(context).split(12, -1)))


def test_pairs_of_channels_turn_before_they_are_normalised() -> None:
    torch.manual_seed(0)
    layer, x, angles = SelfAttention(12, heads=3).double(), random(2, 4, 12), random(2, 4, 3, 2, seed=3)
    gained(layer)
    q, k, v = layer.to_qkv(x).split(12, dim=-1)
    turned = torch.polar(torch.ones_like(angles), angles)

    def turn(flat: Tensor) -> Tensor:
        pairs = torch.view_as_complex(flat.unflatten(-1, (3, 2, 2)).contiguous())
        return torch.view_as_real(pairs * turned).flatten(-3)

    torch.testing.assert_close(layer(x, angles), by_hand(layer, turn(q), turn(k), v))
    torch.testing.assert_close(rotate_pairs(x.unflatten(-1, (3, 4)), angles * 0), x.unflatten(-1, (3, 4)))


def test_logits_stay_bounded_whatever_the_size_of_the_input() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, heads=2).double()
    torch.nn.init.zeros_(layer.to_qkv.bias)
    x = random(1, 5, 8)
    # Queries and keys lose their length, so only the values (linear in x) grow.
    bias = layer.to_out.bias
    torch.testing.assert_close((layer(1e4 * x) - bias) / 1e4, layer(x) - bias)


def test_the_norm_is_exact_in_half_precision_and_finite_at_zero() -> None:
    norm = HeadNorm(8, heads=2)
    x = random(1, 3, 2, 4).half()
    torch.testing.assert_close(norm(x), norm(x.float()).half(), rtol=0, atol=0)
    assert torch.equal(norm(torch.zeros(1, 1, 2, 4)), torch.zeros(1, 1, 2, 4))


def test_order_of_the_context_does_not_matter() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, heads=2, context_width=3).double()
    x, context = random(1, 4, 8), random(1, 6, 3, seed=1)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(layer(x, context[:, order]), layer(x, context))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4; choose a divisor"):
        SelfAttention(10, heads=4)


def test_gradients() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(6, heads=2, context_width=3).double()
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
def test_autocast_changes_little_and_mixes_no_precisions() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(12, heads=3), random(1, 5, 12).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), exact, rtol=0.02, atol=0.02)
