"""Pictures of what a method reconstructs, during validation."""

import re
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from gsforge.core.files import atomic_file
from gsforge.core.reconstruction import RENDER, TRUTH, Reconstruction
from gsforge.render.turntable import draw_turntable
from gsforge.render.types import RenderSettings
from gsforge.training.checkpoints import step_of
from gsforge.training.run_directory import RunDirectory
from gsforge.training.safe_loggers import SafeTensorBoardLogger

_COMPARED = (TRUTH, RENDER)
_SIZE, _MILLISECONDS = 128, 120


class ValidationPictures(Callback):
    """Writes and logs the pictures of the first few validation samples.

    Files go to `validation/step_<n>/<key>.<picture>.png`, and the Gaussians, turning once, to `<key>.turntable.gif`.
    TensorBoard and W&B get ground truth above render as one picture, each further picture by its name, and the
    turntable.

    Args:
        samples: how many samples; the same ones at every validation.
        turntable: frames of a turntable; 0: none.
    """

    def __init__(self, samples: int = 4, turntable: NonNegativeInt = 16):
        self.samples, self.turntable = samples, turntable
        self._seen = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count samples."""
        self._seen = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the samples of this batch that are still wanted."""
        if not isinstance(outputs, Reconstruction) or trainer.sanity_checking or not trainer.is_global_zero:
            return
        wanted = min(len(outputs.keys), self.samples - self._seen)
        for index in range(wanted):
            try:
                self._show(trainer, getattr(pl_module, "render", None) or RenderSettings(), outputs, index)
            except OSError as error:  # a full disk ends a run when it has to be saved, not for a picture
                rank_zero_warn(f"{outputs.keys[index]} is not shown: {error}")
        self._seen += max(wanted, 0)

    def _show(self, trainer: Trainer, settings: RenderSettings, outputs: Reconstruction, index: int) -> None:
        step, key = step_of(trainer), outputs.keys[index]
        folder = RunDirectory(trainer.default_root_dir).validation / f"step_{step}"
        strips = {name: picture_strip(images[index]) for name, images in outputs.images.items()}
        write_strips(folder, key, strips)
        turning = folder / f"{key}.turntable.gif"
        if outputs.gaussians is not None and self.turntable:
            write_turntable(turning, draw_turntable(outputs.gaussians[index], self.turntable, _SIZE, settings))
        for logger in trainer.loggers:
            if not isinstance(logger, SafeTensorBoardLogger | WandbLogger):
                continue
            for name, picture in _compared(strips).items():
                logger.log_image(f"validation/{key}/{name}", [to_pil_image(picture)], step=step)
            if turning.exists():
                logger.log_video(f"validation/{key}/turntable", [str(turning)], step=step)


def picture_strip(views: Tensor) -> Tensor:
    """Put the views of one object side by side.

    Args:
        views: [V, 3, H, W] in [0, 1].

    Returns:
        [3, H, V * W] on the CPU, float32 in [0, 1].
    """
    return torch.cat(list(views.detach().float().cpu()), dim=-1).clamp(0, 1)


def write_strips(folder: Path, key: str, strips: dict[str, Tensor]) -> None:
    """Write pictures as `<key>.<name>.png`, spaces in the name as underscores.

    Args:
        folder: folder to write to, created if needed.
        key: name of the object.
        strips: picture name -> [3, H, W] in [0, 1].

    Raises:
        ValueError: when a key or name cannot be a file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, strip in strips.items():
        to_pil_image(strip).save(folder / f"{file_name(key)}.{file_name(name.replace(' ', '_'))}.png")


def write_turntable(path: Path, frames: Tensor) -> None:
    """Write frames as an animated GIF file that turns for ever.

    Args:
        path: the file.
        frames: [N, 3, H, W] in [0, 1].
    """
    first, *others = [to_pil_image(frame) for frame in frames.cpu()]
    with atomic_file(path) as stream:
        first.save(stream, "GIF", save_all=True, append_images=others, duration=_MILLISECONDS, loop=0)


def file_name(key: str) -> str:
    """The key itself, checked to be a plain file name.

    Args:
        key: name of a sample or picture.

    Returns:
        The key.

    Raises:
        ValueError: when it could name a file in another folder.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", key):
        raise ValueError(
            f"{key!r} cannot be a file name: expected letters, digits and _ . + -, not starting with a dot"
        )
    return key


def _compared(strips: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name in strips for name in _COMPARED):
        return strips
    rest = {name: strip for name, strip in strips.items() if name not in _COMPARED}
    return {"ground truth and render": torch.cat([strips[name] for name in _COMPARED], dim=-2), **rest}
