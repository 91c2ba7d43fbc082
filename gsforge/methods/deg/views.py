"""The views of a batch of objects that are drawn and compared."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.random import random_of, uniform_like

Batch = dict[str, Any]


@dataclass(frozen=True)
class Views:
    """V views of each of B objects, and what they should show.

    Attributes:
        cameras: V for each object.
        backgrounds: [B, V, 3].
        target: [B, V, 3, H, W] the true images over these backgrounds.
    """

    cameras: Cameras
    backgrounds: Tensor
    target: Tensor

    def clone(self) -> "Views":
        """Copy everything.

        Returns:
            Views that share no memory with these.
        """
        return Views(self.cameras.map(Tensor.clone), self.backgrounds.clone(), self.target.clone())


def views_of(batch: Batch, which: slice, random_backgrounds: bool = False) -> Views:
    """Take views of a batch, over black, or each over black or white at random.

    Args:
        batch: images [B, V, 3, H, W] in straight colour, alphas [B, V, 1, H, W], and cameras.
        which: of the V views.
        random_backgrounds: whether to draw the backgrounds, from the streams of the objects where they have them.

    Returns:
        The views.
    """
    images, alphas = batch["images"][:, which], batch["alphas"][:, which]
    shape, device = images.shape[:2], images.device
    white = images.new_zeros(*shape, 1)
    if random_backgrounds:
        white = uniform_like(white, random_of(batch, device)).round()
    backgrounds = white.expand(*shape, 3)
    target = images * alphas + (1 - alphas) * backgrounds[..., None, None]
    return Views(cameras_of(batch, which), backgrounds, target)


def cameras_of(batch: Batch, which: slice) -> Cameras:
    """Cameras of some of the views of a batch.

    Args:
        batch: with images, world_to_camera [B, V, 4, 4] and intrinsics [B, V, 3, 3].
        which: of the V views.

    Returns:
        The cameras, batch shape [B].
    """
    height, width = batch["images"].shape[-2:]
    return Cameras(batch["world_to_camera"][:, which], batch["intrinsics"][:, which], width, height)
