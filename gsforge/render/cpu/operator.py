"""The passes as operators of torch: they work under autograd, torch.compile, inference mode and in other threads."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.checks import check_values
from gsforge.render.cpu.differentiate import FIRST_ORDER, L1, L2, NO_LOSS
from gsforge.render.cpu.passes import Array, ImageGradients, Scene, Splats, backward, forward
from gsforge.render.cpu.warm import warm_up
from gsforge.render.types import RenderInputs, RenderSettings

LOSSES = {1: ("l1", "exact"), 2: ("l2", "exact"), 3: ("l1", "first_order"), 4: ("l2", "first_order")}
_INPUTS, _IMAGES = 12, 5  # tensors in, images out; the rest of the outputs is for the reverse pass
_DRAWN, _COLORS, _POSES, _TARGET = 10, 5, 7, 11  # of the inputs: number of those that make the image, and places


@torch.library.custom_op("gsforge::rasterize_cpu", mutates_args=())
def rasterize_operator(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, colors: Tensor, features: Tensor,
    world_to_camera: Tensor, intrinsics: Tensor, backgrounds: Tensor, tokens: Tensor, target: Tensor,
    width: int, height: int, settings: Sequence[float], antialiased: bool, contribution: int, checked: bool,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor, Tensor,
]:  # fmt: skip
    """Draw.

    Args:
        means: [B, N, 3].
        quats: [B, N, 4].
        scales: [B, N, 3].
        opacities: [B, N].
        sh: [B, N, K, 3].
        colors: [B or I, N, 3], or [0, N, 3].
        features: [B or I, N, F].
        world_to_camera: [I, 4, 4].
        intrinsics: [I, 3, 3].
        backgrounds: [I, 3].
        tokens: [B, N].
        target: [I, 3, H, W], or [0, 3, H, W].
        width: of the images.
        height: of the images.
        settings: eps2d, near, far, radius_clip and transmittance_stop.
        antialiased: whether opacities are compensated.
        contribution: 0 for none, else loss and estimate, see `LOSSES`.
        checked: whether the values have been checked.

    Returns:
        rgb, alpha, depth and features as [I, channels, H, W], the loss [I, 1, H, W], and what the reverse pass needs.
    """
    drawn = (means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds)
    if not checked:
        _check(drawn, width, height)
    warm_up(str(means.dtype).removeprefix("torch."))
    scene = _scene(drawn, width, height, settings, antialiased)
    images, splats = forward(scene)
    rgb, alpha, depth, feature_images = map(torch.from_numpy, (images.rgb, images.alpha, images.depth, images.features))
    if contribution == 0:
        loss = rgb.new_empty(0, 1, height, width)
    else:
        residual = rgb - target
        per_channel = residual.abs() if LOSSES[contribution][0] == "l1" else residual.square()
        loss = per_channel.sum(1, keepdim=True)
    saved = (
        images.rests, images.lasts, splats.table, splats.colors, splats.rows, splats.spans, splats.counts,
        splats.order, splats.visible, splats.tile_starts, splats.entries,
    )  # fmt: skip
    return (rgb, alpha, depth, feature_images, loss, *map(torch.from_numpy, saved))  # type: ignore[return-value]


@rasterize_operator.register_fake
def _(
    means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds, tokens, target,
    width, height, settings, antialiased, contribution, checked,
):  # fmt: skip
    number, images = len(world_to_camera) * means.shape[1], len(world_to_camera)

    def shaped(*shape: int, dtype: torch.dtype = means.dtype) -> Tensor:
        return means.new_empty(shape, dtype=dtype)

    size, integer = (height, width), torch.int32
    spans, tiles, entries = (torch.library.get_ctx().new_dynamic_size() for _ in range(3))
    return (
        shaped(images, 3, *size), shaped(images, 1, *size), shaped(images, 1, *size),
        shaped(images, features.shape[2], *size), shaped(images if contribution else 0, 1, *size),
        shaped(images, *size), shaped(images, *size, dtype=integer),
        shaped(number, 8, dtype=torch.float64), shaped(number, 3), shaped(number, 2, dtype=integer),
        shaped(spans, 2, dtype=integer), shaped(number, dtype=integer), shaped(number, dtype=integer),
        shaped(images, dtype=torch.int64), shaped(tiles, dtype=torch.int64), shaped(entries, 2, dtype=integer),
    )  # fmt: skip


@torch.library.custom_op("gsforge::rasterize_cpu_backward", mutates_args=())
def backward_operator(
    v_rgb: Tensor | None, v_alpha: Tensor | None, v_depth: Tensor | None, v_features: Tensor | None,
    v_loss: Tensor | None, inputs: Sequence[Tensor], rgb: Tensor, saved: Sequence[Tensor],
    width: int, height: int, settings: Sequence[float], antialiased: bool, contribution: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `rasterize_operator`.

    Args:
        v_rgb: gradient of the colour image, or None where nothing depends on it; and so on.
        v_alpha: ...
        v_depth: ...
        v_features: ...
        v_loss: ...
        inputs: the tensors that were drawn.
        rgb: the colour image.
        saved: the outputs of `rasterize_operator` behind the images.
        width: as drawn.
        height: as drawn.
        settings: as drawn.
        antialiased: as drawn.
        contribution: as drawn.

    Returns:
        The gradients of the inputs, but for the target.
    """
    scene = _scene(inputs[:_DRAWN], width, height, settings, antialiased)
    kind, residuals = NO_LOSS, rgb[:0]
    if contribution and v_loss is not None:
        loss, estimate = LOSSES[contribution]
        kind = FIRST_ORDER if estimate == "first_order" else (L1 if loss == "l1" else L2)
        residuals = rgb - inputs[_TARGET]
        if loss == "l2":
            residuals = 2 * residuals
        elif kind == FIRST_ORDER:
            residuals = residuals.sign()
    rests, lasts, *splats = map(_array, saved)

    def incoming(v: Tensor | None, channels: int) -> Array:
        return _array(rgb.new_zeros(len(rgb), channels, height, width) if v is None else v.to(rgb.dtype))

    v = ImageGradients(
        rgb=incoming(v_rgb, 3),
        alpha=incoming(v_alpha, 1),
        depth=incoming(v_depth, 1),
        features=incoming(v_features, scene.features.shape[2]),
        loss=incoming(v_loss if kind != NO_LOSS else None, 1),
        residuals=_array(residuals),
        contribution=kind,
    )
    g = backward(scene, Splats(*splats), rests, lasts, v)
    v_world_to_camera, v_intrinsics = _camera_gradients(g.cameras, inputs[_POSES])
    return (
        torch.from_numpy(g.means),
        torch.from_numpy(g.quats),
        torch.from_numpy(g.scales),
        torch.from_numpy(g.opacities),
        torch.from_numpy(g.sh) if len(inputs[_COLORS]) == 0 else torch.zeros_like(inputs[4]),
        torch.from_numpy(g.colors),
        torch.from_numpy(g.features),
        v_world_to_camera,
        v_intrinsics,
        torch.from_numpy(g.backgrounds),
        torch.from_numpy(g.tokens),
    )


@backward_operator.register_fake
def _(
    v_rgb, v_alpha, v_depth, v_features, v_loss, inputs, rgb, saved, width, height, settings, antialiased, contribution
):  # fmt: skip
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs[:_TARGET])


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_INPUTS], output[0], *output[_IMAGES:])
    ctx.constants = inputs[_INPUTS:-1]


def _backward(ctx, *v):
    inputs, rgb, saved = (
        ctx.saved_tensors[:_INPUTS], ctx.saved_tensors[_INPUTS], ctx.saved_tensors[_INPUTS + 1 :]
    )  # fmt: skip
    gradients = backward_operator(*v[:_IMAGES], list(inputs), rgb, list(saved), *ctx.constants)
    return (*gradients, None, *[None] * (len(ctx.constants) + 1))


rasterize_operator.register_autograd(_backward, setup_context=_setup_context)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy()


def _scene(drawn: Sequence[Tensor], width: int, height: int, settings: Sequence[float], antialiased: bool) -> Scene:
    means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds = map(_array, drawn)
    eps2d, near, far, radius_clip, stop = settings
    poses, lenses = world_to_camera.astype(np.float64), intrinsics.astype(np.float64)
    rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
    centers = -(rotation.transpose(0, 2, 1) @ translation[..., None])[..., 0]
    cameras = np.concatenate(
        [rotation.reshape(-1, 9), translation, lenses[:, [0, 1, 0, 1], [0, 1, 2, 2]], centers], axis=1
    )
    return Scene(
        means, quats, scales, opacities, sh, colors, features, np.ascontiguousarray(cameras), backgrounds,
        width, height, RenderSettings("antialiased" if antialiased else "classic", eps2d, near, far, radius_clip, stop),
    )  # fmt: skip


def _camera_gradients(v_cameras: Array, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of pose and intrinsics; the position of a camera is -R^T t."""
    poses, real = _array(world_to_camera), _array(world_to_camera).dtype
    v_centers = v_cameras[:, 16:19]
    v_poses, v_intrinsics = np.zeros((len(poses), 4, 4), real), np.zeros((len(poses), 3, 3), real)
    v_poses[:, :3, :3] = v_cameras[:, :9].reshape(-1, 3, 3) - poses[:, :3, 3, None] * v_centers[:, None, :]
    v_poses[:, :3, 3] = v_cameras[:, 9:12] - (poses[:, :3, :3] @ v_centers[..., None])[..., 0]
    v_intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = v_cameras[:, 12:16]
    return torch.from_numpy(v_poses), torch.from_numpy(v_intrinsics)


def _check(drawn: Sequence[Tensor], width: int, height: int) -> None:
    """The check of `rasterize`, which a compiled graph leaves to the operator; indices begin with that of the scene."""
    means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds = drawn

    def unflatten(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (len(means), -1))

    def given(tensor: Tensor) -> Tensor | None:
        return None if tensor.numel() == 0 else (tensor if len(tensor) == len(means) else unflatten(tensor))

    gaussians = Gaussians(means, quats, scales, opacities, sh)
    cameras = Cameras(unflatten(world_to_camera), unflatten(intrinsics), width, height)
    check_values(
        RenderInputs(gaussians, cameras, unflatten(backgrounds), given(colors), given(features), None, RenderSettings())
    )
