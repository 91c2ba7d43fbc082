"""The `gsforge` command: training through Lightning's command line, export, reports, and commands of other packages."""

from gsforge.cli.entry import main

__all__ = ["main"]
