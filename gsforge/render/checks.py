"""What `rasterize` refuses before anything is drawn, with the argument and the place named."""

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.types import Contribution


def check_shapes(
    gaussians: Gaussians,
    cameras: Cameras,
    backgrounds: Tensor | None,
    colors: Tensor | None,
    features: Tensor | None,
    contribution: Contribution | None,
) -> None:
    """Compare shapes, devices and dtypes of all arguments of `rasterize` with those of the means and cameras.

    Args:
        gaussians: as given to `rasterize`.
        cameras: as given to `rasterize`.
        backgrounds: as given to `rasterize`.
        colors: as given to `rasterize`.
        features: as given to `rasterize`.
        contribution: as given to `rasterize`.

    Raises:
        ValueError: if something does not fit; names the argument.
    """
    means = gaussians.means
    if means.dim() < 2 or means.shape[-1] != 3:
        raise ValueError(f"gaussians.means: expected shape [..., N, 3], got {list(means.shape)}")
    if not torch.is_floating_point(means):
        raise ValueError(f"gaussians.means: expected floating point, got {means.dtype}")
    if cameras.world_to_camera.dim() < 3:
        raise ValueError(
            f"cameras.world_to_camera: expected shape [..., C, 4, 4], got {list(cameras.world_to_camera.shape)}"
        )
    if cameras.width < 1 or cameras.height < 1:
        raise ValueError(f"cameras: expected at least one pixel, got width {cameras.width}, height {cameras.height}")
    count, views, image = gaussians.count, cameras.count, (cameras.height, cameras.width)
    sh_terms = gaussians.sh.shape[-2] if gaussians.sh.dim() >= 2 else 0
    if sh_terms not in (1, 4, 9, 16, 25):
        raise ValueError(f"gaussians.sh: expected 1, 4, 9, 16 or 25 coefficients (degree 0 to 4), got {sh_terms}")

    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("gaussians.quats", gaussians.quats, (count, 4)),
        ("gaussians.scales", gaussians.scales, (count, 3)),
        ("gaussians.opacities", gaussians.opacities, (count,)),
        ("gaussians.sh", gaussians.sh, (count, sh_terms, 3)),
        ("cameras.world_to_camera", cameras.world_to_camera, (views, 4, 4)),
        ("cameras.intrinsics", cameras.intrinsics, (views, 3, 3)),
        ("backgrounds", backgrounds, (views, 3)),
    ]
    if contribution is not None:
        expected.append(("contribution.target", contribution.target, (views, 3, *image)))
        expected.append(("contribution.tokens", contribution.tokens, (count,)))
    for name, tensor, shape in expected:
        if tensor is not None:
            _check_shape(name, tensor, (*gaussians.batch_shape, *shape))
            _check_like(name, tensor, means)
    _check_channels("colors", colors, gaussians, views, 3)
    _check_channels("features", features, gaussians, views, None)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, got {list(tensor.shape)}")


def _check_like(name: str, tensor: Tensor, means: Tensor) -> None:
    if tensor.device != means.device or tensor.dtype != means.dtype:
        raise ValueError(
            f"{name}: expected {means.dtype} on {means.device} as gaussians.means, "
            f"got {tensor.dtype} on {tensor.device}; move it with .to()"
        )


def _check_channels(name: str, tensor: Tensor | None, gaussians: Gaussians, views: int, channels: int | None) -> None:
    """`colors` and `features` may be the same in all views or differ; `channels` None leaves their number open."""
    if tensor is None:
        return
    last = (tensor.shape[-1] if tensor.dim() else 0) if channels is None else channels
    shared = (*gaussians.batch_shape, gaussians.count, last)
    per_view = (*gaussians.batch_shape, views, gaussians.count, last)
    if tuple(tensor.shape) not in (shared, per_view):
        raise ValueError(
            f"{name}: expected shape {list(shared)}, or {list(per_view)} for each view its own, "
            f"got {list(tensor.shape)}"
        )
    _check_like(name, tensor, gaussians.means)
