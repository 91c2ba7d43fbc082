"""Keeps the configuration of every attempt, and shows what changed since the one before."""

import contextlib
import difflib
import json
import re

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.syntax import Syntax

from gsforge.core.files import write_text
from gsforge.training.provenance import provenance
from gsforge.training.run_directory import RunDirectory
from gsforge.training.safe_loggers import SafeTensorBoardLogger, SafeWandbLogger

# Options of one command rather than of the run.
_COMMAND_OPTIONS = ("ckpt_path", "weights_only", "verbose", "return_predictions", "config")

_SCHEDULE_NOTE = (
    "A run that continues takes its learning rates and schedule from the checkpoint. For others, start a new run_dir "
    "with init_from."
)


class RunConfig(Callback):
    """Writes `config.yaml`, and `config.<attempt>.yaml` with a printed difference when it changed.

    `attempts.jsonl` gets a line for each attempt: where and when it ran, and with which code. TensorBoard and W&B get
    both.

    Args:
        run: the run's directory.
        text: configuration of this attempt, from `run_config_text`.
        attempt: number of this attempt.
    """

    def __init__(self, run: RunDirectory, text: str, attempt: int):
        self.run = run
        self.text = text
        self.attempt = attempt

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration of a training run."""
        if stage != "fit" or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        known = self.run.configs()
        if not known:
            self.run.path.mkdir(parents=True, exist_ok=True)
            write_text(self.run.path / "config.yaml", self.text)
        elif difference := config_difference(self.run.config().read_text(encoding="utf-8"), self.text):
            console = Console(stderr=True)
            console.print(f"the configuration changed since {self.run.config().name}:", highlight=False)
            console.print(Syntax(difference, "diff", background_color="default"))
            if self.run.last_checkpoint() and re.search(r"optimizer|lr_scheduler", difference):
                console.print(_SCHEDULE_NOTE, highlight=False)
            write_text(self.run.path / f"config.{self.attempt}.yaml", self.text)
        origin = {"attempt": self.attempt, **provenance(), "ranks": trainer.world_size}
        with contextlib.suppress(OSError), self.run.attempts.open("a", encoding="utf-8") as file:
            file.write(json.dumps(origin) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, SafeTensorBoardLogger | SafeWandbLogger):
                logger.log_config({**yaml.safe_load(self.text), "attempt": origin})


def run_config_text(dumped: str) -> str:
    """YAML of a run without the options that belong to one command.

    Args:
        dumped: configuration as the command line's parser dumps it.

    Returns:
        YAML that `fit`, `validate`, `test`, `predict` and `export` all accept.
    """
    config = yaml.safe_load(dumped)
    kept = {key: value for key, value in config.items() if key not in _COMMAND_OPTIONS}
    return yaml.safe_dump(kept, sort_keys=False, width=120)


def config_difference(old: str, new: str) -> str:
    """Changed lines of two YAML configurations, each under its full key; empty when both say the same.

    Args:
        old: YAML text of the earlier configuration.
        new: YAML text of the later one.

    Returns:
        Lines `-key: value` and `+key: value`, sorted by key.
    """
    before, after = (
        [f"{key}: {value}" for key, value in sorted(_flat(yaml.safe_load(text)).items())] for text in (old, new)
    )
    changes = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join(line for line in changes if not line.startswith(("---", "+++", "@@")))


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = dict(enumerate(value)).items()
    else:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
