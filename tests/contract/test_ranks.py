"""Every toy configuration learns on two ranks what it learns on one, with its weights on both or divided among them.

Where they are divided, blocks are computed again in the backward pass, as large models are: both must leave no trace.
"""

import json
from pathlib import Path

import torch

from benchmarks.processes import run_ranks
from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory
from tests.contract.conftest import ToyRun

FEW = 2
# Its steps are as large as the gradients; Adam makes a large step of a gradient that is nothing but rounding.
PLAIN = json.dumps({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "fused": False}})


def test_two_ranks_learn_what_one_does(toy_run: ToyRun, tmp_path: Path) -> None:
    weights = {}
    for name, ranks in (("auto", 1), ("ddp", 2), ("sharded", 2)):
        options = [*toy_run.options(tmp_path / name, FEW), f"--model.init_args.optimizer={PLAIN}"]
        options += [f"--trainer.devices={ranks}", f"--trainer.strategy={name}", "--trainer.limit_val_batches=0"]
        if name == "sharded":
            options.append("--model.init_args.network.checkpoint_blocks=true")
        ended = run_ranks(["fit", *options], ranks, tmp_path / f"{name}_out")
        assert ended.codes == [0] * ranks, ended.output[0]
        weights[name] = read_checkpoint(RunDirectory(tmp_path / name).require_checkpoint())["state_dict"]
    for name in ("ddp", "sharded"):
        torch.testing.assert_close(weights[name], weights["auto"], rtol=1e-3, atol=1e-5)
