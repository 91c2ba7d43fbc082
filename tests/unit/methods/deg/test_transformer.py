"""The flow-matching transformer: symmetries, positions, the camera token, recomputed and compiled blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.methods.deg.transformer import FlowTransformer, LearnedRotary, Prediction

SIZES: dict[str, Any] = {"width": 48, "heads": 2, "blocks": 2, "refiner_blocks": 1, "latent_channels": 4}


def build(**changes: Any) -> FlowTransformer:
    torch.manual_seed(0)
    return FlowTransformer(FlowNetworkConfig(**(SIZES | changes)), 5, 3)


def awakened(network: FlowTransformer) -> FlowTransformer:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def inputs(tokens: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "latent": normal(2, tokens, 4), "camera": normal(2, 5), "times": torch.tensor([0.2, 0.7]),
        "anchors": sobol_anchors(tokens), "semantic": normal(2, 7, 5), "appearance": normal(2, 7, 3),
    }  # fmt: skip


def test_untrained_it_predicts_zero() -> None:
    predicted = build()(**inputs())
    assert not predicted.latent.any()
    assert predicted.camera is not None
    assert not predicted.camera.any()


def test_tokens_are_told_apart_by_their_anchors_alone() -> None:
    network, given = awakened(build()), inputs()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    straight = network(**given)
    together = network(**given | {"latent": given["latent"][:, order], "anchors": given["anchors"][order]})
    torch.testing.assert_close(together.latent, straight.latent[:, order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.camera, straight.camera, rtol=1e-3, atol=1e-4)
    moved = network(**given | {"anchors": given["anchors"][order]})
    assert (moved.latent - straight.latent).abs().max() > 0.05


def test_without_positions_anchors_are_not_seen() -> None:
    network, given = awakened(build(positions="none")), inputs()
    assert torch.equal(network(**given).latent, network(**given | {"anchors": given["anchors"].flip(0)}).latent)


@pytest.mark.parametrize("name", ["latent", "camera", "times", "semantic", "appearance"])
def test_every_input_reaches_both_predictions(name: str) -> None:
    network, given = awakened(build()), inputs()
    straight, changed = network(**given), network(**given | {name: given[name] + 0.3})
    assert (changed.latent - straight.latent).abs().max() > 1e-3
    assert (changed.camera - straight.camera).abs().max() > 1e-3


def test_the_camera_token_can_be_left_out() -> None:
    network, given = awakened(build(camera_token=False)), inputs()
    predicted = network(**given)
    assert predicted.camera is None
    assert torch.equal(predicted.latent, network(**given | {"camera": None}).latent)
    assert not any(name.startswith("camera") for name in network.state_dict())


def gradients_of(network: FlowTransformer) -> dict[str, Tensor]:
    given = {name: tensor.double() for name, tensor in inputs().items()}
    predicted: Prediction = awakened(network).double()(**given)
    assert predicted.camera is not None
    (predicted.latent.square().sum() + predicted.camera.square().sum()).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_blocks": True},
        pytest.param({"compile_blocks": True, "checkpoint_blocks": True}, marks=pytest.mark.slow),
    ],
)
def test_recomputed_and_compiled_blocks_give_the_same_gradients(changes: dict[str, bool]) -> None:
    plain, network = build(blocks=1, refiner_blocks=0), build(blocks=1, refiner_blocks=0, **changes)
    assert plain.state_dict().keys() == network.state_dict().keys()
    expected, found = gradients_of(plain), gradients_of(network)
    assert found.keys() == expected.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm(), name
    if "compile_blocks" in changes:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"


def test_learned_positions_turn_by_position_times_frequency() -> None:
    torch.manual_seed(0)
    rotary = LearnedRotary(width=32, heads=2).double()
    nn.init.normal_(rotary.to_positions.weight)
    h = torch.randn(1, 3, 32, dtype=torch.float64)
    angles = rotary(h)
    assert angles.shape == (1, 3, 2, 8)
    normed = rotary.norm(h)
    hidden = nn.functional.silu(rotary.gate(normed)) * rotary.content(normed)
    positions = rotary.to_positions(hidden).unflatten(-1, (2, 3))
    shares = [frequencies.numel() for frequencies in rotary.frequencies]
    assert shares == [2, 2, 4]
    expected = torch.cat([positions[..., i, None] * f for i, f in enumerate(rotary.frequencies)], -1) * torch.pi
    torch.testing.assert_close(angles, expected)


def test_high_frequencies_do_not_shake_the_positions() -> None:
    torch.manual_seed(0)
    rotary, h = LearnedRotary(width=12, heads=1).double(), torch.randn(1, 1, 12, dtype=torch.float64)
    position_gradients = []
    for scale in (1e-3, 1.0, 100.0):
        with torch.no_grad():
            for frequencies in rotary.frequencies:
                frequencies.fill_(scale)
        (gradient,) = torch.autograd.grad(rotary(h).sum(), rotary.to_positions.weight)
        position_gradients.append(gradient.abs().sum().item())
    small, one, large = position_gradients
    assert small / one == pytest.approx(1e-3 / torch.tensor(1.0).tanh().item(), rel=1e-3)
    assert large / one == pytest.approx(1 / torch.tensor(1.0).tanh().item(), rel=1e-6)


def test_bfloat16_autocast_changes_little() -> None:
    network = awakened(build(positions="anchors"))
    exact = network(**inputs())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(**inputs())
    assert (rounded.latent.float() - exact.latent).norm() < 0.03 * exact.latent.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 5}, "got 48 and 5"), ({"width": 36, "heads": 2}, "got 36 and 2"), ({"blocks": 0}, "at least 1 block")],
)
def test_sizes_that_cannot_be_built_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowNetworkConfig(**(SIZES | changes))
