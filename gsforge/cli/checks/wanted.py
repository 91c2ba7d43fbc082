"""What the checks need to know of a training, read from its configuration without building anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Wanted:
    """What a training will ask of the machine.

    Attributes:
        run_dir: where it writes.
        workers: processes of a loader.
        gpu: whether it needs an NVIDIA GPU.
        devices: processes on each machine, where the configuration gives a number.
        nodes: number of machines.
        wandb: whether it logs to W&B.
        compiles: whether it compiles its networks.
        configured: whether there is a configuration at all.
    """

    run_dir: Path = Path()
    workers: int = 0
    gpu: bool = False
    devices: int = 1
    nodes: int = 1
    wandb: bool = False
    compiles: bool = False
    configured: bool = False


def read_wanted(configs: Sequence[Path], run_dir: Path | None = None) -> Wanted:
    """Read configuration files, later ones over earlier ones.

    Args:
        configs: YAML files, as `gsforge fit` takes them.
        run_dir: overrides theirs; the current folder where nobody says.

    Returns:
        What they ask for.

    Raises:
        OSError: if one cannot be read.
        ValueError: if one is no YAML file.
    """
    merged: dict[str, Any] = {}
    for path in configs:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not a YAML file: {error}") from error
        merged = _merge(merged, content if isinstance(content, dict) else {})
    trainer = merged.get("trainer") or {}
    data = (merged.get("data") or {}).get("init_args") or {}
    folder = run_dir if run_dir is not None else Path(merged.get("run_dir") or ".")
    return Wanted(
        run_dir=folder,
        workers=_number(data.get("num_workers"), 0),
        gpu=trainer.get("accelerator") in ("gpu", "cuda"),
        devices=_number(trainer.get("devices"), 1),
        nodes=_number(trainer.get("num_nodes"), 1),
        wandb=any(str(value).endswith("WandbLogger") for value in _values(trainer.get("logger"), "class_path")),
        compiles=any(value is True for value in _values(merged.get("model"), "compile_blocks")),
        configured=bool(configs),
    )


def _merge(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in before if isinstance(before[key], dict) and isinstance(after.get(key), dict)}
    return before | after | {key: _merge(before[key], after[key]) for key in both}


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _values(tree: Any, name: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    for entry in tree if isinstance(tree, list) else []:
        yield from _values(entry, name)
    for key, value in tree.items() if isinstance(tree, dict) else []:
        if key == name:
            yield value
        yield from _values(value, name)
