"""The passes as operators of torch: they work under autograd, torch.compile, inference mode and in other threads.

Twice the same: `rasterize_operator` is what torch.compile puts into its graphs; `Rasterize` is what runs otherwise, as
the dispatcher takes longer than the drawing of a thousand Gaussians and knows nothing of torch.func.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsforge.render.cpu.tensors import differentiate, draw
from gsforge.render.cpu.tiles import LANES, TILE_HEIGHT, TILE_WIDTH

_INPUTS, _IMAGES = 12, 5  # tensors in, images out; the rest of the outputs is for the reverse pass


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
        contribution: 0 for none, else loss and estimate, see `tensors.LOSSES`.
        checked: whether the values have been checked.

    Returns:
        rgb, alpha, depth and features as [I, channels, H, W], the loss [I, 1, H, W], and what the reverse pass needs.
    """
    tensors = (
        means, quats, scales, opacities, sh, colors, features, world_to_camera, intrinsics, backgrounds, tokens, target
    )  # fmt: skip
    return draw(tensors, width, height, settings, antialiased, contribution, checked)  # type: ignore[return-value]


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
    all_tiles = images * -(-height // TILE_HEIGHT) * -(-width // TILE_WIDTH)
    return (
        shaped(images, 3, *size), shaped(images, 1, *size), shaped(images, 1, *size),
        shaped(images, features.shape[2], *size), shaped(images if contribution else 0, 1, *size),
        shaped(all_tiles, LANES), shaped(all_tiles, LANES),
        shaped(number, 8, dtype=torch.float64), shaped(number, 3), shaped(number, 4, dtype=integer),
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
        v_rgb: gradient of the colour image, or None where nothing depends on it.
        v_alpha: of alpha.
        v_depth: of the depth.
        v_features: of the features.
        v_loss: of the loss.
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
    v = (v_rgb, v_alpha, v_depth, v_features, v_loss)
    gradients = differentiate(v, inputs, rgb, saved, width, height, settings, antialiased, contribution)
    return gradients  # type: ignore[return-value]


@backward_operator.register_fake
def _(
    v_rgb, v_alpha, v_depth, v_features, v_loss, inputs, rgb, saved, width, height, settings, antialiased, contribution
):  # fmt: skip
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs[:-1])


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


class Rasterize(torch.autograd.Function):
    """`rasterize_operator` without the dispatcher of torch."""

    @staticmethod
    def forward(*arguments):
        """As `rasterize_operator`."""
        return draw(arguments[:_INPUTS], *arguments[_INPUTS:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep what the reverse pass needs."""
        _setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[_IMAGES:])

    @staticmethod
    @once_differentiable
    def backward(ctx, *v):
        """The gradients of the tensors; by the operator, which unwraps those of torch.func."""
        return _backward(ctx, *v)
