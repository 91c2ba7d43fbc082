"""The renderer inside `torch.compile`: one graph, the same numbers, the same refusals."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, rasterize

Draw = Callable[..., tuple[Tensor, ...]]
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and finds no g++"),
            pytest.mark.slow,
        ],
    ),
]


# A value that cannot be drawn, where it stands, and what is said of it.
INVALID = {
    "means": ((3, 1), float("nan"), r"gaussians\.means.*3, 1\]: expected finite"),
    "quats": ((2, 0), 5.0, r"gaussians\.quats.*2\]: expected a quaternion of length 1"),
    "scales": ((4, 2), -0.1, r"gaussians\.scales.*4, 2\]: expected a standard deviation >= 0"),
    "opacities": ((1,), 1.5, r"gaussians\.opacities.*1\]: expected an opacity in \[0, 1\]"),
    "sh": ((0, 3, 2), float("inf"), r"gaussians\.sh.*0, 3, 2\]: expected finite"),
    "features": ((4, 1), float("nan"), r"features.*4, 1\]: expected finite"),
    "backgrounds": ((1, 2), float("nan"), r"backgrounds.*1, 2\]: expected finite"),
    "intrinsics": ((1, 0, 0), -1.0, r"cameras\.intrinsics.*1, 0, 0\]: expected a focal length > 0"),
    "world_to_camera": ((0, 0, 0), 3.0, r"cameras\.world_to_camera.*0, 0, 0\]: expected a rotation"),
}


@pytest.fixture(autouse=True)
def _without_compiled_functions() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def loss_of_normals_and_contributions(tensors: dict[str, Tensor], tokens: Tensor, target: Tensor) -> Tensor:
    """All that a render can give, in one number."""
    attributes = (tensors[name] for name in ("means", "quats", "scales", "opacities", "sh"))
    drawn = rasterize(
        Gaussians(*attributes), Cameras(tensors["world_to_camera"], tensors["intrinsics"], 5, 4),
        backgrounds=tensors["backgrounds"], features=tensors["features"], normals=True,
        contribution=Contribution(target, tokens),
    )  # fmt: skip
    images = (drawn.rgb - target, drawn.alpha, drawn.expected_depth, drawn.features, drawn.normals, drawn.loss)
    return torch.stack([image.square().mean() for image in images if image is not None]).sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_equals_eager(smooth_inputs: dict[str, Tensor], backend: str) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in smooth_inputs.items()}
    tokens, target = torch.zeros(5, dtype=torch.float64, requires_grad=True), torch.rand(2, 3, 4, 5).double()
    wanted = [*leaves.values(), tokens]
    eager = loss_of_normals_and_contributions(leaves, tokens, target)
    compiled = torch.compile(loss_of_normals_and_contributions, fullgraph=True, backend=backend)
    loss = compiled(leaves, tokens, target)
    torch.testing.assert_close(loss, eager, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(eager, wanted)
    assert all(gradient.any() for gradient in expected)
    for name, gradient, other in zip([*leaves, "tokens"], torch.autograd.grad(loss, wanted), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12, msg=name)


def test_one_graph_draws_any_number_of_gaussians(smooth_inputs: dict[str, Tensor], draw_tensors: Draw) -> None:
    graphs = []

    def count_graphs(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(draw_tensors, fullgraph=True, dynamic=True, backend=count_graphs)
    of_gaussians = ("means", "quats", "scales", "opacities", "sh", "features")
    for count in (31, 30, 29):  # numbers that are no other length: torch.compile would take them for the same
        chosen = torch.arange(count) % 5
        many = {name: t[chosen] if name in of_gaussians else t for name, t in smooth_inputs.items()}
        for image, other in zip(compiled(**many), draw_tensors(**many), strict=True):
            assert torch.equal(image, other)
    assert len(graphs) == 1


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", INVALID)
def test_invalid_values_are_named(
    smooth_inputs: dict[str, Tensor], draw_tensors: Draw, name: str, compiled: bool
) -> None:
    place, value, expected = INVALID[name]
    draw = torch.compile(draw_tensors, fullgraph=True, backend="aot_eager") if compiled else draw_tensors
    smooth_inputs[name][place] = value
    with pytest.raises(ValueError, match=expected):
        draw(**smooth_inputs)


@pytest.mark.parametrize("name", ["colors", "target", "tokens"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_invalid_values_of_the_rest_are_named(smooth_inputs: dict[str, Tensor], name: str, compiled: bool) -> None:
    tensors = list(smooth_inputs.values())
    given = {
        "colors": torch.rand(5, 3, dtype=torch.float64),
        "target": torch.rand(2, 3, 4, 5, dtype=torch.float64),
        "tokens": torch.zeros(5, dtype=torch.float64),
    }
    given[name].view(-1)[0] = float("nan")

    def draw(colors: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        gaussians, cameras = Gaussians(*tensors[:5]), Cameras(*tensors[5:7], 5, 4)
        return rasterize(gaussians, cameras, colors=colors, contribution=Contribution(target, tokens)).rgb

    if compiled:
        draw = torch.compile(draw, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=rf"{name}\[[0, ]*\]: expected finite"):
        draw(**given)
