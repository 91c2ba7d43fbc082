"""What every method is tried with: its toy configuration, made even smaller, on a few real renders."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from gsforge.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(ROOT.glob("configs/*/*toy*.yaml"))
STEPS = 24
TRAINER = ROOT / "configs" / "trainer" / "cpu.yaml"


@dataclass(frozen=True)
class ToyRun:
    """A method's toy configuration on the small set.

    Attributes:
        config: the YAML file.
        data: folder of the set.
    """

    config: Path
    data: Path

    def options(self, run_dir: Path, steps: int) -> list[str]:
        """Options of `gsforge fit` for a short run that logs every step and learns at once."""
        values = {
            "run_dir": run_dir,
            "init_from": "null",
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "trainer.limit_val_batches": 1,
            "trainer.log_every_n_steps": 1,
            "checkpoint.every_n_train_steps": 2,
            "model.init_args.lr_scheduler": "null",
            **{f"data.init_args.{split}": self.data for split in ("train", "val", "test")},
            "data.init_args.num_workers": 0,
            "data.init_args.batch_size": 2,
            "data.init_args.eval_batch_size": 1,
        }
        files = ["--config", str(self.config), "--config", str(TRAINER)]
        return [*files, *(f"--{key}={value}" for key, value in values.items())]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two toy objects, 16 views of 32 px: few enough to be learned by heart in seconds."""
    folder = tmp_path_factory.mktemp("small_set") / "objects"
    options = "--count 2 --views 16 --size 32 --points 1024 --shard-size 2 --seed 5"
    assert main(["data", "toy", "objects", "--out", str(folder), *options.split()]) == 0
    return folder


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def toy_run(request: pytest.FixtureRequest, small_set: Path) -> ToyRun:
    """Each toy configuration in turn."""
    return ToyRun(request.param, small_set)


@pytest.fixture(scope="module")
def trained(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a short training."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", *toy_run.options(run_dir, STEPS)]) == 0
    return run_dir
