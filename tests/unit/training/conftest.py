import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsforge.cli import main
from gsforge.training.stopping import SIGNALS

HERE = Path(__file__).parent
TRAINER = HERE.parents[2] / "configs" / "trainer" / "cpu.yaml"
Command = Callable[..., int]
sys.path.insert(0, str(HERE))  # `class_path: tiny.TinyModel` in tiny.yaml


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def gsforge(run_dir: Path) -> Iterator[Command]:
    """Run a command with tiny.yaml and configs/trainer/cpu.yaml, in this process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(command: str, *options: str, folder: Path = run_dir) -> int:
        files = ["--config", str(HERE / "tiny.yaml"), "--config", str(TRAINER)]
        return main([command, *files, "--run_dir", str(folder), *options])

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
