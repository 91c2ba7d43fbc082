"""`gsforge export`: one object of a trained run as a .ply, .splat or .spz file, or its weights."""

import argparse
import difflib
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from gsforge.cli.run import quieten, set_budget
from gsforge.cli.trained import open_run
from gsforge.core.errors import GsforgeError
from gsforge.core.reconstruction import Reconstruction
from gsforge.core.weights import CARD, WEIGHTS, save_tensors, save_weights
from gsforge.training.errors import ConfigError
from gsforge.training.evaluation import save_scene, scene_writer

_log = logging.getLogger(__name__)

_TRAINING_ONLY = ("optimizer", "lr_scheduler")
_SPLITS = (("predict", "predict_dataloader"), ("test", "test_dataloader"), ("validate", "val_dataloader"))


def main(argv: Sequence[str]) -> int:
    """Run `gsforge export`.

    Args:
        argv: arguments after `gsforge export`.

    Returns:
        Exit code 0.
    """
    options = _parser().parse_args(argv)
    quieten()
    console = Console(soft_wrap=True, highlight=False)
    if options.weights is not None:
        for path in export_weights(options.run, options.weights, options.layout):
            console.print(f"written: {path}", markup=False)
        return 0
    key, count = export_scene(options.run, options.out, options.key, options.up, options.gaussians)
    console.print(f"{options.out}: {count} Gaussians of {key}", markup=False)
    return 0


def export_scene(
    run_dir: Path, out: Path, key: str | None = None, up: Literal["z", "y"] | None = None, gaussians: str | None = None
) -> tuple[str, int]:
    """Reconstruct one object with the last checkpoint of a run and write it.

    Args:
        run_dir: run directory.
        out: file to write; its suffix says the format, .ply, .splat or .spz.
        key: name of an object of the prediction, test or validation set; the first one by default.
        up: up axis of the file; by default that of the format, see `scene_writer`.
        gaussians: how many, see `set_budget`; the run's own number by default.

    Returns:
        Name of the object, number of Gaussians written.

    Raises:
        ConfigError: for another suffix, when there is no such object, or the run's method gives no Gaussians for it.
        FileNotFoundError: when the folder is no run directory, or has no checkpoint.
    """
    scene_writer(out, up)  # before minutes are spent on the scene
    run = open_run(run_dir)
    if run.data is None:
        raise ConfigError(f"{run.config} names no `data`, so there is nothing to export")
    if gaussians is not None:
        set_budget(run.model, gaussians)
    run.data.trainer = run.trainer
    batch = _batch_with(run.data, key)
    # A list of ready batches is all that DataLoader needs of a data set.
    loader: DataLoader = DataLoader(cast(Dataset, [batch]), batch_size=None)
    output = _Output()
    run.trainer.callbacks.append(output)  # type: ignore[attr-defined]
    run.trainer.predict(run.model, loader, return_predictions=False)
    result = output.result
    if result is None or result.gaussians is None:
        raise ConfigError(f"{type(run.model).__name__}.predict_step gave no Gaussians: export a run of a later stage")
    name = key if key is not None else result.keys[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    return name, save_scene(out, result.gaussians[result.keys.index(name)], up)


def export_weights(run_dir: Path, folder: Path, layout: Literal["gsforge", "released"] = "gsforge") -> list[Path]:
    """Write the weights of a run's last checkpoint, to use them elsewhere.

    Args:
        run_dir: run directory.
        folder: to write to, made if it is not there.
        layout: `gsforge`, all weights with a card of what they are; `released`, the files that were released with the
            method's paper, in half precision.

    Returns:
        The files.

    Raises:
        ConfigError: when nothing was released that the run's method could write.
        FileNotFoundError: when the folder is no run directory, or has no checkpoint.
    """
    run = open_run(run_dir, device="cpu")
    if layout == "released":
        if not callable(released := getattr(run.model, "released_files", None)):
            raise ConfigError(f"--layout released: {type(run.model).__name__} has no released layout")
        folder.mkdir(parents=True, exist_ok=True)
        files = released()
        for name, tensors in files.items():
            save_tensors(folder / name, {key: tensor.half() for key, tensor in tensors.items()})
        return [folder / name for name in files]
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))["model"]
    card = {
        "class": config["class_path"],
        "options": {key: value for key, value in config["init_args"].items() if key not in _TRAINING_ONLY},
        "step": run.step,
        "parameters": sum(tensor.numel() for tensor in run.model.state_dict().values()),
        "gsforge": version("gsforge"),
    }
    save_weights(folder, run.model.state_dict(), card)
    return [folder / WEIGHTS, folder / CARD]


class _Output(Callback):
    """Keeps the output of the one batch; Lightning's own list of predictions takes no frozen dataclass."""

    result: Reconstruction | None = None

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.result = outputs if isinstance(outputs, Reconstruction) else None


def _batch_with(datamodule: LightningDataModule, key: str | None) -> dict[str, Any]:
    found: list[str] = []
    for batch in _batches(datamodule):
        if key is None or key in batch["key"]:
            return batch
        found.extend(batch["key"])
    close = difflib.get_close_matches(key or "", found, n=3)
    known = f"closest: {close}" if close else f"they have {found[:10]}"
    raise ConfigError(f"no object {key!r} in the run's sets; {known}")


def _batches(datamodule: LightningDataModule) -> Iterator[dict[str, Any]]:
    """Batches of all sets but those that are absent: a run may have none to test on, or have left it elsewhere."""
    datamodule.prepare_data()
    problems: dict[str, str] = {}
    offered = [(stage, loader) for stage, loader in _SPLITS if is_overridden(loader, datamodule, LightningDataModule)]
    for stage, loader in offered:
        try:
            datamodule.setup(stage)
        except GsforgeError as error:
            problems[stage] = str(error)
            _log.info("no set to %s: %s", stage, error)
            continue
        yield from getattr(datamodule, loader)()
    if len(problems) == len(offered):
        raise ConfigError(f"none of the run's sets can be read: {'; '.join(dict.fromkeys(problems.values()))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsforge export", description="Write one object of a run as a file, or the run's weights as a folder."
    )
    parser.add_argument("run", type=Path, help="run directory")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path, help="file of one object to write, .ply, .splat or .spz")
    wanted.add_argument("--weights", type=Path, help="folder to write the weights to, as .safetensors with a card")
    parser.add_argument("--key", help="name of the object; the first one of the prediction set by default")
    parser.add_argument(
        "--up", choices=("z", "y"), help="up axis of the file; z by default, .spz files are always y up"
    )
    parser.add_argument("--gaussians", help="how many, e.g. 65k, where the method has a choice")
    parser.add_argument(
        "--layout", choices=("gsforge", "released"), default="gsforge",
        help="of the weights: all with a card, or the files released with the paper (%(default)s)",
    )  # fmt: skip
    return parser
