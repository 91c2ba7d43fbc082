"""The arithmetic of `gsforge plan` against real steps, optimisers and shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.methods.deg.transformer import FlowTransformer
from gsforge.training.optimizer_states import optimizer_states
from gsforge.training.rank_memory import describe_model, legal_ranks
from gsforge.training.step_cost import Moment, StepCost, lay_out, measure_step

SIZES = {"width": 96, "heads": 2, "blocks": 3, "refiner_blocks": 1, "latent_channels": 16}
TOKENS, IMAGE_TOKENS, CHANNELS = 40, 16, (7, 5)


def flow(**changes: Any) -> FlowTransformer:
    return FlowTransformer(FlowNetworkConfig(**(SIZES | changes)), *CHANNELS)


def loss_of(network: nn.Module) -> Callable[[int], Tensor]:
    def step(size: int) -> Tensor:
        shapes = ((TOKENS, 16), (5,), ())
        state = [torch.zeros(size, *shape) for shape in shapes]
        images = [torch.zeros(size, IMAGE_TOKENS, channels) for channels in CHANNELS]
        predicted = network(*state, torch.zeros(TOKENS, 3), *images)
        return predicted.latent.square().mean() + predicted.camera.square().mean()

    return step


def allocated(action: Callable[[], object], trace: Path) -> int:
    """Most bytes that torch's allocator had given out at a time, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    taken = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        taken += event["args"]["Bytes"]
        peak = max(peak, taken)
    return peak


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_the_bytes_of_a_step_are_those_that_the_allocator_gives(checkpoint_blocks: bool, tmp_path: Path) -> None:
    samples = 5
    empty = lay_out(lambda: flow(checkpoint_blocks=checkpoint_blocks))
    cost = measure_step(empty, loss_of(empty))
    moments = (*cost.forward, *cost.backward)
    predicted = max(moment.fixed + samples * moment.per_sample + moment.gradients for moment in moments)
    network = flow(checkpoint_blocks=checkpoint_blocks)
    step = loss_of(network)
    step(1).backward()  # what torch allocates once
    network.zero_grad()
    measured = allocated(lambda: step(samples).backward(), tmp_path / "trace.json")
    assert predicted == pytest.approx(measured, rel=0.03)


def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves() -> None:
    network = flow()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(network)(3)
    found = sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in weights)
    empty = lay_out(flow)
    kept = measure_step(empty, loss_of(empty)).kept
    assert loss.requires_grad
    assert kept.fixed + 3 * kept.per_sample == pytest.approx(found, rel=0.01)


def test_autocast_halves_what_is_kept_and_copies_the_weights() -> None:
    network = lay_out(flow)
    plain, mixed = (measure_step(network, loss_of(network), autocast) for autocast in (None, torch.bfloat16))
    assert mixed.kept.per_sample < 0.85 * plain.kept.per_sample
    matrices = sum(weight.numel() for weight in network.parameters() if weight.ndim == 2)
    assert mixed.kept.fixed == pytest.approx(2 * matrices, rel=0.05)
    assert mixed.flops == plain.flops


def test_the_flops_are_those_of_the_matrix_products() -> None:
    network = lay_out(flow)
    cost = measure_step(network, loss_of(network))
    matrices = sum(weight.numel() for block in network.blocks for weight in block.parameters() if weight.ndim == 2)
    length = TOKENS + IMAGE_TOKENS + 1
    lower = 6 * length * (matrices - 3 * 6 * SIZES["width"])  # its table is no matrix
    attention = 6 * 2 * length**2 * SIZES["width"] * SIZES["blocks"]
    assert lower + attention < cost.flops < 1.8 * (lower + attention)  # the refiners and embeddings are the rest


# --- states of optimisers


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_the_states_of_an_optimiser_are_those_of_a_real_step(optimizer: Any, options: dict[str, Any]) -> None:
    network = flow()
    predicted = describe_model(network, [optimizer(network.parameters(), lr=0.1, **options)], "none")
    found = predicted.on_rank("one process", 1, (1, 1), None).optimizer
    real = optimizer(network.parameters(), lr=0.1, **options)
    loss_of(network)(1).backward()
    real.step()
    tensors = [value for state in real.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert found == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_an_optimiser_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="LBFGS does not take a step by itself"):
        list(optimizer_states(torch.optim.LBFGS(flow().parameters())))


# --- several ranks


def test_a_rank_of_three_keeps_what_fsdp_leaves_there() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    network = flow()
    model = describe_model(network, [torch.optim.AdamW(network.parameters())], "trained")
    memory = model.on_rank("sharded", 3, (1, 1), None)
    torch.distributed.init_process_group("fake", rank=0, world_size=3, store=FakeStore())
    try:
        network.shard(init_device_mesh("cpu", (3,)))
        local = sum(weight.to_local().numel() for weight in network.parameters())  # type: ignore[attr-defined]
    finally:
        torch.distributed.destroy_process_group()
    scalars = sum(1 for _ in network.parameters())
    buffers = sum(buffer.numel() for buffer in network.buffers())
    assert memory.weights == 4 * (local + buffers)
    assert memory.gradients == memory.averages == 4 * local
    assert memory.optimizer == 4 * (2 * local + scalars)
    largest = max(4 * sum(weight.numel() for weight in unit.parameters()) for unit in flow().units)
    assert memory.exchange > 2 * largest


def test_legal_numbers_of_ranks() -> None:
    assert legal_ranks(1) == [1]
    assert legal_ranks(12) == [1, 2, 3, 4, 6, 12]
    assert legal_ranks(49) == [1, 7, 49]


def test_the_moment_that_needs_most_depends_on_the_batch_and_on_old_gradients() -> None:
    kept = Moment(fixed=10, per_sample=5, gradients=0)
    cost = StepCost(0, 0, kept, forward=(kept,), backward=(Moment(80, 1, 40), Moment(0, 7, 20)))
    assert cost.peak(samples=1, gradients=40) == 80 + 1 + 40
    assert cost.peak(samples=30, gradients=40) == 7 * 30 + 20
    assert cost.peak(samples=30, gradients=40, accumulated=True) == 7 * 30 + 40
    assert cost.peak(samples=30, gradients=4) == 7 * 30 + 2  # a tenth of them on a rank
    # Those of the step before are there while the next batch goes forward.
    assert StepCost(0, 0, kept, forward=(kept,), backward=(Moment(0, 1, 40),)).peak(3, 40) == 10 + 15 + 40
