"""A flow model whose weights are divided among two ranks learns what one rank learns."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.methods.deg.transformer import FlowTransformer

RANKS, STEPS, BATCH, TOKENS = 2, 3, 4, 6


def build(**changes: Any) -> FlowTransformer:
    torch.manual_seed(0)
    sizes = {"width": 48, "heads": 2, "blocks": 2, "refiner_blocks": 1, "latent_channels": 4}
    network = FlowTransformer(FlowNetworkConfig(**(sizes | changes)), 5, 3).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    shapes = {"latent": (TOKENS, 4), "camera": (5,), "times": (), "semantic": (7, 5), "appearance": (7, 3)}
    return {name: torch.rand(BATCH, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def train(network: FlowTransformer, rank: int, ranks: int) -> None:
    """A few steps on a rank's part of each batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    anchors = sobol_anchors(TOKENS).double()
    for step in range(STEPS):
        part = {name: tensor.chunk(ranks)[rank] for name, tensor in batch(step).items()}
        predicted = network(anchors=anchors, **part)
        optimizer.zero_grad()
        (predicted.latent.square().mean() + predicted.camera.square().mean()).backward()
        optimizer.step()


def sharded(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for recomputed in (False, True):
        network = build(checkpoint_blocks=recomputed)
        whole = sum(parameter.numel() for parameter in network.parameters())
        network.shard(mesh)
        train(network, rank, RANKS)
        parameters = dict(network.named_parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
        local = sum(parameter.to_local().numel() for parameter in parameters.values())
        assert local < 0.6 * whole, "each rank holds about half of the weights"
        weights = {name: parameter.full_tensor().detach() for name, parameter in parameters.items()}
        if rank == 0:
            torch.save(weights, folder / f"weights_{recomputed}.pt")
    distributed.destroy_process_group()


def test_two_ranks_that_share_the_weights_learn_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(sharded, (tmp_path,), nprocs=RANKS)
    alone = build()
    train(alone, 0, 1)
    for recomputed in (False, True):
        found = torch.load(tmp_path / f"weights_{recomputed}.pt", weights_only=True)
        assert found.keys() == dict(alone.named_parameters()).keys()
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-6, atol=1e-8, msg=name)
