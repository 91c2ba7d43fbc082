"""Local expansion: published constants before training, its formula written out, order of the Gaussians, gradients."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gsforge.core.sampling import hammersley
from gsforge.core.sh import sh_to_rgb
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.decoder import AttributeDecoder, Expansion, inverse_softplus

SMALL = {"width": 24, "heads": 2, "decoder_blocks": 1, "latent_channels": 4}


def build(**sizes: float) -> AttributeDecoder:
    torch.manual_seed(0)
    return AttributeDecoder(NetworkConfig(**(SMALL | sizes)))


def inputs(anchors: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, anchors, 3, generator=generator), torch.randn(2, 7, 4, generator=generator)


def test_inverse_softplus() -> None:
    for value in (1e-4, 0.004, 0.05, 1.0, 30.0):
        assert softplus(torch.tensor(inverse_softplus(value)).double()).item() == pytest.approx(value, rel=1e-5)


def test_untrained_decoder_gives_the_published_initial_gaussians() -> None:
    decoder = build()
    anchors, z = inputs()
    gaussians, offsets = decoder(anchors, z)
    assert offsets.shape == (2, 5, 32, 3)
    assert (gaussians.batch_shape, gaussians.count, gaussians.sh_degree) == ((2,), 5 * 32, 0)
    cube = 0.75 * (2 / 3) * 0.05 * (2 * hammersley(32, 3).float() - 1)
    torch.testing.assert_close(offsets, cube.expand_as(offsets), rtol=1e-5, atol=1e-8)
    assert offsets.abs().max().item() == pytest.approx(0.025, rel=1e-5)
    torch.testing.assert_close(gaussians.means.view(2, 5, 32, 3), anchors[:, :, None] - 0.5 + offsets)
    scale = math.sqrt(0.004**2 + 9e-4**2)
    torch.testing.assert_close(gaussians.scales, torch.full((2, 160, 3), scale), rtol=1e-5, atol=0)
    torch.testing.assert_close(gaussians.opacities, torch.full((2, 160), 0.1), rtol=1e-5, atol=0)
    assert torch.equal(gaussians.quats, torch.tensor([1.0, 0, 0, 0]).expand(2, 160, 4))
    assert torch.equal(sh_to_rgb(gaussians.sh, torch.ones(2, 160, 3)), torch.full((2, 160, 3), 0.5))


def expand_by_hand(decoder: AttributeDecoder, anchor: Tensor, raw: Tensor, k: int) -> dict[str, Tensor]:
    """The k-th Gaussian of one anchor: raw holds K offsets, then K colours, scales, rotations, opacities, spreads."""
    config, count = decoder.config, decoder.per_anchor
    starts = {
        "offset": (0, 3),
        "color": (3, 3),
        "scale": (6, 3),
        "rotation": (9, 4),
        "opacity": (13, 1),
        "spread": (14, 1),
    }
    x = torch.cat([raw[count * start + size * k :][:size] for start, size in starts.values()])
    t = (2 * hammersley(decoder.per_anchor, 3)[k] - 1) / 1.5
    radius = softplus(x[14] + math.log(math.exp(config.expansion) - 1))
    rotation = 0.1 * x[9:13] + torch.tensor([1.0, 0, 0, 0])
    width = softplus(x[6:9] + math.log(math.exp(config.initial_scale) - 1))
    return {
        "means": anchor - 0.5 + 0.75 * torch.tanh(x[:3] + torch.atanh(t)) * radius,
        "sh": x[None, 3:6],
        "scales": torch.sqrt(width**2 + config.minimum_scale**2),
        "quats": rotation / rotation.norm(),
        "opacities": 1 / (1 + (1 / config.initial_opacity - 1) * torch.exp(-x[13])),
    }


def test_expansion_is_its_formula_and_keeps_the_gaussians_of_an_anchor_together() -> None:
    decoder = build(gaussians_per_anchor=3, expansion=0.2, initial_scale=0.03, initial_opacity=0.3)
    anchors = inputs()[0].double()
    raw = 2 * torch.randn(2, 5, 45, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gaussians, offsets = decoder.expand(anchors, raw)
    for batch, anchor, k in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(3)).tolist():
        expected = expand_by_hand(decoder, anchors[batch, anchor], raw[batch, anchor], k)
        for name, value in expected.items():
            actual = getattr(gaussians, name)[batch, 3 * anchor + k]
            torch.testing.assert_close(actual, value, rtol=1e-6, atol=1e-7, msg=name)
        delta = expected["means"] - anchors[batch, anchor] + 0.5
        torch.testing.assert_close(offsets[batch, anchor, k], delta, rtol=1e-6, atol=1e-7)


def test_gradients_of_the_expansion() -> None:
    decoder = build(gaussians_per_anchor=2)
    anchors = torch.rand(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = torch.randn(1, 2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def attributes(x: Tensor) -> tuple[Tensor, ...]:
        gaussians, offsets = decoder.expand(anchors, x)
        return gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh, offsets

    assert torch.autograd.gradcheck(attributes, (raw,))


@pytest.fixture
def trained() -> AttributeDecoder:
    decoder = build(gaussians_per_anchor=4)
    nn.init.normal_(decoder.head.weight, std=0.5)
    return decoder


def by_anchor(expansion: Expansion, name: str) -> Tensor:
    return getattr(expansion.gaussians, name).unflatten(1, (-1, 4))


def test_permuting_anchors_permutes_their_gaussians(trained: AttributeDecoder) -> None:
    anchors, z = inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    straight, permuted = trained(anchors, z), trained(anchors[:, order], z)
    for name in ("means", "scales", "quats", "opacities", "sh"):
        torch.testing.assert_close(by_anchor(permuted, name), by_anchor(straight, name)[:, order], rtol=1e-4, atol=1e-5)


def test_order_of_the_latent_does_not_matter_but_the_latent_does(trained: AttributeDecoder) -> None:
    anchors, z = inputs()
    scales = trained(anchors, z).gaussians.scales
    torch.testing.assert_close(trained(anchors, z.flip(1)).gaussians.scales, scales, rtol=1e-4, atol=1e-6)
    assert (trained(anchors, z + 1).gaussians.scales - scales).abs().max() > 1e-4


def test_attributes_adapt_to_the_other_anchors(trained: AttributeDecoder) -> None:
    anchors, z = inputs()
    alone = by_anchor(trained(anchors[:, :2], z), "scales")
    together = by_anchor(trained(anchors, z), "scales")[:, :2]
    assert (alone - together).abs().max() > 1e-4
