"""Loggers write below the run directory, and a resumed run continues the same charts."""

import hashlib
import re
from typing import Any

from gsforge.core.files import write_text
from gsforge.training.run_directory import RunDirectory


def place_loggers(configured: Any, run: RunDirectory, session: str) -> Any:
    """Complete the configuration of the trainer's loggers.

    CSV files are one per attempt, because Lightning's CSVLogger deletes the file of a version that exists. TensorBoard
    and W&B continue.

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
        _place(logger, run, session)
    return loggers


def wandb_run_id(run: RunDirectory) -> str:
    """The W&B run that all attempts of a run are.

    Args:
        run: the run's directory.

    Returns:
        What the first attempt noted; for a new run its name, made unique by a digest of its full path.
    """
    if run.wandb_id.is_file():
        return run.wandb_id.read_text(encoding="utf-8").strip()
    path = str(run.path.resolve())
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run.path.name)[:40]
    return f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:10]}"


def _place(logger: Any, run: RunDirectory, session: str) -> None:
    init_args = logger.init_args
    if "save_dir" in init_args:
        init_args["save_dir"] = str(run.path / init_args["save_dir"])
    kind = logger.class_path.rsplit(".", 1)[-1]
    if kind == "CSVLogger":
        init_args["name"], init_args["version"] = "csv", session
    elif kind == "TensorBoardLogger":
        init_args["name"], init_args["version"] = "tensorboard", ""
    elif kind == "WandbLogger":
        init_args["id"] = init_args.get("id") or wandb_run_id(run)
        init_args["name"] = init_args.get("name") or run.path.name
        if session.startswith("attempt_") and not run.wandb_id.is_file():  # other commands only read a run
            run.wandb_id.parent.mkdir(parents=True, exist_ok=True)
            write_text(run.wandb_id, init_args["id"] + "\n")
