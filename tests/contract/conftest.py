"""What every method is tried with: its toy configuration, made even smaller, on a few real renders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

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
        overrides: further options, by key.
    """

    config: Path
    data: Path
    overrides: Mapping[str, object] = field(default_factory=dict)

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
            **self.overrides,
        }
        files = ["--config", str(self.config), "--config", str(TRAINER)]
        return [*files, *(f"--{key}={value}" for key, value in values.items())]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two toy objects, 16 views of 32 px: few enough to be learned by heart in seconds."""
    folder = tmp_path_factory.mktemp("small_set") / "objects"
    options = "--count 2 --views 16 --size 32 --points 1024 --shard-size 2 --condition-views 4 --seed 5"
    assert main(["data", "toy", "objects", "--out", str(folder), *options.split()]) == 0
    return folder


@pytest.fixture(scope="session")
def small_latents(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    """A VAE that was trained for two steps: latents of the small set, and its weights."""
    folder = tmp_path_factory.mktemp("small_latents")
    vae = ToyRun(ROOT / "configs/deg/vae_toy_stage2.yaml", small_set)
    assert main(["fit", *vae.options(folder / "vae", steps=2)]) == 0
    assert main(["export", str(folder / "vae"), "--weights", str(folder / "weights")]) == 0
    assert (
        main(["data", "encode", str(folder / "vae"), "--data", str(small_set), "--out", str(folder / "latents")]) == 0
    )
    sizes = {"data.init_args.condition_size": 64, "model.init_args.vae": folder / "weights"}
    return ToyRun(ROOT / "configs/deg/flow_toy.yaml", folder / "latents", sizes)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def toy_run(request: pytest.FixtureRequest, small_set: Path) -> ToyRun:
    """Each toy configuration in turn, with the data that it reads."""
    data = yaml.safe_load(request.param.read_text())["data"]["class_path"]
    if data == "datamodules.latents.LatentsDataModule":
        return request.getfixturevalue("small_latents")
    return ToyRun(request.param, small_set)


@pytest.fixture(scope="module")
def trained(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a short training."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", *toy_run.options(run_dir, STEPS)]) == 0
    return run_dir
