"""Loggers write below the run directory, and a resumed run continues the same charts."""

import hashlib
import re
from typing import Any

from gsforge.training.run_directory import RunDirectory


def place_loggers(configured: Any, run: RunDirectory, session: str) -> Any:
    """Complete the configuration of the trainer's loggers.

    CSV files are one per attempt, because Lightning's CSVLogger deletes the file of a version that exists. TensorBoard
    and W&B continue; the W&B id follows from the run directory.

    Args:
        configured: value of `trainer.logger`: a list of class configurations, one of them, a bool or None.
        run: the run's directory.
        session: folder name of this attempt's CSV file.

    Returns:
        The same with directories, names and versions filled in.
    """
    if configured is None or isinstance(configured, bool):
        return False
    loggers = configured if isinstance(configured, list) else [configured]
    for logger in loggers:
        _place(logger.class_path, logger.init_args, run, session)
    return loggers


def wandb_run_id(run: RunDirectory) -> str:
    """Run id that is the same whenever the run directory is.

    Args:
        run: the run's directory.

    Returns:
        Its name, made unique by a digest of its full path.
    """
    path = str(run.path.resolve())
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run.path.name)[:40]
    return f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:10]}"


def _place(class_path: str, init_args: Any, run: RunDirectory, session: str) -> None:
    kind = class_path.rsplit(".", 1)[-1]
    if "save_dir" in init_args:
        init_args["save_dir"] = str(run.path / init_args["save_dir"])
    if kind == "CSVLogger":
        init_args["name"], init_args["version"] = "csv", session
    elif kind == "TensorBoardLogger":
        init_args["name"], init_args["version"] = "tensorboard", ""
    elif kind == "WandbLogger":
        init_args["id"] = wandb_run_id(run)
        init_args["name"] = init_args.get("name") or run.path.name
