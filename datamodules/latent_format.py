"""The files of one object's latents in a shard: what `gsforge data encode` writes and the DataModule reads."""

from dataclasses import dataclass

import numpy as np

from datamodules.conditions import Conditions, member_name
from datamodules.samples import Members

KIND = "latents"
RECORD_SCHEMA = 1


@dataclass(frozen=True)
class LatentRecord:
    """The validated `record.json` of one object's latents.

    Attributes:
        tokens: numbers M of latent tokens that are there.
        turns: quarter turns of the object, from x to y, that are there for each of them.
        channels: channels C of a token.
        vae: tells the encoders apart: the beginning of their checkpoint's sha256.
        conditions: the condition views.
    """

    tokens: tuple[int, ...]
    turns: tuple[int, ...]
    channels: int
    vae: str
    conditions: Conditions

    @classmethod
    def read(cls, members: Members) -> "LatentRecord":
        """Read a record.

        Args:
            members: files of the sample.

        Returns:
            The record.

        Raises:
            SampleError: if it is of another version, incomplete, or its conditions are no cameras.
        """
        content = members.decode("record.json")
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != RECORD_SCHEMA:
            raise members.error(f"record has schema {schema!r}, this gsforge reads {RECORD_SCHEMA}")
        try:
            return cls(
                tokens=tuple(int(count) for count in content["tokens"]),
                turns=tuple(int(turns) for turns in content["turns"]),
                channels=int(content["channels"]),
                vae=str(content["vae"]),
                conditions=Conditions.from_record(content),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise members.error(f"record is incomplete: {type(error).__name__}: {error}") from error

    def members(self) -> set[str]:
        """Names of the members that belong to it.

        Returns:
            Names without the sample's key.
        """
        latents = {latent_name(count, turns) for count in self.tokens for turns in self.turns}
        return latents | {"record.json"} | {member_name(view) for view in range(len(self.conditions))}


def latent_name(tokens: int, turns: int) -> str:
    """Name of the member that holds one latent.

    Args:
        tokens: number M of latent tokens.
        turns: quarter turns of the object.

    Returns:
        The name, without the sample's key.
    """
    return f"latent.{tokens}.{turns}.npy"


def read_latent(members: Members, record: LatentRecord, tokens: int, turns: int) -> np.ndarray:
    """Decode one latent.

    Args:
        members: files of the sample.
        record: its record.
        tokens: number M of latent tokens.
        turns: quarter turns of the object.

    Returns:
        [2, M, C] float16: mean and log-variance.

    Raises:
        SampleError: if it is missing, damaged, of another shape or type, or not finite.
    """
    name = latent_name(tokens, turns)
    latent = members.array(name, (2, tokens, record.channels), np.float16)
    if not np.isfinite(latent).all():
        raise members.error(f"{name} holds NaN or infinite values")
    return latent
