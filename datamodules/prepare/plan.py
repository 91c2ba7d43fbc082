"""What a set of shards is to be made of."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

_SCHEMA = 1
STATE_NAME = ".prepare"


class Source(NamedTuple):
    """One sample to be made.

    Attributes:
        key: its name in the set.
        name: where it comes from: a path below the raw folder, or the name of a generated object.
        number: its place in the list of sources.
    """

    key: str
    name: str
    number: int


@dataclass(frozen=True)
class SetPlan:
    """What a set is made of; a run that continues must have the same.

    Attributes:
        out: folder of the set.
        kind: what a sample is.
        settings: everything that decides on the content of the samples, as JSON values.
        sources: all samples of the set, whichever rank makes them.
        shard_size: samples in a shard; or of each shard, where the settings say what decides on them.
    """

    out: Path
    kind: str
    settings: dict[str, Any]
    sources: Sequence[Source]
    shard_size: int | Sequence[int]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._bounds) - 1

    @cached_property
    def _bounds(self) -> list[int]:
        """Where each shard's sources begin, and where the last one's end."""
        if isinstance(self.shard_size, int):
            return [*range(0, len(self.sources), self.shard_size), len(self.sources)]
        return list(accumulate(self.shard_size, initial=0))

    def shard_sources(self, number: int) -> Sequence[Source]:
        """The sources of one shard.

        Args:
            number: of the shard, 0 <= number < shards.

        Returns:
            Its sources; the last shard may have fewer than `shard_size`.
        """
        return self.sources[self._bounds[number] : self._bounds[number + 1]]

    def manifest(self, number: int) -> Path:
        """Where the manifest of a finished shard lies.

        Args:
            number: of the shard, 0 <= number < shards.

        Returns:
            The path, whether or not the file is there.
        """
        return self.out / STATE_NAME / f"shard-{number:06d}.json"

    def describe(self) -> dict[str, Any]:
        """What must not change between two runs into the same folder.

        Returns:
            The settings with the kind, shard size, number and hash of the sources, as JSON values.
        """
        names = hashlib.sha256("\n".join(source.name for source in self.sources).encode()).hexdigest()
        return {
            "schema": _SCHEMA,
            "kind": self.kind,
            "shard_size": self.shard_size if isinstance(self.shard_size, int) else "of the source",
            "sources": len(self.sources),
            "sources_sha256": names,
            **self.settings,
        }
