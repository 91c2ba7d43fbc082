"""Fixtures shared by all tests, and the rule by which tests that need a GPU are skipped."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: that with the tests on SLURM waits most of its time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Every test where there is room, but those on SLURM, which share a cluster, in one process.

    So are those of a contract that try the same configuration, which they train once. The marks that xdist has for this
    do nothing under pytest 9.2, which no longer lets it change the names of tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group = re.match(r"tests/(slurm|contract/.*\[(\w+/\w+))", nodeid)
            return nodeid if group is None else group[2] or group[1]

    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; torch sees none"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data sets beside the repository; tests that read real files are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder


@pytest.fixture(scope="session")
def toy_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 8 toy objects in 2 shards: 6 views of 32 px, 1024 points. Shared: copy it before changing a file."""
    from datamodules.commands import main

    folder = tmp_path_factory.mktemp("toy_objects") / "set"
    options = "--count 8 --views 6 --size 32 --points 1024 --shard-size 4 --seed 1"
    assert main(["toy", "objects", "--out", str(folder), *options.split()]) == 0
    return folder
