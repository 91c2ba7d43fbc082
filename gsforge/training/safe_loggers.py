"""Loggers that cannot end a run, and of which a killed run loses nothing that it will not log again."""

import contextlib
import csv
import functools
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torchvision.transforms.functional import pil_to_tensor

from gsforge.core.files import write_text

_log = logging.getLogger(__name__)
LoggerClass = TypeVar("LoggerClass", bound=type[Logger])
_LOGGING = ("log_metrics", "log_hyperparams", "log_config", "log_graph", "log_image", "log_video", "log_table")
_ROWS_PER_STEP = 100  # W&B's; more than are ever logged at one step
_SETTINGS = {"init_timeout": 30.0, "finish_timeout": 60.0, "x_transaction_log_flush_interval": 1.0}
_REST_SECONDS = 60.0


def _unfailing(cls: LoggerClass) -> LoggerClass:
    """Let the methods of a logger tell their errors, each once, instead of raising them."""
    for name in (*_LOGGING, "save", "finalize"):
        if hasattr(cls, name):
            setattr(cls, name, _tells_errors(getattr(cls, name)))
    return cls


def _tells_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def unfailing(logger: Any, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() < getattr(logger, "rests_until", 0.0):
            return None
        try:
            return method(logger, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  # whatever a library of others raises is no reason to lose a run
            _tell(logger, f"{method.__name__} failed, training goes on without it: {_first_line(error)}")
            logger.recover()

    return unfailing


def _tell(logger: Logger, problem: str) -> None:
    told = logger.__dict__.setdefault("told", set())
    if problem not in told:
        told.add(problem)
        _log.warning("%s: %s", type(logger).__name__, problem)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


class _Rows(ExperimentWriter):
    """A CSV file that is never torn: a row that does not fit on the disk is kept for the next time."""

    def save(self) -> None:
        """Append the rows that are not in the file yet.

        Raises:
            OSError: if the disk is full; the file is then as it was.
        """
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if keys != self.metrics_keys:
            self._write_header(path, keys)
            self.metrics_keys = keys
        size = path.stat().st_size
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, keys).writerows(self.metrics)
        except OSError:
            os.truncate(path, size)
            raise
        self.metrics = []

    def _write_header(self, path: Path, keys: list[str]) -> None:
        rows = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, keys)
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())


@_unfailing
class SafeCSVLogger(CSVLogger):
    """Lightning's, with a file that a full disk or a kill leaves whole."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file."""
        if not isinstance(self._experiment, _Rows):
            self._experiment = _Rows(log_dir=self.log_dir)
        return self._experiment

    def recover(self) -> None:
        """Nothing to do: the rows are kept, and tried again with the next one."""


@_unfailing
class SafeTensorBoardLogger(TensorBoardLogger):
    """Lightning's; after an error it goes on a minute later, in another file of the same folder."""

    rests_until = 0.0

    def log_config(self, config: dict[str, Any]) -> None:
        """Show the configuration as a text.

        Args:
            config: of the run.
        """
        text = yaml.safe_dump(config, sort_keys=False, width=120)
        self.experiment.add_text("config", f"```yaml\n{text}```")

    @rank_zero_only
    def log_image(self, key: str, images: list[Image.Image], step: int) -> None:
        """Log pictures, as W&B's logger does.

        Args:
            key: their name.
            images: one or more.
            step: of the run.
        """
        for image in images:
            self.experiment.add_image(key, pil_to_tensor(image), global_step=step)

    @rank_zero_only
    def log_video(self, key: str, videos: list[str], step: int) -> None:
        """Log animated GIF files, which TensorBoard shows as it shows pictures.

        Args:
            key: their name.
            videos: paths of the files.
            step: of the run.
        """
        for path in videos:
            with Image.open(path) as opened:
                width, height = opened.size
            shown = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=Path(path).read_bytes()
            )
            summary = Summary(value=[Summary.Value(tag=key, image=shown)])
            self.experiment._get_file_writer().add_summary(summary, step)

    def recover(self) -> None:
        """Give up the writer, whose thread has ended."""
        self._experiment = None
        self.rests_until = time.monotonic() + _REST_SECONDS


@_unfailing
class SafeWandbLogger(WandbLogger):
    """Lightning's, with explicit steps; where it cannot start online it goes on offline.

    Offline, each attempt has a folder of its own, and W&B puts their rows in order by the number of the row. Lightning
    lets each attempt count from 0; here the number follows from the step, so that rows of two attempts that have the
    same number say the same. After an error it goes on a minute later, in another folder with the same run id.
    Where W&B's variables do not say otherwise, a missing network costs half a minute at the start and a minute at the
    end, and a kill the rows of the last second.
    """

    rests_until = 0.0
    _row = -1

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        settings = {name: value for name, value in _SETTINGS.items() if f"WANDB_{name.upper()}" not in os.environ}
        options = dict(self._wandb_init)
        options["settings"] = settings | dict(options.get("settings") or {})
        if self._offline:
            options["mode"] = "offline"
        for fallback in ("offline", "disabled"):
            try:
                run = wandb.init(**options)
                break
            except Exception as error:  # noqa: BLE001  # no account, no network, no space
                _tell(self, f"cannot start, so it is {fallback}: {_first_line(error)}")
                options["mode"] = fallback
                with contextlib.suppress(Exception):
                    wandb.teardown()  # its process may hold on to the run
        else:
            run = wandb.init(**options)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values, or pictures.

        Args:
            metrics: name -> value.
            step: of the run.
        """
        if step is None:
            super().log_metrics(metrics)
            return
        self._row = max(self._row + 1, step * _ROWS_PER_STEP)
        named = {self._prefix + self.LOGGER_JOIN_CHAR + key if self._prefix else key: metrics[key] for key in metrics}
        self.experiment.log({**named, "trainer/global_step": step}, step=self._row, commit=True)

    def log_config(self, config: dict[str, Any]) -> None:
        """Keep the configuration with the run.

        Args:
            config: of the run.
        """
        self.log_hyperparams(config)

    def recover(self) -> None:
        """Give up the writer: its process has ended, or does not answer."""
        import wandb

        for end in (self._experiment.finish, wandb.teardown) if self._experiment is not None else ():
            with contextlib.suppress(Exception):
                end()
        self._experiment = None
        self.rests_until = time.monotonic() + _REST_SECONDS


def make_safe(logger: Logger) -> None:
    """Turn Lightning's CSV, TensorBoard or W&B logger into the one of this module; others stay as they are.

    It is done to the object because a command line that gave these classes could not know all of their options.

    Args:
        logger: not used yet.
    """
    for kind in (SafeCSVLogger, SafeTensorBoardLogger, SafeWandbLogger):
        if type(logger) is kind.__base__:
            logger.__class__ = kind
