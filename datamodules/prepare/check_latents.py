"""What `gsforge data check` looks for in the latents of an object."""

from collections.abc import Iterator

from datamodules.latent_format import LatentRecord, read_latent
from datamodules.prepare.check_conditions import check_conditions
from datamodules.samples import Members


def check_latents(members: Members) -> Iterator[str]:
    """Problems of the latents of one object: members, shapes, values, and condition views.

    Args:
        members: the files of the sample.

    Yields:
        One line for each problem; nothing if the sample is sound.

    Raises:
        SampleError: if a member cannot be decoded, has another shape or type, or is not finite.
    """
    record = LatentRecord.read(members)
    expected = record.members()
    if missing := sorted(expected - members.content.keys()):
        yield f"missing members: {', '.join(missing)}"
    if extra := sorted(members.content.keys() - expected):
        yield f"unknown members: {', '.join(extra)}"
    for count in record.tokens:
        for turns in record.turns:
            read_latent(members, record, count, turns)
    yield from check_conditions(members, record.conditions)
