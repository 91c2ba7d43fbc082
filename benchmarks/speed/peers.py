"""The renderers that are compared: our own, gsplat's torch code, and any other in a folder of the user's.

A renderer that draws something else is no peer: `check` refuses it before anything is timed.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.speed import shim
from benchmarks.speed.scenes import Scene
from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render import rasterize
from gsforge.render.api import Backend

Render = Callable[[Gaussians, Cameras], Tensor]
ATTRIBUTES = ("means", "quats", "scales", "opacities", "sh")


@dataclass(frozen=True)
class Contender:
    """A renderer in the comparison.

    Attributes:
        name: shown in the tables.
        render: [3, H, W] image over black of Gaussians without batch dimension and one camera, with gradient.
        image_mean: largest mean difference of its image from ours.
        image_max: largest difference of its image from ours.
        gradient: largest relative difference of its gradients from ours; infinite where they are known to differ.
    """

    name: str
    render: Render
    image_mean: float = 1e-5
    image_max: float = 5e-3
    gradient: float = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How far a renderer is from ours.

    Attributes:
        image_mean: mean difference of the images.
        image_max: largest difference of the images.
        gradients: per attribute, the norm of the difference over the norm of ours.
    """

    image_mean: float
    image_max: float
    gradients: dict[str, float]


def own(backend: Backend) -> Contender:
    """Our own renderer, called as a user calls it.

    Args:
        backend: which of its backends.

    Returns:
        The contender.
    """
    return Contender("gsforge", lambda gaussians, cameras: rasterize(gaussians, cameras, backend=backend).rgb[0])


def gsplat_torch() -> Contender:
    """The torch code of gsplat, with the parts it lacks on a CPU taken from `shim`.

    Returns:
        The contender.
    """
    code, nerfacc = _gsplat_code(), shim.nerfacc()

    def render(gaussians: Gaussians, cameras: Cameras) -> Tensor:
        radii, means2d, conics = _project(gaussians, cameras)
        center = torch.inverse(cameras.world_to_camera)[0, :3, 3]
        colours = code._spherical_harmonics(gaussians.sh_degree, gaussians.means - center, gaussians.sh)
        colours = (colours + 0.5).clamp_min(0)
        opacities, width, height = gaussians.opacities, cameras.width, cameras.height
        splats, pixels = shim.find_pairs(
            means2d, radii, conics, opacities, shim.exact_depths(gaussians, cameras), width, height
        )
        with _importable("nerfacc", nerfacc):
            batched = [tensor[None] for tensor in (means2d, conics, opacities, colours)]
            image, _ = code.accumulate(*batched, splats, pixels, torch.zeros_like(splats), width, height)
        return image[0].movedim(-1, 0)

    return Contender("gsplat-torch", render)


def count_pairs(scene: Scene) -> int:
    """Pairs of a Gaussian and a pixel that it is drawn in: the least that any renderer has to evaluate.

    Args:
        scene: what is drawn.

    Returns:
        Number of pairs.
    """
    gaussians, size = scene.gaussians.detach(), scene.cameras.width
    radii, means2d, conics = _project(gaussians, scene.cameras)
    depths = shim.exact_depths(gaussians, scene.cameras)
    return len(shim.find_pairs(means2d, radii, conics, gaussians.opacities, depths, size, size)[0])


def _gsplat_code() -> ModuleType:
    if importlib.util.find_spec("gsplat") is None:
        raise SystemExit("gsplat, the peer of this benchmark, is not installed: pip install 'gsforge[cuda]'")
    # Not gsplat.cuda._backend, which compiles the kernels.
    return importlib.import_module("gsplat.cuda._torch_impl")


def _project(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Radii [N, 2], centres [N, 2] and inverse covariances [N, 3] on the image, by gsplat."""
    code = _gsplat_code()
    covariances, _ = code._quat_scale_to_covar_preci(gaussians.quats, gaussians.scales, compute_preci=False)
    projected = code._fully_fused_projection(
        gaussians.means, covariances, cameras.world_to_camera, cameras.intrinsics, cameras.width, cameras.height
    )
    radii, means2d, _, conics, _ = projected
    return radii[0], means2d[0], conics[0]


@contextmanager
def _importable(name: str, module: object) -> Iterator[None]:
    """Let `import name` find a module, here and now only."""
    before = sys.modules.get(name)
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def from_folder(folder: Path) -> Contender:
    """A renderer in a folder of the user's, which may be under any licence: nothing of it enters this project.

    Its image is held to ours within a mean of 1e-3. Its gradients are reported and not held to ours.

    Args:
        folder: holds `peer.py` with a function `render(gaussians, cameras)`, see `Contender.render`, and a `NAME`.

    Returns:
        The contender.

    Raises:
        SystemExit: if the folder has no such file, or the file no such names.
    """
    file = folder / "peer.py"
    if not file.is_file():
        raise SystemExit(
            f"--peer-dir: looked for {file} and found none; it must define NAME and "
            f"render(gaussians, cameras) -> [3, H, W] image, see benchmarks/speed/README.md"
        )
    spec = importlib.util.spec_from_file_location("benchmark_peer", file)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    if missing := [name for name in ("NAME", "render") if not hasattr(module, name)]:
        raise SystemExit(f"--peer-dir: {file} must define NAME and render(gaussians, cameras); it lacks {missing}")
    return Contender(module.NAME, module.render, image_mean=1e-3, image_max=float("inf"), gradient=float("inf"))


def step(render: Render, scene: Scene) -> tuple[Tensor, list[Tensor]]:
    """Draw, compare with the target, and differentiate.

    Args:
        render: draws the image.
        scene: what is drawn.

    Returns:
        image: [3, H, W].
        gradients: of the summed squared error, to each of `ATTRIBUTES`.
    """
    leaves = [getattr(scene.gaussians, name) for name in ATTRIBUTES]
    image = render(scene.gaussians, scene.cameras)
    return image.detach(), list(torch.autograd.grad((image - scene.target).square().sum(), leaves))


def check(contender: Contender, reference: Contender, scene: Scene) -> Agreement:
    """Compare image and gradients of two renderers.

    Args:
        contender: to be judged, by its tolerances.
        reference: taken as right.
        scene: what both draw.

    Returns:
        The differences.

    Raises:
        SystemExit: if they exceed the tolerances.
    """
    image, gradients = step(contender.render, scene)
    expected, expected_gradients = step(reference.render, scene)
    difference = (image - expected).abs()
    agreement = Agreement(
        float(difference.mean()),
        float(difference.max()),
        {
            name: float((theirs - ours).norm() / ours.norm())
            for name, theirs, ours in zip(ATTRIBUTES, gradients, expected_gradients, strict=True)
        },
    )
    limits = (
        ("mean of the image", agreement.image_mean, contender.image_mean),
        ("maximum of the image", agreement.image_max, contender.image_max),
        *((f"gradient to the {name}", error, contender.gradient) for name, error in agreement.gradients.items()),
    )
    for name, error, limit in limits:
        if not error <= limit:
            raise SystemExit(
                f"{contender.name} draws something else than {reference.name}, so times cannot be compared: "
                f"{name} differs by {error:.2g}, allowed {limit:.2g}"
            )
    return agreement
