"""`gsforge predict --image`: objects from pictures, with a trained run and no data set."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from torch import Tensor

from gsforge.cli.run import quieten, set_budget
from gsforge.cli.trained import open_run
from gsforge.core.files import atomic_file, write_text
from gsforge.render import RenderSettings
from gsforge.training.errors import ConfigError
from gsforge.training.evaluation import save_scene
from gsforge.viewer.generated import GeneratedObject, generated_page
from gsforge.viewer.pictures import turntable_frames

_log = logging.getLogger(__name__)

_FRAMES, _SIZE, _MILLISECONDS = 36, 320, 80  # of the turning pictures


def main(argv: Sequence[str]) -> int:
    """Run `gsforge predict --image`.

    Args:
        argv: arguments after `gsforge predict`.

    Returns:
        Exit code 0.
    """
    options = _parser().parse_args(argv)
    quieten()
    generate(options.image, options.ckpt, options.out, options.gaussians, options.seed, options.up)
    Console(soft_wrap=True, highlight=False).print(f"written: {options.out / 'report.html'}", markup=False)
    return 0


def generate(
    images: Sequence[Path],
    run_dir: Path,
    out: Path,
    gaussians: str | None = None,
    seed: int = 0,
    up: Literal["z", "y"] = "z",
) -> None:
    """Write `<name>.ply`, a turning picture `<name>.webp` and `report.html` of the objects in some pictures.

    Args:
        images: picture files with an alpha channel, one object in each.
        run_dir: run directory of a model that generates from images.
        out: folder to write to, made if it is not there.
        gaussians: how many for each object, see `set_budget`; the run's own number by default.
        seed: of the random numbers; each picture begins with it.
        up: up axis of the .ply files, `z` or `y`.

    Raises:
        ConfigError: if the run's model cannot generate from an image, or a picture is not one of a cut-out object.
        FileNotFoundError: if a picture, the run or its checkpoint is not there.
    """
    pictures = {path: read_cutout(path) for path in images}  # before minutes are spent on the model
    if len({path.stem for path in images}) < len(images):
        raise ConfigError("--image: two pictures have the same name, and so would their results; rename one")
    run = open_run(run_dir)
    if not callable(generate_from := getattr(run.model, "generate", None)):
        raise ConfigError(f"{run_dir} trained {type(run.model).__name__}, which does not generate objects from images")
    if gaussians is not None:
        set_budget(run.model, gaussians)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for path, picture in pictures.items():
        torch.manual_seed(seed)
        with torch.inference_mode(), run.trainer.precision_plugin.predict_step_context():
            scene, seen = generate_from(picture.to(run.device))
        ply = out / f"{path.stem}.ply"
        count = save_scene(ply, scene, up)
        frames = turntable_frames(scene, _FRAMES, _SIZE, getattr(run.model, "render", None) or RenderSettings())
        _save_turning(out / f"{path.stem}.webp", frames)
        made.append(GeneratedObject(path.stem, seen.cpu(), frames, count))
        _log.info("%s: %d Gaussians", ply, count)
    write_text(out / "report.html", generated_page(made, run_dir))


def _save_turning(path: Path, frames: list[Image.Image]) -> None:
    with atomic_file(path) as stream:
        frames[0].save(
            stream, "WEBP", save_all=True, append_images=frames[1:], duration=_MILLISECONDS, loop=0, quality=85
        )


def read_cutout(path: Path) -> Tensor:
    """Read a picture of an object that is cut out of its background.

    Args:
        path: picture file with an alpha channel.

    Returns:
        [4, H, W] straight sRGB and alpha in [0, 1].

    Raises:
        FileNotFoundError: if it is not there.
        ConfigError: if it is no picture, has no alpha channel, or the alpha says nothing of the object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--image: there is no file {path}")
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA") if opened.has_transparency_data else None
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"--image {path} is not a complete picture: {error}") from error
    advice = "cut the object out and save it as PNG with a transparent background"
    if image is None:
        raise ConfigError(f"--image {path} has no alpha channel, so what is the object is not known: {advice}")
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    if not (pixels[3] < 1).any():
        raise ConfigError(f"--image {path} is opaque everywhere, so what is the object is not known: {advice}")
    if not (pixels[3] > 0).any():
        raise ConfigError(f"--image {path} is transparent everywhere: there is no object")
    return pixels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsforge predict", description="Generate objects from pictures that show one cut-out object each."
    )
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="pictures with an alpha channel")
    parser.add_argument("--ckpt", type=Path, required=True, metavar="RUN", help="run directory of the trained model")
    parser.add_argument("--out", type=Path, required=True, help="folder for .ply files, turning pictures and report")
    parser.add_argument("--gaussians", help="how many for each object, e.g. 65k; the run's own number by default")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (%(default)s)")
    parser.add_argument("--up", choices=("z", "y"), default="z", help="up axis of the .ply files (%(default)s)")
    return parser
