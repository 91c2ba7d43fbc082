"""Weights & Biases: whether it is there and logged in. No secret is read out."""

import netrc
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse

from gsforge.cli.checks.finding import Finding
from gsforge.cli.checks.wanted import Wanted

_QUIET_MODES = ("offline", "disabled", "dryrun")


def wandb(wanted: Wanted) -> Finding:
    """Whether a run that logs to W&B can.

    Args:
        wanted: whether it does.

    Returns:
        The finding.
    """
    name = "W&B"
    try:
        found = f"wandb {version('wandb')}"
    except PackageNotFoundError:
        if wanted.wandb:
            return Finding(name, "problem", "not installed, and a logger uses it", "pip install 'gsforge[wandb]'")
        return Finding(name, "ok", "not installed; CSV and TensorBoard need no account")
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in _QUIET_MODES:
        return Finding(name, "ok", f"{found}, WANDB_MODE={mode}: nothing is sent")
    if account := _account():
        return Finding(name, "ok", f"{found}, {account}")
    if not wanted.wandb:
        return Finding(name, "ok", f"{found}, not logged in, and no logger uses it")
    return Finding(name, "warning", f"{found}, not logged in", "wandb login, or export WANDB_MODE=offline")


def _account() -> str:
    """Where the key is that wandb would use."""
    if os.environ.get("WANDB_API_KEY"):
        return "a key in WANDB_API_KEY"
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if not path.is_file():
        return ""
    try:
        return f"a key for {host} in {path}" if netrc.netrc(path).authenticators(host) else ""
    except netrc.NetrcParseError as error:
        return f"a {path} that cannot be read (line {error.lineno})"
