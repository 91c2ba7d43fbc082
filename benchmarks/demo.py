"""The whole story in one command: make data, train in two stages, stop and resume, measure, export, report.

    python -m benchmarks.demo [--quick] [--out DIR]

Every step is a `gsforge` command, printed as a user would type it. Run again, it continues where it stopped. It fails
if the trained model does not clearly beat the baselines on objects it never saw. `--quick` goes through the same steps
with a few objects and training steps, without that demand.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

# Metric, unit, whether more is better, and the least margin over the baseline that counts as clear.
MEASURES = (
    ("psnr", "dB", True, 3.0),
    ("ssim", "", True, 0.05),
    ("chamfer", "object sizes", False, 0.01),
)
TRAINER = "configs/trainer/cpu.yaml"
INTERRUPTED = 130


@dataclass(frozen=True)
class Plan:
    """Sizes of a demo.

    Attributes:
        train: objects to learn from.
        heldout: objects to measure on.
        steps: training steps of each stage; None takes those of the configuration.
    """

    train: int
    heldout: int
    steps: tuple[int, int] | None


FULL = Plan(train=160, heldout=16, steps=None)
QUICK = Plan(train=8, heldout=2, steps=(4, 8))


def main() -> int:
    """Run the demo; exit code 0 if the model beats the baselines.

    Returns:
        0 if the model beats the baselines, or with --quick; 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few objects and steps: shows that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for data and runs")
    arguments = parser.parse_args()
    demo = Demo(QUICK if arguments.quick else FULL, arguments.out)
    demo.run()
    return 0 if demo.verdict() or arguments.quick else 1


class Demo:
    """The steps, their timing, and the verdict.

    Args:
        plan: sizes of the demo.
        out: folder for data, runs and the report.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out, self.console = plan, out, Console(highlight=False, soft_wrap=True)
        self.data, self.stage1, self.stage2 = out / "data", out / "stage1", out / "stage2"
        self.times: list[tuple[str, float]] = []

    def run(self) -> None:
        """Go through all steps."""
        self.step("Make objects to learn from, and others to be measured on", self.make_data)
        self.step("Stage 1: the encoder and the octree density learn the shapes", self.train_structure)
        self.step("Stage 2: the decoder learns appearance through the renderer. Stopped half-way ...", self.interrupt)
        self.step("... and the same command again goes on where it stopped", self.train_appearance)
        self.step("Measure on the objects that were held out", self.measure)
        self.step("Take one object out as a .ply file", self.export)
        self.step("Put everything on one page", self.report)

    def step(self, title: str, action: Callable[[], None]) -> None:
        """Announce, do and time one step.

        Args:
            title: heading to print.
            action: what to do.
        """
        self.console.print(Panel(title, style="bold cyan", expand=False))
        started = time.perf_counter()
        action()
        self.times.append((title, time.perf_counter() - started))

    def make_data(self) -> None:
        """Two toy sets and a contact sheet."""
        for name, count, seed in (("train", self.plan.train, 0), ("heldout", self.plan.heldout, 1)):
            out = self.data / name
            self.gsforge(f"data toy objects --out {out} --count {count} --seed {seed} --workers 2")
        self.gsforge(f"data show {self.data / 'heldout'} --out {self.out / 'heldout.png'}")

    def train_structure(self) -> None:
        """Stage 1 to its end."""
        self.gsforge(self.fit(1))

    def interrupt(self) -> None:
        """Stage 2, with a Ctrl-C once half of its steps are in the log.

        Raises:
            SystemExit: if the training fails.
        """
        command = self.gsforge_command(self.fit(2))
        process = subprocess.Popen(command)
        while process.poll() is None and self.progress() < 0.5:
            time.sleep(0.5)
        if process.poll() is None:
            self.console.print("[bold yellow]Ctrl-C[/]")
            process.send_signal(signal.SIGINT)
        code = process.wait()
        if code not in (0, INTERRUPTED):
            raise SystemExit(f"the interrupted training ended with exit code {code}")

    def train_appearance(self) -> None:
        """The same command as before, to its end."""
        self.gsforge(self.fit(2))

    def measure(self) -> None:
        """Metrics, pictures and .ply files of the held-out objects."""
        self.gsforge(f"test {self.options(2)}")

    def export(self) -> None:
        """One object as a file for any viewer of 3D Gaussians."""
        self.gsforge(f"export {self.stage2} --out {self.out / 'object.ply'}")

    def report(self) -> None:
        """One self-contained page."""
        self.gsforge(f"report {self.stage2} --out {self.out / 'report.html'} --size 192")

    def options(self, stage: int) -> str:
        """Options of a training or test command.

        Args:
            stage: 1 or 2.

        Returns:
            The options, as typed in a shell.
        """
        config, folder = ("vae_toy", self.stage1) if stage == 1 else ("vae_toy_stage2", self.stage2)
        options = f"--config configs/deg/{config}.yaml --config {TRAINER} --run_dir {folder} --data.train"
        options += f" {self.data / 'train'} --data.val {self.data / 'heldout'} --data.test {self.data / 'heldout'}"
        if stage == 2:
            options += f" --init_from {self.stage1}"
        if self.plan.steps is not None:
            steps = self.plan.steps[stage - 1]
            options += (
                f" --trainer.max_steps {steps} --trainer.val_check_interval {steps} --trainer.log_every_n_steps 1"
            )
        return options

    def fit(self, stage: int) -> str:
        """The training command of a stage.

        Args:
            stage: 1 or 2.

        Returns:
            The words after `gsforge`, as typed in a shell.
        """
        return f"fit {self.options(stage)}"

    def progress(self) -> float:
        """Share of stage 2 that its log shows as done.

        Returns:
            Share in [0, 1]; 0 while nothing is logged.
        """
        logs = sorted(self.stage2.glob("logs/csv/*/metrics.csv"))
        if not logs or not (rows := logs[-1].read_text().splitlines()[1:]):
            return 0.0
        column = logs[-1].read_text().splitlines()[0].split(",").index("step")
        total = self.plan.steps[1] if self.plan.steps else self.configured_steps()
        return (int(rows[-1].split(",")[column]) + 1) / total

    def configured_steps(self) -> int:
        """Steps of stage 2 by its configuration.

        Returns:
            Number of training steps.
        """
        import yaml

        return int(yaml.safe_load(Path("configs/deg/vae_toy_stage2.yaml").read_text())["trainer"]["max_steps"])

    def gsforge_command(self, arguments: str) -> list[str]:
        """Print a command as a user would type it; the words that run it here.

        Args:
            arguments: the words after `gsforge`, as typed in a shell.

        Returns:
            Program and arguments for `subprocess`.
        """
        self.console.print(f"[bold green]$ gsforge[/] {arguments}")
        return [str(Path(sys.executable).with_name("gsforge")), *shlex.split(arguments)]

    def gsforge(self, arguments: str) -> None:
        """Run a command to its end.

        Args:
            arguments: the words after `gsforge`, as typed in a shell.

        Raises:
            SystemExit: if the command fails.
        """
        code = subprocess.run(self.gsforge_command(arguments)).returncode
        if code:
            raise SystemExit(f"`gsforge {arguments}` ended with exit code {code}")

    def verdict(self) -> bool:
        """Print times and results; whether every measure beats its baseline clearly.

        Returns:
            True if every measure beats its baseline by its margin.
        """
        times = Table("step", "seconds", title="Time")
        for title, seconds in self.times:
            times.add_row(title, f"{seconds:.0f}")
        times.add_row("all", f"{sum(seconds for _, seconds in self.times):.0f}")
        mean = json.loads((self.stage2 / "test" / "metrics.json").read_text())["mean"]
        table = Table("measure", "model", "baseline", "verdict", title=f"{self.plan.heldout} objects never seen")
        verdicts = []
        for name, unit, more_is_better, margin in MEASURES:
            model, baseline = mean[name], mean[f"{name}_baseline"]
            gain = model - baseline if more_is_better else baseline - model
            verdicts.append(gain >= margin)
            verdict = "better" if gain >= margin else f"not better by {margin}"
            table.add_row(name, f"{model:.4g} {unit}", f"{baseline:.4g} {unit}", verdict)
        self.console.print(times, table)
        self.console.print(
            "Baselines: psnr and ssim of the best constant image; chamfer of points drawn uniformly in the "
            f"object's bounding box.\nLook at {self.out / 'report.html'}"
        )
        return all(verdicts)


if __name__ == "__main__":
    sys.exit(main())
