"""What the ranks of a hung run tell each other and the user: where each stands, through files alone."""

import faulthandler
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gsforge.core.files import write_text

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Position:
    """Where a rank stands.

    Attributes:
        step: optimiser steps taken.
        phase: what it does: starting, waiting for data, forward, backward, optimiser, validation, saving, ending.
        batch: number of the batch, of training or validation.
        events: times that it moved since it started; all ranks of a run move alike.
    """

    step: int
    phase: str
    batch: int
    events: int

    def __str__(self) -> str:
        return f"{self.phase}, step {self.step}, batch {self.batch}"


@dataclass(frozen=True)
class Notice:
    """What a rank that does not move tells the others.

    Attributes:
        rank: its number.
        host: its machine.
        position: where it stands.
        collectives: operations between ranks that it has begun.
        hung: whether it has waited for long enough and written its stacks.
    """

    rank: int
    host: str
    position: Position
    collectives: int
    hung: bool

    @property
    def progress(self) -> tuple[int, int, int]:
        """How far it came in what all ranks go through."""
        return self.position.step, self.position.events, self.collectives


class HangReport:
    """The folder `hang` of a run: `progress-<rank>.json` while a rank does not move, `rank-<rank>.txt` its stacks.

    Args:
        folder: on a file system that all ranks share.
        rank: number of this process.
        ranks: number of all.
    """

    def __init__(self, folder: Path, rank: int, ranks: int):
        self.folder, self.rank, self.ranks = folder, rank, ranks
        self.host = socket.gethostname()

    def forget(self) -> None:
        """Remove what this rank said in an earlier attempt; stacks stay for who reads them."""
        self._notice_path(self.rank).unlink(missing_ok=True)

    def notify(self, position: Position, collectives: int, hung: bool) -> None:
        """Tell the other ranks where this one stands.

        Args:
            position: where.
            collectives: operations between ranks that it has begun.
            hung: whether it has given up.

        Raises:
            OSError: if the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        notice = Notice(self.rank, self.host, position, collectives, hung)
        write_text(self._notice_path(self.rank), json.dumps(asdict(notice)) + "\n")

    def write_stacks(self, position: Position, seconds: float) -> None:
        """Write where each of this process's threads stands, in Python.

        Args:
            position: where the main thread was last seen.
            seconds: since then.

        Raises:
            OSError: if the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank-{self.rank}.txt").open("w", encoding="utf-8") as file:
            file.write(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}  rank {self.rank} of {self.ranks} on {self.host}, process "
                f"{os.getpid()}\nno progress for {seconds:.0f} s: {position}\n\n"
            )
            file.flush()
            faulthandler.dump_traceback(file)

    def wait_for_others(self, seconds: float) -> None:
        """Wait until all ranks have written their stacks, for a launcher ends them all as soon as one has ended.

        Args:
            seconds: longest wait.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            notices = self.notices()
            if len(notices) == self.ranks and all(notice.hung for notice in notices):
                return
            time.sleep(_POLL_SECONDS)

    def notices(self) -> list[Notice]:
        """What the ranks said.

        Returns:
            A notice of each rank that does not move, in the order of ranks.
        """
        found = []
        for rank in range(self.ranks):
            try:
                values = json.loads(self._notice_path(rank).read_text(encoding="utf-8"))
                found.append(Notice(**values | {"position": Position(**values["position"])}))
            except (OSError, ValueError, TypeError, KeyError):  # absent, or of another version
                continue
        return found

    def verdict(self) -> str:
        """Name the ranks that the others wait for.

        Returns:
            A sentence.
        """
        notices = self.notices()
        silent = sorted(set(range(self.ranks)) - {notice.rank for notice in notices})
        if silent:
            return f"No word from {_ranks(silent)}: gone, or moving while the others wait"
        last = min(notice.progress for notice in notices)
        slowest = [notice for notice in notices if notice.progress == last]
        if len(slowest) == self.ranks > 1:
            return f"All {self.ranks} ranks stand at {slowest[0].position}: compare their stacks"
        hosts = ", ".join(dict.fromkeys(one.host for one in slowest))
        return f"Slowest: {_ranks([one.rank for one in slowest])} on {hosts}, at {slowest[0].position}"

    def _notice_path(self, rank: int) -> Path:
        return self.folder / f"progress-{rank}.json"


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
