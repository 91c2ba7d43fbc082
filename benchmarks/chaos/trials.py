"""One run, disturbed until it is done, and compared with the one that was left alone."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.processes import PREEMPTED, Ended, run_ranks, start
from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
STEPS, SAVE_EVERY, VALIDATE_EVERY = 36, 4, 6
OBJECTS, BATCH = 6, 2
SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR2")
IMPORT, START = "import", "start"
FIRST = "first batch"
IN_TRAINING = (FIRST, "forward", "backward", "optimiser", "validation", "save", "epoch end")
FULL, CUT = "full disk", "truncated shard"
FAILED, REPEATED = 1, 70
# With averages, they are the `state_dict`, and the weights that are trained the `current_model_state`.
COMPARED = ("global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers")
SMALLEST_VAE = {
    "model.init_args.network.width": 16,
    "model.init_args.network.heads": 2,
    "model.init_args.network.octree_depth": 3,
    "model.init_args.sampling.context_points": 64,
    "model.init_args.sampling.target_points": 32,
    "model.init_args.sampling.tokens": "[8]",
    "model.init_args.sampling.feature_views": 2,
    "data.init_args.views": 3,
    "data.init_args.points": 128,
}
SMALLEST = SMALLEST_VAE | {
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": VALIDATE_EVERY,
    "trainer.limit_val_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.logger": '[{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}]',
    "checkpoint.every_n_train_steps": SAVE_EVERY,
    "model.init_args.lr_scheduler.init_args.total_steps": STEPS,
    "data.init_args.eval_views": 3,
    "data.init_args.batch_size": BATCH,
    "data.init_args.max_unreadable": 0,  # rather than replace what is damaged by other objects
}
AVERAGES = {"class_path": "gsforge.training.averaging.EMA", "init_args": {"decay": 0.9}}


@dataclass
class Blow:
    """One disturbance of one attempt.

    Attributes:
        moment: when.
        action: name of a signal, or what else happened.
        codes: exit codes of the ranks.
        lost: optimiser steps that have to be made again; None when it came before the first.
    """

    moment: str
    action: str
    codes: list[int]
    lost: int | None


@dataclass
class Trial:
    """A run, disturbed until it is done.

    Attributes:
        ranks: number of processes.
        workers: loader workers of each.
        blows: what was done to it.
        failures: what was not as it should be; empty for a good one.
    """

    ranks: int
    workers: int
    blows: list[Blow] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Chaos:
    """Trials on one small set of objects.

    Args:
        work: folder for data and runs.
        seed: of all that is drawn.
    """

    def __init__(self, work: Path, seed: int):
        self.work, self.random = work, Random(seed)
        self.data = work / "data"
        self._alone: dict[int, tuple[dict[str, Any], dict[int, str]]] = {}

    def prepare(self) -> None:
        """Make the objects.

        Raises:
            SystemExit: if that fails.
        """
        options = f"--count {OBJECTS} --views 6 --size 32 --points 1024 --shard-size 3 --seed 1 --workers 0"
        words = ["data", "toy", "objects", "--out", str(self.data), *options.split()]
        if (code := run_ranks(words, 1, self.work / "out").code) != 0:
            raise SystemExit(f"the data were not made: exit code {code}; see {self.work / 'out'}")

    def trial(self, number: int) -> Trial:
        """Train under attack.

        Args:
            number: names its folder.

        Returns:
            What happened.
        """
        trial = Trial(ranks=self.random.choice((1, 1, 2)), workers=self.random.choice((0, 0, 1, 2)))
        run, data = self.work / f"run_{number}", self.work / f"data_{number}"
        shutil.copytree(self.data, data)
        while not trial.failures and self.step(run) < STEPS:
            if len(trial.blows) > 4 * STEPS:
                trial.failures.append("never done")
            elif (blow := self._attempt(trial, run, data)) is not None:
                trial.blows.append(blow)
        if not trial.failures:
            trial.failures = self._differences(trial.ranks, run)
        if not trial.failures:
            for folder in (run, data):
                shutil.rmtree(folder)
        return trial

    @staticmethod
    def step(run: Path) -> int:
        """Step of the newest good checkpoint; 0 for none."""
        last = RunDirectory(run).last_checkpoint()
        return 0 if last is None else int(read_checkpoint(last)["global_step"])

    # --- one attempt

    def _attempt(self, trial: Trial, run: Path, data: Path) -> Blow | None:
        before = self.step(run)
        moments = (*IN_TRAINING, *IN_TRAINING, FULL, CUT)
        # A rank that ends before it has met the others leaves them waiting, which is for their launcher to end.
        moment = self.random.choice(moments if trial.ranks > 1 else (*moments, IMPORT, START))
        if moment in (IMPORT, START):
            return self._stop_early(trial, moment, run, data)
        record = run.with_suffix(".json")
        record.unlink(missing_ok=True)
        later = 0 if moment == FIRST else self.random.randrange(6)
        options = {"moment": moment, "action": self.random.choice(SIGNALS), "step": before + later}
        if moment in (FULL, CUT):
            options |= {"moment": FIRST, "action": moment}
        options |= {"delay": self.random.uniform(0, 0.03), "rank": self.random.randrange(trial.ranks)}
        shard = self.random.choice(sorted(data.glob("*.tar")))
        disturbance = {"class_path": "benchmarks.chaos.disturbances.Disturbance"}
        init_args = {**options, "epoch": OBJECTS // BATCH, "shard": str(shard), "record": str(record)}
        callback = json.dumps({**disturbance, "init_args": init_args})
        ended = self._run(trial, run, data, f"--trainer.callbacks+={callback}")
        if moment == CUT:
            shutil.copy(self.data / shard.name, shard)
        if not record.exists():
            self._expect(trial, ended, [0], "undisturbed")
            return None
        at, after = json.loads(record.read_text())["step"], self.step(run)
        action = str(options["action"])
        allowed = [*_codes(action), *([0] if after == STEPS else [])]  # it may come too late to be heard
        self._expect(trial, ended, allowed, f"{action} at {moment}, step {at}")
        if action in ("SIGTERM", "SIGUSR2") and after < at:
            trial.failures.append(f"{action} at {moment}, step {at}: saved at {after}")
        return Blow(moment, action, ended.codes, max(0, at - after))

    def _stop_early(self, trial: Trial, moment: str, run: Path, data: Path) -> Blow:
        """Before the first batch; of an import, that is of a program that a shell starts."""
        name = self.random.choice(SIGNALS)
        arguments = self._arguments(trial, run, data)
        log = run.with_suffix(".txt")
        if moment == IMPORT:
            program = str(Path(sys.executable).with_name("gsforge"))
            with log.open("w") as stream:
                shell = subprocess.Popen([program, *arguments], stdout=stream, stderr=stream, cwd=ROOT)
            time.sleep(self.random.uniform(0, 9))
            shell.send_signal(signal.Signals[name])
            code = shell.wait()
        else:
            process = start(arguments, log)
            time.sleep(self.random.uniform(0, 3))
            os.kill(process.pid or 0, signal.Signals[name])
            process.join()
            code = process.exitcode or 0
        before_it_could_listen = -int(signal.Signals[name])
        self._expect(
            trial, Ended([code], [log.read_text()]), [*_codes(name), before_it_could_listen, 0], f"{name} at {moment}"
        )
        return Blow(moment, name, [code], None)

    def _run(self, trial: Trial, run: Path, data: Path, *more: str) -> Ended:
        return run_ranks([*self._arguments(trial, run, data), *more], trial.ranks, run.with_suffix(".out"))

    @staticmethod
    def _arguments(trial: Trial, run: Path, data: Path) -> list[str]:
        values = SMALLEST | {"run_dir": run, "data.init_args.num_workers": trial.workers}
        values |= {"trainer.devices": trial.ranks, "trainer.strategy": "ddp" if trial.ranks > 1 else "auto"}
        values |= {f"data.init_args.{split}": data for split in ("train", "val", "test")}
        files = [f"--config={ROOT / 'configs' / name}" for name in ("deg/vae_toy.yaml", "trainer/cpu.yaml")]
        averages = f"--trainer.callbacks+={json.dumps(AVERAGES)}"
        return ["fit", *files, *(f"--{key}={value}" for key, value in values.items()), averages]

    @staticmethod
    def _expect(trial: Trial, ended: Ended, codes: list[int], what: str) -> None:
        if not set(ended.codes) & set(codes):
            trial.failures.append(f"{what}: exit codes {ended.codes}, expected {codes}: {ended.output[0][-2000:]}")

    # --- the end

    def _differences(self, ranks: int, run: Path) -> list[str]:
        if ranks not in self._alone:
            alone = self.work / f"alone_{ranks}"
            trial = Trial(ranks, 0)
            self._expect(trial, self._run(trial, alone, self.data), [0], "the run that was left alone")
            if trial.failures:
                return trial.failures
            self._alone[ranks] = _state(alone), _losses(alone)
        state, losses = self._alone[ranks]
        where = difference(_state(run), state)
        found = [] if where is None else [f"{where} differs"]
        wrong = {step for step, loss in _losses(run).items() if losses.get(step) != loss}
        return found + ([f"losses of steps {sorted(wrong)}"] if wrong else [])


def _codes(action: str) -> list[int]:
    if action == "SIGKILL":
        return [-int(signal.SIGKILL)]
    return [PREEMPTED] if action in SIGNALS else [FAILED, REPEATED]


def _state(run: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(RunDirectory(run).require_checkpoint())
    return {name: checkpoint[name] for name in COMPARED}


def difference(one: Any, other: Any, where: str = "checkpoint") -> str | None:
    """Where two nested structures differ first, to the last bit.

    Args:
        one: tensors, numbers and texts in dictionaries and lists.
        other: the same.
        where: name of both.

    Returns:
        Name of the part; None if they are equal.
    """
    if type(one) is not type(other):
        return where
    if isinstance(one, dict) and one.keys() == other.keys():
        found = (difference(value, other[key], f"{where}.{key}") for key, value in one.items())
        return next((name for name in found if name), None)
    if isinstance(one, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((name for i, pair in pairs if (name := difference(*pair, f"{where}[{i}]"))), None)
    if isinstance(one, torch.Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else where
    return None if one == other else where


def _losses(run: Path) -> dict[int, str]:
    """Loss by step, as it was logged by any attempt; `differs` where two say otherwise."""
    found: dict[int, str] = {}
    for path in sorted((run / "logs" / "csv").glob("*/metrics.csv")):
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if loss := row.get("train/loss"):
                    step = int(row["step"])
                    found[step] = loss if found.get(step, loss) == loss else "differs"
    return found
