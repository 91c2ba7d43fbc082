"""Entry point of the `gsforge` command.

It starts in a fraction of a second because a command's module, and with it torch and Lightning, is imported only when
that command runs.
"""

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version

from rich.console import Console
from rich.markup import escape

from gsforge.core.errors import GsforgeError
from gsforge.training.errors import ConfigError, RepeatedError
from gsforge.training.stopping import INTERRUPTED, PREEMPTION, forget_request, install_handlers

LIGHTNING = {
    "fit": "train; the same command, run again, continues",
    "validate": "measure the validation set with a run's last checkpoint",
    "test": "measure the test set, write metrics, pictures and .ply files",
    "predict": "write one .ply per object of the prediction set; with --image, of objects generated from pictures",
}
OTHERS = {
    "export": ("gsforge.cli.export", "write one object of a run as .ply, .splat or .spz, or the run's weights"),
    "report": ("gsforge.viewer.report", "write one HTML page about a run"),
    "plan": ("gsforge.cli.plan", "tell memory, FLOPs, legal numbers of ranks and time of a training"),
    "doctor": ("gsforge.cli.doctor", "check this machine, its disks and network, and say what to mend"),
    "submit": ("gsforge.cli.submit", "train on a SLURM cluster; the job is requeued until the run is done"),
}
GROUP = "gsforge.commands"
USAGE_ERROR, FAILED_ALIKE = 2, 70
_CODES = {argparse.ArgumentError: USAGE_ERROR, ConfigError: USAGE_ERROR, RepeatedError: FAILED_ALIKE}

# What torch puts before the message of an error in a loader's worker process: the traceback there.
_WORKER_TRACEBACK = re.compile(r"\ACaught \w+ in DataLoader worker process.*^[\w.]+Error: ", re.DOTALL | re.MULTILINE)

_console = Console(stderr=True, soft_wrap=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        Exit code: 0 done, 1 failed (another attempt may help), 2 the command or its configuration is wrong, 70 the same
        error at the same step as in the attempt before, 71 nothing moved any more, 75 preempted (run the same command
        again), 130 stopped by Ctrl-C.
    """
    # Torch's threads spin while they wait for each other. Where a loader's worker needs the same core, that makes a
    # training step several times slower; asleep they cost nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("GSFORGE_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        Console(highlight=False).print(escape(_help()))
        return 0
    if arguments[0] == "--version":
        Console(highlight=False).print(f"gsforge {version('gsforge')}")
        return 0
    return _run(arguments[0], arguments[1:], debug)


def _run(name: str, arguments: list[str], debug: bool) -> int:
    if name == "fit":
        forget_request()
        install_handlers(PREEMPTION)
    try:
        from_pictures = name == "predict" and any(argument.partition("=")[0] == "--image" for argument in arguments)
        command = import_module("gsforge.cli.generate").main if from_pictures else _load(name)
        # After the imports: Lightning adds handlers of its own where it finds none.
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        return command(arguments)
    except KeyboardInterrupt:
        _console.print("stopped")
        return INTERRUPTED
    except (argparse.ArgumentError, GsforgeError, ImportError, OSError, ValueError) as error:
        if debug:
            raise
        _report(error)
        return next((code for kind, code in _CODES.items() if isinstance(error, kind)), 1)


def _report(error: BaseException) -> None:
    message = _WORKER_TRACEBACK.sub("", str(error)).strip()
    _console.print(f"[bold red]error:[/] {escape(message)}")
    _console.print("[dim](the traceback: add --debug, or set GSFORGE_DEBUG=1)[/]")


def _load(name: str) -> Callable[[list[str]], int]:
    added = _added_commands()
    if name in LIGHTNING:
        return partial(import_module("gsforge.cli.run").main, name)
    if name in OTHERS:
        return import_module(OTHERS[name][0]).main
    if name in added:
        return added[name].load()
    close = difflib.get_close_matches(name, [*LIGHTNING, *OTHERS, *added], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise argparse.ArgumentError(None, f"there is no command {name!r}.{hint} `gsforge --help` lists the commands.")


def _added_commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _help() -> str:
    rows = [*LIGHTNING.items(), *((name, text) for name, (_, text) in OTHERS.items())]
    rows += [(name, f"see `gsforge {name} --help`") for name in _added_commands()]
    lines = [f"  {name:<10} {text}" for name, text in rows]
    return "\n".join(
        [
            "usage: gsforge COMMAND [options]   (gsforge COMMAND --help for its options)",
            "",
            *lines,
            "",
            "  --version  show the version",
            "  --debug    with a command: show the traceback of an error",
            "",
            "A training: gsforge fit --config METHOD.yaml --config TRAINER.yaml [--key value]",
        ]
    )
