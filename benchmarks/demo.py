"""The whole story in one command: from meshes to a model that turns a picture into 3D Gaussians.

    python -m benchmarks.demo [--quick] [--out DIR]

Make data, train the three stages of the VAE (stopping and resuming the second), measure it, turn objects into latents,
train the flow model on them, generate objects that it never saw from pictures of them, measure these, report.

Every step is a `gsforge` command, printed as a user would type it. Run again, it continues where it stopped. It fails
if a trained model does not clearly beat its baselines on objects it never saw. `--quick` goes through the same steps
with a few objects and training steps, without that demand.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from benchmarks import processes

TRAINER = "configs/trainer/cpu.yaml"
INTERRUPTED = 130


@dataclass(frozen=True)
class Measure:
    """What a test measured, and when it counts as clearly better than the baseline.

    Attributes:
        name: of the metric.
        unit: of the metric.
        margin: least gain over the baseline; negative where less is better.
    """

    name: str
    unit: str
    margin: float


RECONSTRUCTION = (Measure("psnr", "dB", 3.0), Measure("ssim", "", 0.05), Measure("chamfer", "object sizes", -0.01))
GENERATION = (Measure("psnr", "dB", 1.0), Measure("ssim", "", 0.02))


@dataclass(frozen=True)
class Plan:
    """Sizes of a demo.

    Attributes:
        train: objects to learn from.
        heldout: objects to measure on.
        steps: training steps by configuration; of others it says the number itself.
    """

    train: int
    heldout: int
    steps: dict[str, int]


STAGES = ("vae_toy", "vae_toy_stage2", "vae_toy_stage3")
FLOW = "flow_toy"
FULL = Plan(train=160, heldout=16, steps={})
QUICK = Plan(train=8, heldout=2, steps=dict(zip((*STAGES, FLOW), (4, 8, 4, 4), strict=True)))


def main() -> int:
    """Run the demo.

    Returns:
        0 if the models beat the baselines, or with --quick; 1 otherwise.
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
        out: folder for data, runs and the pages.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out, self.console = plan, out, Console(highlight=False, soft_wrap=True)
        self.data, self.latents, self.weights = out / "data", out / "latents", out / "weights"
        self.times: list[tuple[str, float]] = []

    def run(self) -> None:
        """Go through all steps."""
        self.step("Make objects to learn from, and others to be measured on", self.make_data)
        self.step("Stage 1: the encoder and the octree density learn the shapes", lambda: self.fit(STAGES[0]))
        self.step("Stage 2: the decoder learns appearance through the renderer. Stopped half-way ...", self.interrupt)
        self.step("... and the same command again goes on where it stopped", lambda: self.fit(STAGES[1]))
        self.step("Stage 3: the density learns where Gaussians help the renderer", lambda: self.fit(STAGES[2]))
        self.step("Measure on the objects that were held out", lambda: self.test(STAGES[2]))
        self.step("Take one object out as a .ply file", self.export)
        self.step("Turn all objects into latents", self.encode)
        self.step("The flow model learns to make latents from pictures", lambda: self.fit(FLOW))
        self.step("Generate the objects that were held out, each from one picture", lambda: self.test(FLOW))
        self.step("Turn a picture into a .ply file", self.predict)
        self.step("Put everything on two pages", self.report)

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

    # --- steps

    def make_data(self) -> None:
        """Two toy sets and a contact sheet."""
        for name, count, seed in (("train", self.plan.train, 0), ("heldout", self.plan.heldout, 1)):
            options = f"--count {count} --seed {seed} --condition-views 4 --workers 2"
            self.gsforge(f"data toy objects --out {self.data / name} {options}")
        self.gsforge(f"data show {self.data / 'heldout'} --out {self.out / 'heldout.png'}")

    def fit(self, config: str) -> None:
        """A training to its end.

        Args:
            config: name of the configuration.
        """
        self.gsforge(f"fit {self.options(config)}")

    def interrupt(self) -> None:
        """Stage 2, with a Ctrl-C once half of its steps are in the log.

        Raises:
            SystemExit: if the training fails.
        """
        process = processes.start(self.gsforge_command(f"fit {self.options(STAGES[1])}"))
        while process.is_alive() and self.progress(STAGES[1]) < 0.5:
            time.sleep(0.5)
        if process.is_alive() and process.pid:
            self.console.print("[bold yellow]Ctrl-C[/]")
            os.kill(process.pid, signal.SIGINT)
        process.join()
        if process.exitcode not in (0, INTERRUPTED):
            raise SystemExit(f"the interrupted training ended with exit code {process.exitcode}")

    def test(self, config: str) -> None:
        """Metrics, pictures and .ply files of the held-out objects.

        Args:
            config: name of the configuration.
        """
        self.gsforge(f"test {self.options(config)}")

    def export(self) -> None:
        """One object as a file for any viewer of 3D Gaussians, and the weights for the flow model."""
        self.gsforge(f"export {self.folder(STAGES[2])} --out {self.out / 'object.ply'}")
        self.gsforge(f"export {self.folder(STAGES[2])} --weights {self.weights}")

    def encode(self) -> None:
        """Latents of both sets, in four orientations."""
        for name in ("train", "heldout"):
            options = f"--data {self.data / name} --out {self.latents / name}"
            self.gsforge(f"data encode {self.folder(STAGES[2])} {options}")

    def predict(self) -> None:
        """The first held-out picture, as a user would bring one along."""
        picture = self.out / "picture.png"
        with tarfile.open(self.data / "heldout" / "shard-000000.tar") as shard:
            content = next(shard.extractfile(member) for member in shard if member.name.endswith(".condition.000.png"))
            picture.write_bytes(content.read())
        self.gsforge(f"predict --image {picture} --ckpt {self.folder(FLOW)} --out {self.out / 'generated'}")

    def report(self) -> None:
        """One self-contained page for the VAE, and one for the flow model."""
        for config, page in ((STAGES[2], "reconstruction.html"), (FLOW, "report.html")):
            self.gsforge(f"report {self.folder(config)} --out {self.out / page} --size 192")

    # --- commands

    def folder(self, config: str) -> Path:
        """Run directory of a configuration."""
        return self.out / config

    def options(self, config: str) -> str:
        """Options of a training or test command.

        Args:
            config: name of the configuration.

        Returns:
            The options, as typed in a shell.
        """
        data = self.latents if config == FLOW else self.data
        options = f"--config configs/deg/{config}.yaml --config {TRAINER} --run_dir {self.folder(config)} --data.train"
        options += f" {data / 'train'} --data.val {data / 'heldout'} --data.test {data / 'heldout'}"
        if config == FLOW:
            options += f" --model.vae {self.weights}"
        elif config != STAGES[0]:
            options += f" --init_from {self.folder(STAGES[STAGES.index(config) - 1])}"
        if config in self.plan.steps:
            steps = self.plan.steps[config]
            options += (
                f" --trainer.max_steps {steps} --trainer.val_check_interval {steps} --trainer.log_every_n_steps 1"
            )
        return options

    def progress(self, config: str) -> float:
        """Share of a training that its log shows as done.

        Args:
            config: name of the configuration.

        Returns:
            Share in [0, 1]; 0 while nothing is logged.
        """
        logs = sorted(self.folder(config).glob("logs/csv/*/metrics.csv"))
        if not logs or not (rows := logs[-1].read_text().splitlines()[1:]):
            return 0.0
        column = logs[-1].read_text().splitlines()[0].split(",").index("step")
        configured = yaml.safe_load(Path(f"configs/deg/{config}.yaml").read_text())["trainer"]["max_steps"]
        return (int(rows[-1].split(",")[column]) + 1) / self.plan.steps.get(config, configured)

    def gsforge_command(self, arguments: str) -> list[str]:
        """Print a command as a user would type it; the words that run it here.

        Args:
            arguments: the words after `gsforge`, as typed in a shell.

        Returns:
            Arguments of the program.
        """
        self.console.print(f"[bold green]$ gsforge[/] {arguments}")
        return shlex.split(arguments)

    def gsforge(self, arguments: str) -> None:
        """Run a command to its end.

        Args:
            arguments: the words after `gsforge`, as typed in a shell.

        Raises:
            SystemExit: if the command fails.
        """
        code = processes.run(self.gsforge_command(arguments))
        if code:
            raise SystemExit(f"`gsforge {arguments}` ended with exit code {code}")

    # --- results

    def verdict(self) -> bool:
        """Print times and results.

        Returns:
            True if every measure beats its baseline by its margin.
        """
        times = Table("step", "seconds", title="Time")
        for title, seconds in self.times:
            times.add_row(title, f"{seconds:.0f}")
        times.add_row("all", f"{sum(seconds for _, seconds in self.times):.0f}")
        self.console.print(times)
        verdicts = [
            self.compare(STAGES[2], "reconstructed from 4 views", RECONSTRUCTION),
            self.compare(FLOW, "generated from one picture", GENERATION),
        ]
        self.console.print(
            "Baselines: of a reconstruction, psnr and ssim of the best constant image, chamfer of points drawn "
            "uniformly in the object's bounding box; of what is generated, the object that another picture gave.\n"
            f"Look at {self.out / 'report.html'} and {self.out / 'reconstruction.html'}"
        )
        return all(verdicts)

    def compare(self, config: str, how: str, measures: tuple[Measure, ...]) -> bool:
        """Print the results of a test.

        Args:
            config: name of the configuration.
            how: what was done with the objects.
            measures: what to show.

        Returns:
            True if every measure beats its baseline by its margin.
        """
        mean = json.loads((self.folder(config) / "test" / "metrics.json").read_text())["mean"]
        table = Table("measure", "model", "baseline", "verdict", title=f"{self.plan.heldout} objects never seen, {how}")
        verdicts = []
        for measure in measures:
            model, baseline = mean[measure.name], mean[f"{measure.name}_baseline"]
            better = (model - baseline) / measure.margin >= 1
            verdict = "better" if better else f"not better by {abs(measure.margin)}"
            table.add_row(measure.name, f"{model:.4g} {measure.unit}", f"{baseline:.4g} {measure.unit}", verdict)
            verdicts.append(better)
        self.console.print(table)
        return all(verdicts)


if __name__ == "__main__":
    sys.exit(main())
