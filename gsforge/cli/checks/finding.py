"""What a check found, and how checks are run so that none of them can stop the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
Check = Callable[[], "Finding | list[Finding]"]


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: what was looked at.
        status: `problem` stops a training, `warning` may slow or spoil it.
        found: what is there.
        fix: what to do, in one line; empty where all is well.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def run_checks(checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    """Run checks one after the other.

    Args:
        checks: name and function of each.

    Returns:
        Their findings; a check that fails itself is a problem that names its error.
    """
    findings: list[Finding] = []
    for name, check in checks:
        try:
            found = check()
        except Exception as error:  # noqa: BLE001 (a broken machine breaks checks in any way, and the others must run)
            reason = " ".join(str(error).split())[:300]
            fix = "see the error; where the check itself is wrong, report it"
            found = Finding(name, "problem", f"the check failed: {type(error).__name__}: {reason}", fix)
        findings += found if isinstance(found, list) else [found]
    return findings
