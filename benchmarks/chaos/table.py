"""What was done to the runs, and what came of it."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from benchmarks.chaos.trials import CUT, FULL, IMPORT, IN_TRAINING, SAVE_EVERY, SIGNALS, START, STEPS, Trial


def table(trials: list[Trial]) -> tuple[list[str], list[list[str]]]:
    """What was done, by moment.

    Args:
        trials: at least one.

    Returns:
        Names of the columns, and rows of text.
    """
    blows = [blow for trial in trials for blow in trial.blows]
    rows = []
    for moment in (IMPORT, START, *IN_TRAINING, FULL, CUT, "all"):
        chosen = [blow for blow in blows if moment in (blow.moment, "all")]
        by_signal = [sum(blow.action == name for blow in chosen) for name in SIGNALS]
        lost = [blow.lost for blow in chosen if blow.lost is not None and blow.action not in ("SIGTERM", "SIGUSR2")]
        rows.append(
            [moment, *map(str, by_signal), str(len(chosen) - sum(by_signal)), f"{mean(lost):.1f}" if lost else "-"]
        )
    return ["moment", "KILL", "TERM", "USR2", "other", "mean steps lost to KILL and other"], rows


def write(trials: list[Trial], command: str, seconds: float, out: Path) -> None:
    """Write `chaos.md` and `chaos.json`.

    Args:
        trials: at least one.
        command: that made them.
        seconds: that it took.
        out: folder for both.
    """
    columns, rows = table(trials)
    blows = sum(len(trial.blows) for trial in trials)
    bad = [trial for trial in trials if trial.failures]
    ranks = sum(trial.ranks > 1 for trial in trials)
    text = [
        "# Chaos\n",
        f"`{command}`: {len(trials)} trials, {ranks} of them on two ranks, {blows} disturbances, "
        f"{len(bad)} failures; {seconds / 60:.0f} minutes.\n",
        f"A run has {STEPS} steps and saves every {SAVE_EVERY}. TERM and USR2 lose none; `{IMPORT}` and `{START}` come "
        "before the first step.\n",
        *(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)),
        *(f"\nFailed: {failure}" for trial in bad for failure in trial.failures),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "chaos.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (out / "chaos.json").write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n", encoding="utf-8")
