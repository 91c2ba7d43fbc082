"""The same numbers with any number of threads, from several Python threads at once, and in forked children."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render import rasterize

Differentiate = Callable[[Gaussians, Cameras], dict[str, Tensor]]
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork processes"
)


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def large() -> dict[str, Any]:
    """Arguments of a scene that every pass splits: see the grains in `passes`."""
    return {"count": 4500, "batch": (2,), "size": 0.04}


def pool_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(f"gsforge-{os.getpid()}")]


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_any_number_of_threads(
    random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras], draw_and_differentiate: Differentiate,
    large: dict[str, Any],
) -> None:  # fmt: skip
    gaussians, cameras = random_scene(**large), orbit(3, 90, 75, (2,))
    torch.set_num_threads(1)
    expected = draw_and_differentiate(gaussians, cameras)
    assert all(values.any() for values in expected.values())
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_identical(draw_and_differentiate(gaussians, cameras), expected)
    assert pool_threads(), "nothing ran in the pool"


def test_several_python_threads_at_once(
    random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras], draw_and_differentiate: Differentiate
) -> None:
    torch.set_num_threads(2)
    gaussians = random_scene(2000, size=0.05)
    cameras = [orbit(2, 90, 75 + i) for i in range(4)]
    expected = [draw_and_differentiate(gaussians, views) for views in cameras]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda views: draw_and_differentiate(gaussians, views), cameras * 3))
    for i, images in enumerate(found):
        assert_identical(images, expected[i % 4])


@needs_fork
def test_forked_child(random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras]) -> None:
    gaussians, cameras = random_scene(300), orbit(2, 96, 96)
    torch.set_num_threads(2)
    expected = rasterize(gaussians, cameras, backend="cpu").rgb
    assert pool_threads()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def draw_in_child() -> None:
        image = rasterize(gaussians, cameras, backend="cpu").rgb
        sender.send((image.numpy(), len(pool_threads())))

    child = context.Process(target=draw_in_child)
    child.start()
    try:
        assert receiver.poll(60), "the child hangs, or has died"
        image, threads = receiver.recv()
        assert torch.equal(torch.from_numpy(image), expected)
        assert threads > 0, "the child did not make a pool of its own"
    finally:
        child.kill()
        child.join()


class Renders(Dataset[Tensor]):
    """Draws in `__getitem__`, and with two threads, which a worker does not do by itself."""

    def __init__(self, gaussians: Gaussians, cameras: Cameras) -> None:
        self.gaussians, self.cameras = gaussians, cameras

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(2)
        gaussians = replace(self.gaussians, opacities=self.gaussians.opacities * index)
        return rasterize(gaussians, self.cameras, backend="cpu").rgb


@needs_fork
def test_worker_of_a_data_loader(random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras]) -> None:
    data = Renders(random_scene(300), orbit(2, 96, 96))
    expected = data[1]
    loader = DataLoader(data, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork")
    nothing, image = loader
    assert not nothing.any()
    assert torch.equal(image, expected)
