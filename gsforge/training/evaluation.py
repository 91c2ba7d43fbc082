"""Writes what `gsforge test` and `gsforge predict` produce: metrics, pictures, Gaussians."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from gsforge.core.files import write_text
from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import save_ply
from gsforge.core.reconstruction import BASELINE, Reconstruction
from gsforge.core.splat import save_splat
from gsforge.core.spz import save_spz
from gsforge.training.checkpoints import step_of
from gsforge.training.errors import ConfigError
from gsforge.training.media import file_name, picture_strip, write_strips
from gsforge.training.run_directory import RunDirectory


class ResultWriter(Callback):
    """Writes `test/metrics.json`, a .ply and pictures per test object, and `predict/<key>.ply`.

    Args:
        up: up axis of the .ply files, `z` as inside gsforge or `y` for most viewers.
    """

    def __init__(self, up: Literal["z", "y"] = "z"):
        self.up = up
        self._objects: dict[str, dict[str, float]] = {}
        self._started = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._objects = {}
        self._started = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the metrics of a batch, write its pictures and Gaussians."""
        result = _reconstruction(outputs, pl_module, "test_step")
        folder = RunDirectory(trainer.default_root_dir).test
        write_gaussians(result, folder, self.up)
        for index, key in enumerate(result.keys):
            self._objects[key] = {name: float(values[index]) for name, values in result.metrics.items()}
            write_strips(folder, key, {name: picture_strip(views[index]) for name, views in result.images.items()})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of all ranks and show their means."""
        objects = _gathered(trainer, self._objects)
        if not trainer.is_global_zero:
            return
        # A method may also measure the set as a whole, and say what it could not measure.
        means = mean_metrics(objects) | getattr(pl_module, "set_metrics", {})
        unavailable: dict[str, str] = getattr(pl_module, "unavailable_metrics", {})
        summary = {
            "checkpoint": str(trainer.ckpt_path),
            "step": step_of(trainer),
            "objects": objects,
            "mean": means,
            "unavailable": unavailable,
            "seconds": time.perf_counter() - self._started,
        }
        path = RunDirectory(trainer.default_root_dir).test / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(summary, indent=2) + "\n")
        console = Console()
        console.print(metrics_table(means, len(objects)))
        for name, reason in unavailable.items():
            console.print(f"{name}: not available. {reason}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the Gaussians of a batch."""
        result = _reconstruction(outputs, pl_module, "predict_step")
        write_gaussians(result, RunDirectory(trainer.default_root_dir).predict, self.up)


def write_gaussians(result: Reconstruction, folder: Path, up: Literal["z", "y"]) -> list[Path]:
    """Write one .ply per object.

    Args:
        result: reconstruction; without Gaussians nothing is written.
        folder: folder to write to, created if needed.
        up: up axis of the files, `z` or `y`.

    Returns:
        The files.
    """
    if result.gaussians is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{file_name(key)}.ply" for key in result.keys]
    for index, path in enumerate(paths):
        save_scene(path, result.gaussians[index], up)
    return paths


def save_scene(path: Path, scene: Gaussians, up: Literal["z", "y"] | None) -> int:
    """Write the visible Gaussians of one scene of a batch.

    Args:
        path: file to write; its suffix says the format.
        scene: one scene; batches pad their smaller scenes with Gaussians of zero opacity, which are left out.
        up: up axis of the file, see `scene_writer`.

    Returns:
        Number of Gaussians written.

    Raises:
        ConfigError: for a suffix or an up axis that cannot be written.
    """
    write = scene_writer(path, up)
    visible = scene.opacities > 0
    written = scene.map(lambda tensor: tensor.detach()[visible].cpu())
    write(path, written)
    return written.count


def scene_writer(path: Path, up: Literal["z", "y"] | None) -> Callable[[Path, Gaussians], None]:
    """Find what writes a file, by its suffix.

    Args:
        path: a .ply, .splat or .spz file.
        up: up axis of the file; by default that of the format: y for .spz, which has no other, z for .ply and .splat.

    Returns:
        Function of the file and one scene.

    Raises:
        ConfigError: for another suffix, or a .spz file with z up.
    """
    suffix = path.suffix.lower()
    if suffix == ".ply":
        return partial(save_ply, up=up or "z")
    if suffix == ".splat":
        return partial(save_splat, up=up or "z")
    if suffix != ".spz":
        raise ConfigError(f"{path}: expected a file that ends in .ply, .splat or .spz, got {suffix or 'no suffix'!r}")
    if up == "z":
        raise ConfigError(f"{path}: a .spz file has y up; leave out --up z, or write a .ply or .splat file")
    return save_spz


def mean_metrics(objects: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over the objects of every metric.

    Args:
        objects: object -> metric -> value; an object may lack a metric.

    Returns:
        Metric -> mean over the objects that have it.
    """
    names = sorted({name for metrics in objects.values() for name in metrics})
    values = {name: [metrics[name] for metrics in objects.values() if name in metrics] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def metrics_table(means: dict[str, float], objects: int) -> Table:
    """Show mean metrics, the model beside its baseline.

    Args:
        means: metric -> mean.
        objects: number of objects, for the title.

    Returns:
        A table with one row per metric.
    """
    table = Table(title=f"mean over {objects} objects")
    table.add_column("metric")
    table.add_column("model", justify="right")
    table.add_column("baseline", justify="right")
    for name, value in means.items():
        if not name.endswith(BASELINE):
            baseline = means.get(name + BASELINE)
            table.add_row(name, f"{value:.4f}", "" if baseline is None else f"{baseline:.4f}")
    return table


def _reconstruction(outputs: Any, pl_module: LightningModule, step: str) -> Reconstruction:
    if not isinstance(outputs, Reconstruction):
        raise ConfigError(
            f"{type(pl_module).__name__}.{step} returned {type(outputs).__name__}, expected a "
            "gsforge.core.reconstruction.Reconstruction"
        )
    return outputs


def _gathered(trainer: Trainer, objects: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    if trainer.world_size == 1:
        return objects
    parts: list[dict[str, dict[str, float]]] = [{} for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, objects)
    return {key: metrics for part in parts for key, metrics in part.items()}
