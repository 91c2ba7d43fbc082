"""What `rasterize` refuses: the argument and the place are named, and nothing else is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, RenderSettings, rasterize
from gsforge.render.types import RenderInputs

BATCH, COUNT, VIEWS = 2, 20, 3


def arguments(**changes: Any) -> dict[str, Any]:
    """Everything `rasterize` takes, valid; each call gives new tensors."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(BATCH, *shape, generator=generator)

    one_scene = cameras_around(sphere_hammersley(VIEWS), 2.0, 0.8, 8)
    valid = {
        "gaussians": Gaussians(
            means=uniform(COUNT, 3) - 0.5,
            quats=normalize(uniform(COUNT, 4) - 0.5, dim=-1),
            scales=0.1 * uniform(COUNT, 3),
            opacities=uniform(COUNT),
            sh=uniform(COUNT, 4, 3),
        ),
        "cameras": one_scene.map(lambda matrices: matrices.expand(BATCH, *matrices.shape).clone()),
        "backgrounds": uniform(VIEWS, 3),
        "colors": uniform(COUNT, 3),
        "features": uniform(VIEWS, COUNT, 5),
        "contribution": Contribution(target=uniform(VIEWS, 3, 8, 8), tokens=uniform(COUNT)),
    }
    return valid | changes


def changed(path: str, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The valid arguments with one tensor replaced; `path` is "argument" or "argument.attribute"."""
    name, _, attribute = path.partition(".")
    value = arguments()[name]
    if not attribute:
        return arguments(**{name: change(value)})
    return arguments(**{name: replace(value, **{attribute: change(getattr(value, attribute))})})


def with_value(value: float, *index: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[index] = value
        return tensor

    return change


def refusal(given: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        rasterize(**given, **more, backend="reference")
    return str(error.value)


TENSORS = [
    "gaussians.means", "gaussians.quats", "gaussians.scales", "gaussians.opacities", "gaussians.sh",
    "cameras.world_to_camera", "cameras.intrinsics", "backgrounds", "colors", "features", "contribution.target",
    "contribution.tokens",
]  # fmt: skip


def test_valid_arguments_are_drawn() -> None:
    drawn = rasterize(**arguments(), normals=True, backend="reference")
    assert drawn.rgb.shape == (BATCH, VIEWS, 3, 8, 8)
    assert drawn.features is not None
    assert drawn.features.shape == (BATCH, VIEWS, 5, 8, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("path", TENSORS)
def test_values_that_are_not_finite(path: str, value: float) -> None:
    place: list[int] = []

    def last_but_one(tensor: Tensor) -> Tensor:
        place.extend([size - 1 for size in tensor.shape[:-1]] + [max(tensor.shape[-1] - 2, 0)])
        return with_value(value, *place)(tensor)

    given = changed(path, last_but_one)
    assert refusal(given) == f"{path}{place}: expected finite values, got {value}"
    assert refusal(given, normals=True) == f"{path}{place}: expected finite values, got {value}"


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("gaussians.scales", with_value(-1e-3, 1, 17, 2), "gaussians.scales[1, 17, 2]: expected a standard deviation"),
        ("gaussians.opacities", with_value(1.001, 1, 4), "gaussians.opacities[1, 4]: expected an opacity in [0, 1]"),
        ("gaussians.opacities", with_value(-0.25, 0, 4), "got -0.25"),
        ("gaussians.quats", lambda q: q * (1 + (torch.arange(COUNT) == 9)[:, None]), "gaussians.quats[0, 9]: expected"),
        ("gaussians.quats", lambda q: q * 1.02, "got length 1.02: normalise them, torch.nn.functional.normalize"),
        ("gaussians.quats", lambda q: q * 0, "got length 0"),
        ("cameras.intrinsics", with_value(0.0, 0, 2, 0, 0), "cameras.intrinsics[0, 2, 0, 0]: expected a focal length"),
        ("cameras.intrinsics", with_value(-9.0, 1, 0, 1, 1), "cameras.intrinsics[1, 0, 1, 1]: expected a focal length"),
        ("cameras.intrinsics", with_value(2.0, 1, 0, 0, 1), "cameras.intrinsics[1, 0, 0, 1]: expected the form [[fx"),
        ("cameras.intrinsics", with_value(0.0, 1, 1, 2, 2), "cameras.intrinsics[1, 1, 2, 2]: expected the form [[fx"),
        ("cameras.world_to_camera", lambda m: m * 1.01, "cameras.world_to_camera[0, 0, 0, 0]: expected a rotation"),
    ],
)
def test_values_that_cannot_be_drawn(path: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    assert message in refusal(changed(path, change))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("gaussians.opacities", with_value(1 + 5e-7, 0, 0)),
        ("gaussians.opacities", with_value(-5e-7, 0, 0)),
        ("gaussians.quats", lambda q: q * 1.009),
        ("gaussians.quats", lambda q: q.bfloat16().float()),
        ("gaussians.scales", lambda s: s * 0),
        ("cameras.world_to_camera", lambda m: m + 1e-4),
        ("gaussians.means", lambda m: m * 1e38),  # finite, but its sum is not
        ("features", lambda f: f.fill_(3e38)),
    ],
)
def test_rounding_and_large_values_are_accepted(path: str, change: Callable[[Tensor], Tensor]) -> None:
    rasterize(**changed(path, change), backend="reference")


def test_autocast_does_not_coarsen_the_check() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rasterize(**changed("gaussians.quats", lambda q: q * 1.009), backend="reference")
        assert "got length 1.011" in refusal(changed("gaussians.quats", lambda q: q * 1.011))


# The means and the extrinsics say what N and C are.
@pytest.mark.parametrize("path", sorted({*TENSORS} - {"gaussians.means", "cameras.world_to_camera"}))
def test_shapes_of_the_other_tensors(path: str) -> None:
    assert f"{path}: expected shape [2, " in refusal(changed(path, lambda tensor: tensor[:, :-1]))
    assert f"{path}: expected shape [2, " in refusal(changed(path, lambda tensor: tensor[0]))


@pytest.mark.parametrize("path", sorted({*TENSORS} - {"gaussians.means"}))
def test_dtypes_and_devices(path: str) -> None:
    assert f"{path}: expected torch.float32 on cpu as gaussians.means, got torch.float64 on cpu" in refusal(
        changed(path, Tensor.double)
    )
    assert "got torch.float32 on meta; move it with .to()" in refusal(changed(path, lambda tensor: tensor.to("meta")))


def test_the_number_of_cameras_must_agree() -> None:
    wrong = refusal(changed("cameras.world_to_camera", lambda matrices: matrices[:, :-1]))
    assert "cameras.intrinsics: expected shape [2, 2, 3, 3], got [2, 3, 3, 3]" in wrong


def test_both_layouts_of_channels_are_named() -> None:
    for name, channels in (("colors", 3), ("features", 7)):
        wrong = refusal(arguments(**{name: torch.zeros(BATCH, 1, COUNT, channels)}))
        assert f"{name}: expected shape [2, 20, {channels}], or [2, 3, 20, {channels}] for each view its own" in wrong
    assert "colors: expected shape" in refusal(arguments(colors=torch.zeros(BATCH, COUNT, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.map(lambda tensor: tensor[0, 0]), "gaussians.means: expected shape [..., N, 3], got [3]"),
        (lambda g: replace(g, sh=g.sh[:, :, :3]), "expected 1, 4, 9, 16 or 25 coefficients (degree 0 to 4), got 3"),
        (lambda g: replace(g, means=g.means.long()), "gaussians.means: expected floating point, got torch.int64"),
    ],
)
def test_gaussians_that_are_none(change: Callable[[Gaussians], Gaussians], message: str) -> None:
    assert message in refusal(arguments(gaussians=change(arguments()["gaussians"])))


def test_an_image_has_pixels() -> None:
    cameras: Cameras = replace(arguments()["cameras"], height=0)
    assert "expected at least one pixel, got width 8, height 0" in refusal(arguments(cameras=cameras))


def test_empty_scenes_pass() -> None:
    given = arguments(colors=None, features=None, contribution=None)
    given["gaussians"] = given["gaussians"].map(lambda tensor: tensor[:, :0])
    assert not rasterize(**given, backend="reference").alpha.any()


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="backend: expected auto, reference, cpu, cuda, got 'vulkan'"):
        rasterize(**arguments(), backend="vulkan")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mode", "sharp"), ("eps2d", -0.1), ("eps2d", float("nan")), ("near", -1.0), ("near", float("inf")),
        ("far", 0.01), ("far", float("nan")), ("radius_clip", -1.0), ("transmittance_stop", 1.0),
        ("transmittance_stop", -1e-9),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(setting: str, value: float | str) -> None:
    with pytest.raises(ValueError, match=rf"settings\.{setting}: expected .*, got '?{value}'?$"):
        RenderSettings(**{setting: value})  # type: ignore[arg-type]


def test_settings_at_their_limits() -> None:
    RenderSettings(eps2d=0.0, near=0.0, far=float("inf"), transmittance_stop=0.0)


def test_contributions_of_unknown_kind() -> None:
    for kind in ({"loss": "ssim"}, {"estimate": "second_order"}):
        with pytest.raises(ValueError, match=r"contribution\.(loss|estimate): expected .* or .*, got"):
            Contribution(torch.zeros(1, 3, 8, 8), torch.zeros(4), **kind)  # type: ignore[arg-type]


def test_channels_of_both_layouts_get_the_dimension_of_the_views() -> None:
    given = arguments()
    inputs = RenderInputs(**given, settings=RenderSettings())
    assert inputs.per_view(given["colors"]).shape == (BATCH, VIEWS, COUNT, 3)
    assert torch.equal(inputs.per_view(given["features"]), given["features"])
