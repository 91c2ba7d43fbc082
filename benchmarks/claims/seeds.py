"""Measures one seed after the other, and keeps what each gave until all are there: some take half an hour."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gsforge.core.files import write_text


class SeedFile:
    """Numbers of the seeds measured so far, in a file that is removed at the end.

    Args:
        path: of the file.
        conditions: of the measurement, in plain values; numbers measured under others are not taken. None: of unknown
            code, so nothing is kept.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any] | None):
        self._path, self._conditions = path, conditions
        self._seeds: dict[str, dict[str, Any]] = {}
        if conditions is not None and path.exists():
            content = json.loads(path.read_text())
            if content["conditions"] == conditions:
                self._seeds = content["seeds"]

    def measure(
        self, seeds: Sequence[int], measure: Callable[[int], dict[str, float]]
    ) -> Iterator[tuple[int, dict[str, float], float]]:
        """Measure what is not there yet.

        Args:
            seeds: to measure.
            measure: seed to numbers by name.

        Yields:
            Each seed, its numbers, and the seconds that they took.
        """
        for seed in seeds:
            if str(seed) not in self._seeds:
                started = time.perf_counter()
                self._keep(seed, measure(seed), time.perf_counter() - started)
            yield seed, self._seeds[str(seed)]["numbers"], self._seeds[str(seed)]["seconds"]

    def _keep(self, seed: int, numbers: dict[str, float], seconds: float) -> None:
        self._seeds[str(seed)] = {"numbers": numbers, "seconds": seconds}
        if self._conditions is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({"conditions": self._conditions, "seeds": self._seeds}))

    def remove(self) -> None:
        """Remove the file, where there is one."""
        self._path.unlink(missing_ok=True)
