"""Names of the files in a run directory, the one place where a run keeps everything it writes."""

import re
from pathlib import Path

from gsforge.training.checkpoint_files import newest_checkpoint


class RunDirectory:
    """A run's folder: configuration, checkpoints, logs, pictures and results.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.validation = self.path / "validation"
        self.test = self.path / "test"
        self.predict = self.path / "predict"
        self.bad_steps = self.path / "bad_steps.jsonl"
        self.failures = self.path / "failures.jsonl"
        self.attempts = self.path / "attempts.jsonl"
        self.wandb_id = self.logs / "wandb_id.txt"

    def configs(self) -> dict[int, Path]:
        """Attempt number -> configuration file: `config.yaml` of the first, `config.<attempt>.yaml` of later ones.

        Returns:
            The files that exist, sorted by attempt; empty for a new run.
        """
        found = {1: self.path / "config.yaml"} if (self.path / "config.yaml").is_file() else {}
        for file in self.path.glob("config.*.yaml"):
            if match := re.fullmatch(r"config\.(\d+)\.yaml", file.name):
                found[int(match[1])] = file
        return dict(sorted(found.items()))

    def config(self) -> Path:
        """Newest configuration of the run.

        Returns:
            Path of the file of the latest attempt.

        Raises:
            FileNotFoundError: when the folder holds none.
        """
        configs = self.configs()
        if not configs:
            raise FileNotFoundError(
                f"{self.path} holds no config.yaml, so it is no run directory: give the folder that `gsforge fit` wrote"
            )
        return configs[max(configs)]

    def next_attempt(self) -> int:
        """Number of the attempt that starts now: 1 for a new run.

        Returns:
            One more than the highest attempt that has a configuration file or a CSV log.
        """
        logs = (re.fullmatch(r"attempt_(\d+)", folder.name) for folder in (self.logs / "csv").glob("attempt_*"))
        return 1 + max([*self.configs(), *(int(match[1]) for match in logs if match)], default=0)

    def last_checkpoint(self) -> Path | None:
        """Checkpoint to continue from: the newest that is not torn.

        Returns:
            Path of the checkpoint; None when the run has none yet.
        """
        return newest_checkpoint(self.checkpoints)

    def require_checkpoint(self) -> Path:
        """As `last_checkpoint`.

        Returns:
            Path of the checkpoint.

        Raises:
            FileNotFoundError: when the run has none yet.
        """
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            raise FileNotFoundError(
                f"{self.checkpoints} holds no checkpoint: train first with `gsforge fit` and the same configuration "
                f"(--run_dir {self.path}), or name a file with --ckpt_path"
            )
        return checkpoint
