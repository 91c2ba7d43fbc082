"""`gsforge export`: one object of a trained run as a .ply, .splat or .spz file."""

import argparse
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from gsforge.cli.run import RunCLI, quieten
from gsforge.core.errors import GsforgeError
from gsforge.core.reconstruction import Reconstruction
from gsforge.training.checkpoints import check_architecture
from gsforge.training.errors import ConfigError
from gsforge.training.evaluation import save_scene, scene_writer
from gsforge.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)

# The machine that exports is rarely the one that trained.
_THIS_MACHINE = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "1",
    "num_nodes": "1",
    "logger": "false",
    "callbacks": "null",
    "enable_checkpointing": "null",
    "enable_model_summary": "false",
}
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
    key, count = export_scene(options.run, options.out, options.key, options.up)
    Console(soft_wrap=True, highlight=False).print(f"{options.out}: {count} Gaussians of {key}", markup=False)
    return 0


def export_scene(
    run_dir: Path, out: Path, key: str | None = None, up: Literal["z", "y"] | None = None
) -> tuple[str, int]:
    """Reconstruct one object with the last checkpoint of a run and write it.

    Args:
        run_dir: run directory.
        out: file to write; its suffix says the format, .ply, .splat or .spz.
        key: name of an object of the prediction, test or validation set; the first one by default.
        up: up axis of the file; by default that of the format, see `scene_writer`.

    Returns:
        Name of the object, number of Gaussians written.

    Raises:
        ConfigError: for another suffix, when there is no such object, or the run's method gives no Gaussians for it.
        FileNotFoundError: when the folder is no run directory, or has no checkpoint.
    """
    scene_writer(out, up)  # before minutes are spent on the scene
    run = RunDirectory(run_dir)
    config, checkpoint = run.config(), run.require_checkpoint()
    overrides = [f"--trainer.{name}={value}" for name, value in _THIS_MACHINE.items()]
    cli = RunCLI(["--config", str(config), f"--run_dir={run.path}", *overrides], run=False)
    if cli.datamodule is None:
        raise ConfigError(f"{config} names no `data`, so there is nothing to export")
    cli.datamodule.trainer = cli.trainer
    check_architecture(cli.model, checkpoint)
    batch = _batch_with(cli.datamodule, key)
    # A list of ready batches is all that DataLoader needs of a data set.
    loader: DataLoader = DataLoader(cast(Dataset, [batch]), batch_size=None)
    output = _Output()
    cli.trainer.callbacks.append(output)  # type: ignore[attr-defined]
    cli.trainer.predict(cli.model, loader, ckpt_path=checkpoint, return_predictions=False)
    result = output.result
    if result is None or result.gaussians is None:
        raise ConfigError(f"{type(cli.model).__name__}.predict_step gave no Gaussians: export a run of a later stage")
    name = key if key is not None else result.keys[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    return name, save_scene(out, result.gaussians[result.keys.index(name)], up)


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
    parser = argparse.ArgumentParser(prog="gsforge export", description="Write one object of a run as a file.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .ply, .splat or .spz")
    parser.add_argument("--key", help="name of the object; the first one of the prediction set by default")
    parser.add_argument(
        "--up", choices=("z", "y"), help="up axis of the file; z by default, .spz files are always y up"
    )
    return parser
