"""What `rasterize` refuses before anything is drawn, with the argument and the place named."""

import math
import sys
from functools import cache

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.types import Contribution, RenderInputs

_OPACITY_ROUNDING = 1e-6
_QUATERNION_ROUNDING = 1e-2  # bfloat16 rounds to within 0.4 %
_CAMERA_ROUNDING = 1e-3


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


@torch.no_grad()
def check_values(inputs: RenderInputs) -> None:
    """Look for numbers that cannot be drawn. Call it where autocast is off.

    Cheap where all is well: one reduction for each tensor, and a single read from a GPU. The sums and extremes say only
    that something may be wrong; then every entry is looked at.

    Args:
        inputs: of shapes that fit together.

    Raises:
        ValueError: for values that are not finite, negative scales, opacities outside [0, 1], quaternions not of length
            1, focal lengths <= 0, intrinsics of another form than [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], and extrinsics
            that do not rotate; names the argument and the index.
    """
    bounds = _bounds(inputs)
    values = torch.stack([value for value, _, _ in bounds]).tolist()
    # Written so that nan fails. A sum may overflow though every value is finite.
    if not all(
        math.isfinite(value) and low <= value <= high for value, (_, low, high) in zip(values, bounds, strict=True)
    ):
        _search(inputs)


def _bounds(inputs: RenderInputs) -> list[tuple[Tensor, float, float]]:
    """Scalars, with the least and the greatest value each may have if nothing is wrong."""
    anything = (-math.inf, math.inf)
    bounds = [(tensor.sum(), *anything) for _, tensor in _tensors(inputs)]
    if inputs.gaussians.means.numel():
        quats = inputs.gaussians.quats
        squared_norms = (quats * quats) @ _constant("ones", quats)  # the fastest sum over rows of four
        for tensor, low, high in (
            (inputs.gaussians.scales, 0.0, math.inf),
            (inputs.gaussians.opacities, -_OPACITY_ROUNDING, 1 + _OPACITY_ROUNDING),
            (squared_norms, (1 - _QUATERNION_ROUNDING) ** 2, (1 + _QUATERNION_ROUNDING) ** 2),
        ):
            smallest, largest = tensor.aminmax()
            bounds += [(smallest, low, math.inf), (largest, -math.inf, high)]
    if inputs.cameras.intrinsics.numel():
        intrinsics = inputs.cameras.intrinsics
        bounds.append((intrinsics.diagonal(dim1=-2, dim2=-1).amin(), sys.float_info.min, math.inf))
        bounds.append((_intrinsics_error(intrinsics).amax(), 0.0, _CAMERA_ROUNDING))
        bounds.append((_rotation_error(inputs.cameras.world_to_camera).amax(), 0.0, _CAMERA_ROUNDING))
    return bounds


def _tensors(inputs: RenderInputs) -> list[tuple[str, Tensor]]:
    """Everything but scales, opacities and quaternions, whose extremes show infinities as well."""
    gaussians, cameras, contribution = inputs.gaussians, inputs.cameras, inputs.contribution
    tensors = [
        ("gaussians.means", gaussians.means),
        ("gaussians.sh", gaussians.sh),
        ("cameras.world_to_camera", cameras.world_to_camera),
        ("cameras.intrinsics", cameras.intrinsics),
        ("backgrounds", inputs.backgrounds),
    ]
    if inputs.colors is not None:
        tensors.append(("colors", inputs.colors))
    if inputs.features is not None:
        tensors.append(("features", inputs.features))
    if contribution is not None:
        tensors.append(("contribution.target", contribution.target))
        tensors.append(("contribution.tokens", contribution.tokens))
    return tensors


def _search(inputs: RenderInputs) -> None:
    """Look at every entry, and raise at the first that cannot be drawn."""
    gaussians, cameras = inputs.gaussians, inputs.cameras
    scales, opacities, quats = gaussians.scales, gaussians.opacities, gaussians.quats
    of_gaussians = [("gaussians.quats", quats), ("gaussians.scales", scales), ("gaussians.opacities", opacities)]
    for name, tensor in [*of_gaussians, *_tensors(inputs)]:
        _refuse(name, tensor, ~tensor.isfinite(), "expected finite values, got {}")
    _refuse("gaussians.scales", scales, scales < 0, "expected a standard deviation >= 0, got {}")
    outside = (opacities < -_OPACITY_ROUNDING) | (opacities > 1 + _OPACITY_ROUNDING)
    _refuse("gaussians.opacities", opacities, outside, "expected an opacity in [0, 1], got {}")
    norm = vector_norm(quats, dim=-1)
    not_unit = (norm - 1).abs() > _QUATERNION_ROUNDING
    expected = "expected a quaternion of length 1, got length {}: normalise them, torch.nn.functional.normalize"
    _refuse("gaussians.quats", norm, not_unit, expected)

    is_focal = _constant("focal", cameras.intrinsics) > 0
    _refuse(
        "cameras.intrinsics",
        cameras.intrinsics,
        is_focal & (cameras.intrinsics <= 0),
        "expected a focal length > 0 px, got {}",
    )
    error = _intrinsics_error(cameras.intrinsics)
    expected = "expected the form [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got an entry that is off by {}"
    _refuse("cameras.intrinsics", error, error > _CAMERA_ROUNDING, expected)
    error = _rotation_error(cameras.world_to_camera)
    expected = "expected a rotation R with R R^T = I within 0.001, got an error of {}: a rigid transform has no scale"
    _refuse("cameras.world_to_camera", error, error > _CAMERA_ROUNDING, expected)


def _refuse(name: str, values: Tensor, bad: Tensor, message: str) -> None:
    if bad.any():
        index = bad.nonzero()[0].tolist()
        raise ValueError(f"{name}{index}: {message.format(f'{values[tuple(index)].item():.6g}')}")


def _intrinsics_error(intrinsics: Tensor) -> Tensor:
    """[..., C, 3, 3] how far the entries that should be 0, or 1 in the corner, are from that."""
    return ((intrinsics - _constant("corner", intrinsics)) * _constant("fixed", intrinsics)).abs()


def _rotation_error(world_to_camera: Tensor) -> Tensor:
    """[..., C, 3, 3] entries of |R R^T - I|; without a matrix product, which TF32 would round."""
    rotation = world_to_camera[..., :3, :3]
    products = (rotation[..., :, None, :] * rotation[..., None, :, :]).sum(-1)
    return (products - _constant("identity", rotation)).abs()


_CONSTANTS = {
    "ones": [1.0, 1.0, 1.0, 1.0],
    "identity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "focal": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
    "corner": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    "fixed": [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
}


def _constant(name: str, like: Tensor) -> Tensor:
    return _cached_constant(name, like.dtype, like.device)


@cache
def _cached_constant(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small tensor that is sent to a GPU once."""
    return torch.tensor(_CONSTANTS[name], dtype=dtype, device=device)


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
