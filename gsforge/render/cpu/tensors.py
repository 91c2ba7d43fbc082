"""Between the tensors of torch and the arrays of the passes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.checks import check_values
from gsforge.render.cpu.arrays import Array, ImageGradients, Scene, Splats
from gsforge.render.cpu.differentiate import FIRST_ORDER, L1, L2, NO_LOSS
from gsforge.render.cpu.geometry import CAMERA_COLUMNS, CENTER, FX, ROTATION, TRANSLATION
from gsforge.render.cpu.passes import backward, forward
from gsforge.render.cpu.warm import warm_up
from gsforge.render.types import Contribution, Estimate, PixelLoss, RenderInputs, RenderSettings

# By number, as an operator takes no names; 0 is no contribution.
LOSSES: dict[int, tuple[PixelLoss, Estimate]] = {
    1: ("l1", "exact"), 2: ("l2", "exact"), 3: ("l1", "first_order"), 4: ("l2", "first_order")
}  # fmt: skip


def draw(
    tensors: Sequence[Tensor], width: int, height: int, settings: Sequence[float], antialiased: bool, contribution: int,
    checked: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Draw.

    Args:
        tensors: the tensors that `rasterize_operator` takes, in their order; and so on.
        width: px.
        height: px.
        settings: eps2d, near, far, radius_clip and transmittance_stop.
        antialiased: whether opacities are compensated.
        contribution: see `LOSSES`.
        checked: whether the values have been checked.

    Returns:
        What `rasterize_operator` returns.
    """
    *drawn, tokens, target = tensors
    if not checked:
        _check(drawn, tokens, target if contribution else None, width, height)
    warm_up(str(tokens.dtype).removeprefix("torch."))
    images, splats = forward(_scene(drawn, width, height, settings, antialiased))
    rgb = torch.from_numpy(images.rgb)
    if contribution == 0:
        loss = rgb.new_empty(0, 1, height, width)
    else:
        residual = rgb - target
        per_channel = residual.abs_() if LOSSES[contribution][0] == "l1" else residual.square_()
        loss = per_channel.sum(1, keepdim=True)
    saved = (
        images.rests, images.lasts, splats.table, splats.colors, splats.places, splats.spans, splats.counts,
        splats.order, splats.visible, splats.tile_starts, splats.entries,
    )  # fmt: skip
    others = map(torch.from_numpy, (images.alpha, images.depth, images.features))
    return (rgb, *others, loss, *map(torch.from_numpy, saved))


def differentiate(
    v_images: Sequence[Tensor | None], tensors: Sequence[Tensor], rgb: Tensor, saved: Sequence[Tensor], width: int,
    height: int, settings: Sequence[float], antialiased: bool, contribution: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of `draw`.

    Args:
        v_images: gradients of colours, alpha, depth, features and loss, or None where nothing depends on them.
        tensors: as drawn.
        rgb: the colour image.
        saved: what `draw` returned behind the images.
        width: as drawn.
        height: as drawn.
        settings: as drawn.
        antialiased: as drawn.
        contribution: as drawn.

    Returns:
        The gradients of `tensors`, but for the target.
    """
    *drawn, _, target = tensors
    scene = _scene(drawn, width, height, settings, antialiased)
    v_rgb, v_alpha, v_depth, v_features, v_loss = v_images
    kind, residuals = NO_LOSS, rgb[:0]
    if contribution and v_loss is not None:
        loss, estimate = LOSSES[contribution]
        kind = FIRST_ORDER if estimate == "first_order" else (L1 if loss == "l1" else L2)
        residuals = rgb - target
        if loss == "l2":
            residuals *= 2
        elif kind == FIRST_ORDER:
            residuals.sign_()
    rests, lasts, *splats = map(_array, saved)

    def incoming(v: Tensor | None) -> Array:
        return _array(rgb.new_empty(len(rgb), 0, height, width) if v is None else v.to(rgb.dtype))

    v = ImageGradients(
        rgb=incoming(v_rgb),
        alpha=incoming(v_alpha),
        depth=incoming(v_depth),
        features=incoming(v_features),
        loss=incoming(v_loss if kind != NO_LOSS else None),
        residuals=_array(residuals),
        contribution=kind,
    )
    g = backward(scene, Splats(*splats), rests, lasts, v)
    v_poses, v_intrinsics = _camera_gradients(g.cameras, drawn[7])
    arrays = (
        g.means, g.quats, g.scales, g.opacities, g.sh, g.colors, g.features, v_poses, v_intrinsics, g.backgrounds,
        g.tokens,
    )  # fmt: skip
    return tuple(map(torch.from_numpy, arrays))


def _array(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy()


def _scene(drawn: Sequence[Tensor], width: int, height: int, settings: Sequence[float], antialiased: bool) -> Scene:
    means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds = map(_array, drawn)
    cameras = np.empty((len(world_to_camera), CAMERA_COLUMNS))
    rotation, translation = world_to_camera[:, :3, :3].astype(np.float64), world_to_camera[:, :3, 3]
    cameras[:, ROTATION:TRANSLATION] = rotation.reshape(-1, 9)
    cameras[:, TRANSLATION:FX] = translation
    cameras[:, FX:CENTER] = intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    cameras[:, CENTER:] = -(rotation * translation[:, :, None]).sum(1)
    eps2d, near, far, radius_clip, stop = settings
    return Scene(
        means, quats, scales, opacities, sh, colors, features, cameras, backgrounds, width, height,
        RenderSettings("antialiased" if antialiased else "classic", eps2d, near, far, radius_clip, stop),
    )  # fmt: skip


def _camera_gradients(v_cameras: Array, world_to_camera: Tensor) -> tuple[Array, Array]:
    """Gradients of pose and intrinsics; the position of a camera is -R^T t."""
    poses = _array(world_to_camera)
    v_centers = v_cameras[:, CENTER:]
    v_poses, v_intrinsics = np.zeros((len(poses), 4, 4), poses.dtype), np.zeros((len(poses), 3, 3), poses.dtype)
    v_rotation = v_cameras[:, ROTATION:TRANSLATION].reshape(-1, 3, 3)
    v_poses[:, :3, :3] = v_rotation - poses[:, :3, 3, None] * v_centers[:, None, :]
    v_poses[:, :3, 3] = v_cameras[:, TRANSLATION:FX] - (poses[:, :3, :3] * v_centers[:, None, :]).sum(2)
    v_intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = v_cameras[:, FX:CENTER]
    return v_poses, v_intrinsics


def _check(drawn: Sequence[Tensor], tokens: Tensor, target: Tensor | None, width: int, height: int) -> None:
    """The check of `rasterize`, which a compiled graph leaves to the operator; indices begin with that of the scene."""
    means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds = drawn

    def unflatten(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (len(means), -1))

    def given(tensor: Tensor) -> Tensor | None:
        return None if tensor.numel() == 0 else (tensor if len(tensor) == len(means) else unflatten(tensor))

    gaussians = Gaussians(means, quats, scales, opacities, sh)
    cameras = Cameras(unflatten(world_to_camera), unflatten(intrinsics), width, height)
    contribution = None if target is None else Contribution(unflatten(target), tokens)
    check_values(
        RenderInputs(
            gaussians, cameras, unflatten(backgrounds), given(colors), given(features), contribution, RenderSettings()
        )
    )
