"""`gsforge fit`, `validate`, `test` and `predict`: Lightning's command line, with a run directory that continues."""

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from gsforge.cli.explain import explain
from gsforge.training.checkpoint_io import BackgroundCheckpointIO
from gsforge.training.checkpoints import LastCheckpoints, check_architecture, initialise_from, progress_of
from gsforge.training.config import RunConfig, run_config_text
from gsforge.training.divergence import RankDivergence
from gsforge.training.elastic import StepParts
from gsforge.training.errors import ConfigError, RepeatedError, StopRequested
from gsforge.training.evaluation import ResultWriter
from gsforge.training.failures import FailureRecord, failed_alike
from gsforge.training.guards import NonFiniteGuard, ScheduleGuard
from gsforge.training.loggers import place_loggers
from gsforge.training.media import ValidationPictures
from gsforge.training.progress import ProgressLines, terminal_shows_bars
from gsforge.training.run_directory import RunDirectory
from gsforge.training.safe_loggers import make_safe
from gsforge.training.step_rng import StepRng
from gsforge.training.stopping import INTERRUPTED, exit_code
from gsforge.training.strategies import register_strategies
from gsforge.training.timing import StepTiming
from gsforge.training.watchdog import Watchdog

_EXPECTED_WARNINGS = (
    "Checkpoint directory .* exists and is not empty",  # a run that continues
    "The number of training batches .* is smaller than the logging interval",  # runs are counted in steps
    "find_unused_parameters=True was specified",  # it keeps the buckets as they are
    ".*treespec, LeafSpec.* is deprecated",  # inside Lightning
    r"Found \d+ module\(s\) in eval mode at the start",  # frozen extractors
    "The `srun` command is available on your system but is not used",  # nor need it be, on a login node
)
_console = Console(stderr=True, soft_wrap=True, highlight=False)


class RunCLI(LightningCLI):
    """Lightning's command line for a run: one directory, the same command continues, errors name the key.

    Args:
        args: command and options; without a command when `run` is False.
        run: whether to run the command, or to build model, data and trainer only.
    """

    def __init__(self, args: Sequence[str], run: bool = True):
        self.run = run
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={**strict, **{name: dict(strict) for name in self.subcommands()}},
            args=list(args),
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of a run, and the callbacks that every run has.

        Args:
            parser: parser of one command; gets the keys.
        """
        parser.add_argument("--run_dir", type=str, required=True, help="Folder that keeps everything this run writes.")
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Checkpoint, or run directory of an earlier stage, whose weights a new run starts from.",
        )
        parser.add_argument(
            "--torch_threads",
            type=PositiveInt | None,
            default=None,
            help="Threads of torch on the CPU, for each process; its own choice by default.",
        )
        parser.add_argument(
            "--gaussians",
            type=str | None,
            default=None,
            help="Gaussians of an object that test and predict give, e.g. 65k, where the method has a choice.",
        )
        parser.add_lightning_class_args(Watchdog, "hang")
        parser.add_lightning_class_args(LastCheckpoints, "checkpoint")
        parser.add_lightning_class_args(NonFiniteGuard, "guard")
        parser.add_lightning_class_args(RankDivergence, "divergence")  # before timing: it is no waiting for data
        parser.add_lightning_class_args(ValidationPictures, "pictures")
        parser.add_lightning_class_args(StepTiming, "timing")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments, never those of the process.

        Args:
            parser: parser of the whole command line.
            args: arguments after the program's name; the command comes first where there are commands.

        Raises:
            argparse.ArgumentError: when the arguments are refused; its message names the closest valid key.
        """
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            chosen = self._subcommand_parsers.get(args[0], parser) if self.run else parser
            keys = [action.dest for action in chosen._actions]
            raise argparse.ArgumentError(None, explain(error.message, keys)) from error

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as given: Lightning would let the checkpoint's parameters override it."""

    def before_instantiate_classes(self) -> None:
        """Point everything the run writes into its directory.

        Raises:
            ConfigError: when `seed_everything` is true or false instead of a whole number.
        """
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if isinstance(config.seed_everything, bool):
            raise ConfigError("seed_everything must be a whole number, so that a resumed run repeats the same steps")
        if config.torch_threads is not None:
            torch.set_num_threads(config.torch_threads)
        self.run_directory = RunDirectory(config.run_dir)
        text = run_config_text(self._parser(self.subcommand).dump(config, skip_unset=False))
        self.attempt = attempt = self.run_directory.next_attempt()
        session = f"attempt_{attempt}" if self.subcommand == "fit" else str(self.subcommand)
        config.trainer.default_root_dir = str(self.run_directory.path)
        config.trainer.logger = place_loggers(config.trainer.logger, self.run_directory, session)
        bars = terminal_shows_bars() and config.trainer.enable_progress_bar is not False
        config.trainer.enable_progress_bar = bars
        if self.subcommand is None:
            return
        self.trainer_defaults["callbacks"] = [
            StepRng(config.seed_everything),
            StepParts(),
            FailureRecord(attempt),
            RunConfig(self.run_directory, text, attempt),
            ResultWriter(),
            ScheduleGuard(),
            *([] if bars else [ProgressLines()]),
        ]

    def instantiate_classes(self) -> None:
        """Build model, data and trainer.

        Raises:
            ConfigError: when one of them refuses its options.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ConfigError(explain(str(error), ())) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with checkpoints that are written in the background and never half.

        Args:
            **kwargs: passed on to Lightning.

        Returns:
            The trainer, with the configured plugins and ours for checkpoints, and with loggers that cannot end it.
        """
        register_strategies()
        configured = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = configured if isinstance(configured, list) else [configured]
        if SLURMEnvironment.detect():  # its own requeueing saves inside a signal handler, where ranks deadlock
            plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
        trainer = super().instantiate_trainer(plugins=[*plugins, BackgroundCheckpointIO()], **kwargs)
        for logger in trainer.loggers:
            make_safe(logger)
        # The watchdog notes a move before the others do what may hang.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, Watchdog))  # type: ignore[attr-defined]
        return trainer

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, optimizer: Any, lr_scheduler: Any = None) -> Any:
        """Train the weights as they are now, and step the learning-rate schedule after every step, not once per epoch.

        Lightning made the optimiser with the model; since then a strategy may have put shards in place of its weights.
        """
        (group,) = optimizer.param_groups
        group["params"] = list(lightning_module.parameters())
        configured = LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)
        if isinstance(configured, tuple):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}
        return configured

    def fit(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        **_: Any,
    ) -> None:
        """Train, from the run's last checkpoint where it has one.

        Args:
            model: model to train.
            datamodule: its data.
            ckpt_path: checkpoint file to continue from; the run's last one by default.
            **_: Lightning's other options, which are ignored.
        """
        run = self.run_directory
        checkpoint = Path(ckpt_path) if ckpt_path else run.last_checkpoint()
        if checkpoint is not None:
            progress = progress_of(checkpoint)
            if progress.finished(self.trainer):
                _say(f"{run.path} is already finished at step {progress.step}")
                return
            check_architecture(model, checkpoint)
            _say(f"continuing {run.path} at step {progress.step}")
        elif source := self._get(self.config, "init_from"):
            initialise_from(model, source)
            _say(f"starting from the weights of {source}")
        # Given the folder, the ranks choose together, and verify what they have chosen.
        resumed = run.checkpoints if checkpoint is not None and ckpt_path is None else checkpoint
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=resumed)
        except Exception as error:
            if (record := failed_alike(run.failures, self.attempt)) is None:
                raise
            raise RepeatedError(
                f"{record['error']}. The attempt before ended with the same error at the same step {record['step']}, "
                f"so another one will not help: see {run.failures}"
            ) from error
        _say(f"finished at step {self.trainer.global_step}: {self.run_directory.path}")

    def validate(self, model: LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure the validation set with the last checkpoint, or with the given one.

        Args:
            model: model of the checkpoint.
            ckpt_path: checkpoint file; the run's last one by default.
            **kwargs: passed on to `Trainer.validate`.

        Raises:
            FileNotFoundError: when no checkpoint is named and the run has none yet.
        """
        self.trainer.validate(model, ckpt_path=self._evaluated(model, ckpt_path), **kwargs)

    def test(self, model: LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure the test set with the last checkpoint, or with the given one.

        Args:
            model: model of the checkpoint.
            ckpt_path: checkpoint file; the run's last one by default.
            **kwargs: passed on to `Trainer.test`.

        Raises:
            FileNotFoundError: when no checkpoint is named and the run has none yet.
        """
        self.trainer.test(model, ckpt_path=self._evaluated(model, ckpt_path), **kwargs)

    def predict(self, model: LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Write a .ply per object with the last checkpoint, or with the given one.

        Args:
            model: model of the checkpoint.
            ckpt_path: checkpoint file; the run's last one by default.
            **kwargs: passed on to `Trainer.predict`, except that no predictions are kept in memory.

        Raises:
            FileNotFoundError: when no checkpoint is named and the run has none yet.
        """
        kwargs["return_predictions"] = False
        self.trainer.predict(model, ckpt_path=self._evaluated(model, ckpt_path), **kwargs)

    def _evaluated(self, model: LightningModule, ckpt_path: str | None) -> Path:
        checkpoint = Path(ckpt_path) if ckpt_path else self.run_directory.require_checkpoint()
        check_architecture(model, checkpoint)
        if budget := self._get(self.config, "gaussians"):
            set_budget(model, budget)
        return checkpoint


def set_budget(model: LightningModule, gaussians: str) -> None:
    """Let a model decode to a number of Gaussians.

    Args:
        model: has a method `set_budget`.
        gaussians: the number, in full or with a `k` for thousands.

    Raises:
        ConfigError: if that is no number, or the method always gives the same.
    """
    digits = gaussians.lower().removesuffix("k")
    try:
        number = round(float(digits) * (1000 if digits != gaussians.lower() else 1))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"--gaussians: expected a number such as 65536 or 65k, got {gaussians!r}") from error
    if not callable(setter := getattr(model, "set_budget", None)):
        raise ConfigError(f"--gaussians: {type(model).__name__} has no choice of the number of Gaussians")
    setter(number)


@rank_zero_only
def _say(message: str) -> None:
    _console.print(message, markup=False)


def quieten() -> None:
    """Show what a run says, once, and not what libraries say about themselves."""
    logging.getLogger("gsforge").setLevel(logging.INFO if getattr(rank_zero_only, "rank", 0) == 0 else logging.WARNING)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def main(command: str, arguments: list[str]) -> int:
    """Run one of Lightning's commands.

    Args:
        command: fit, validate, test or predict.
        arguments: its options.

    Returns:
        Exit code, see `gsforge.cli.entry.main`.

    Raises:
        ConfigError: when Lightning refuses the configuration.
        SystemExit: when Lightning ends the process for another reason than Ctrl-C.
    """
    quieten()
    try:
        RunCLI([command, *arguments])
    except StopRequested as stop:
        _say(f"stopped after step {stop.step}, which is saved. Run the same command again to continue.")
        # The first rank speaks for all: a launcher kills every rank when another one ends with an error before it.
        return exit_code(stop.signal_number) if getattr(rank_zero_only, "rank", 0) == 0 else 0
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns a Ctrl-C at other times into exit code 1
            return INTERRUPTED
        raise
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    return 0
