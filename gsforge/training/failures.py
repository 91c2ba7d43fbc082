"""Tells an error that comes again from one that another attempt may not meet."""

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from gsforge.training.errors import StopRequested
from gsforge.training.run_directory import RunDirectory


class FailureRecord(Callback):
    """Appends to `failures.jsonl` in the run directory what ended an attempt, and at which step.

    Args:
        attempt: number of this attempt.
    """

    def __init__(self, attempt: int):
        self.attempt = attempt

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note an error; a stop is none, and what cannot be noted is not worth another error."""
        if isinstance(exception, StopRequested | KeyboardInterrupt | SystemExit):
            return
        text = (str(exception).strip() or repr(exception)).splitlines()[0]
        entry = {"attempt": self.attempt, "step": trainer.global_step, "rank": trainer.global_rank}
        path = RunDirectory(trainer.default_root_dir).failures
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry | {"error": f"{type(exception).__name__}: {text}"}) + "\n")
        except OSError:
            return


def failed_alike(path: Path, attempt: int) -> dict[str, object] | None:
    """The error of an attempt, if a rank met the same at the same step in the attempt before.

    Args:
        path: what `FailureRecord` wrote.
        attempt: number of the attempt.

    Returns:
        Its record; None if it is another one, or the first.
    """
    if not path.is_file():
        return None
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    before = {(record["step"], record["error"]) for record in records if record["attempt"] == attempt - 1}
    own = [record for record in records if record["attempt"] == attempt]
    return next((record for record in own if (record["step"], record["error"]) in before), None)
