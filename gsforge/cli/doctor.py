"""`gsforge doctor`: what is wrong with this machine, and how to mend it."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gsforge.cli.checks import gpu, host, software, storage, tracking
from gsforge.cli.checks.finding import Check, Finding, run_checks
from gsforge.cli.checks.wanted import Wanted, read_wanted

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def main(argv: Sequence[str]) -> int:
    """Run `gsforge doctor`.

    Args:
        argv: arguments after `gsforge doctor`.

    Returns:
        Exit code: 0, or 1 when there is a problem.
    """
    options = _parser().parse_args(argv)
    findings = run_checks(checks(read_wanted(options.config, options.run_dir), options.network))
    console = Console(highlight=False)
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if rank == 0:
        show(findings, console if console.is_terminal else Console(highlight=False, width=160))
    else:  # the first rank shows the table; of the others, what is wrong there alone
        for finding in findings:
            if finding.status != "ok":
                where = f"rank {rank} on {socket.gethostname()}"
                line = f"{where}: {finding.status}: {finding.name}: {finding.found}; {finding.fix}"
                console.print(line, markup=False, soft_wrap=True)
    return int(any(finding.status == "problem" for finding in findings))


def checks(wanted: Wanted, network: bool) -> list[tuple[str, Check]]:
    """All checks, in the order of the table.

    Args:
        wanted: what a training will ask for.
        network: whether to try the network too.

    Returns:
        Name and function of each.
    """
    found: list[tuple[str, Check]] = [
        ("Python", software.python_version),
        ("packages", software.packages),
        ("torch", software.torch_build),
        ("GPUs", partial(gpu.gpus, wanted)),
        ("NCCL", partial(gpu.nccl, wanted)),
        ("gsplat", lambda: software.gsplat_build(gpu.sees_gpu())),
        ("C++ compiler", partial(software.compiler, wanted)),
        ("CPU renderer", software.cpu_kernels),
        ("disk space", partial(storage.free_space, wanted)),
        ("saving", partial(storage.saving, wanted)),
        ("cores", partial(host.cores, wanted)),
        ("open files", host.open_files),
        ("OMP_NUM_THREADS", partial(host.threads, wanted)),
        ("W&B", partial(tracking.wandb, wanted)),
    ]
    if sys.platform == "linux":
        found.append(("filesystem", partial(storage.filesystem, wanted)))
        found.append(("shared memory", partial(host.shared_memory, wanted)))
    return [*found, ("network", _network)] if network else found


def show(findings: Sequence[Finding], console: Console) -> None:
    """Show findings as a table.

    Args:
        findings: of the checks.
        console: where.
    """
    table = Table()
    for name in ("check", "status", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.status]
        table.add_row(finding.name, f"[{colour}]{finding.status}[/]", escape(finding.found), escape(finding.fix))
    console.print(table)
    counts = {status: sum(finding.status == status for finding in findings) for status in _COLOURS}
    console.print(f"problems: {counts['problem']}, warnings: {counts['warning']}, ok: {counts['ok']}")


def _network() -> Finding:
    from gsforge.cli.checks import network

    return network.between_ranks() if network.launched() else network.loopback()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsforge doctor",
        description="Check this machine: software, GPUs, disk, limits, tracking and network. The exit code is 1 when "
        "something stops a training.",
        allow_abbrev=False,
    )
    parser.add_argument("--run_dir", type=Path, help="folder of the run, whose disk is tried")
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="configuration that is to run; may be given repeatedly"
    )
    parser.add_argument(
        "--network", action="store_true",
        help="time a sum over the ranks of srun or torchrun; alone, over two processes of this machine",
    )  # fmt: skip
    return parser
