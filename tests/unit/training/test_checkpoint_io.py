import resource
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gsforge.training.checkpoint_files import (
    newest_checkpoint,
    read_checkpoint,
    replace_link,
    sound_checkpoint,
    tensor_bytes,
    verify_checkpoint,
)
from gsforge.training.checkpoint_io import BackgroundCheckpointIO, write_file
from gsforge.training.errors import CheckpointError


class Foreign:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.fixture
def checkpoint_io() -> Iterator[BackgroundCheckpointIO]:
    found = BackgroundCheckpointIO()
    yield found
    found.teardown()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files may have no more than `size` bytes: writing stops half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(checkpoint_io: BackgroundCheckpointIO, tmp_path: Path) -> None:
    saved = {"weights": torch.arange(5.0), "step": 3, "nested": [{"a": torch.ones(2)}]}
    checkpoint_io.save_checkpoint(saved, tmp_path / "new" / "a.ckpt")
    checkpoint_io.wait()
    loaded = checkpoint_io.load_checkpoint(tmp_path / "new" / "a.ckpt")
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    assert names(tmp_path / "new") == ["a.ckpt"]


def test_training_goes_on_while_a_copy_is_written(checkpoint_io: BackgroundCheckpointIO, tmp_path: Path) -> None:
    weights, counters = torch.zeros(1000), {"step": 1}
    begun, go_on = threading.Event(), threading.Event()

    def write(copy: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(60)
        write_file(copy, tmp_path / "a.ckpt")

    checkpoint_io.save({"weights": weights, "counters": counters}, write)
    assert begun.wait(60), "it is written by another thread"
    weights += 1
    counters["step"] = 2
    go_on.set()
    checkpoint_io.wait()
    torch.testing.assert_close(
        read_checkpoint(tmp_path / "a.ckpt"), {"weights": torch.zeros(1000), "counters": {"step": 1}}, rtol=0, atol=0
    )
    assert checkpoint_io.cost is not None
    assert checkpoint_io.cost.gigabytes == pytest.approx(4e-6)


def test_a_failed_write_leaves_the_previous_checkpoint(
    checkpoint_io: BackgroundCheckpointIO, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, last = tmp_path / "step-1.ckpt", tmp_path / "step-2.ckpt", tmp_path / "last.ckpt"
    checkpoint_io.save_checkpoint({"step": 1}, old)
    checkpoint_io.link(old, last)
    checkpoint_io.wait()
    with full_disk(100_000):
        checkpoint_io.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, new)
        checkpoint_io.link(new, last)
        checkpoint_io.remove_checkpoint(old)
        with pytest.raises(CheckpointError, match="written before are untouched"):
            checkpoint_io.wait()
    assert "could not write" in caplog.text
    assert read_checkpoint(last) == {"step": 1}
    assert names(tmp_path) == ["last.ckpt", "step-1.ckpt"]


def test_what_was_put_off_is_done_after_the_next_good_save(
    checkpoint_io: BackgroundCheckpointIO, tmp_path: Path
) -> None:
    paths = [tmp_path / f"step-{step}.ckpt" for step in range(3)]
    checkpoint_io.save_checkpoint({"step": 0}, paths[0])
    checkpoint_io.wait()
    with full_disk(1000):
        checkpoint_io.save_checkpoint({"weights": torch.zeros(10_000)}, paths[1])
        checkpoint_io.remove_checkpoint(paths[0])
        checkpoint_io.save_checkpoint({"weights": torch.zeros(10_000)}, paths[1])  # waits for the one before
        with pytest.raises(CheckpointError):
            checkpoint_io.wait()
    assert names(tmp_path) == ["step-0.ckpt"]
    checkpoint_io.save_checkpoint({"step": 2}, paths[2])
    checkpoint_io.wait()
    assert names(tmp_path) == ["step-2.ckpt"]


def test_too_little_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"has 0\.00 GB free"):
        write_file({"weights": torch.zeros(10)}, tmp_path / "a.ckpt")


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    write_file({"weights": torch.arange(3000.0)}, path)
    verify_checkpoint(path)
    whole = path.read_bytes()
    for place in (len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            verify_checkpoint(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="torn"):
        verify_checkpoint(path)


def test_the_newest_sound_checkpoint_is_taken_and_damaged_ones_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"step-{step:08d}.ckpt" for step in (2, 4, 6)]
    for step, path in enumerate(paths):
        write_file({"weights": torch.full((1000,), step)}, path)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:2000] + b"x" + whole[2001:])
    paths[2].write_bytes(whole[:1000])
    assert newest_checkpoint(tmp_path) == paths[1], "a torn file is seen without reading it"
    assert sound_checkpoint(tmp_path) == paths[0]
    assert names(tmp_path) == [paths[0].name, f"{paths[1].name}.damaged", f"{paths[2].name}.damaged"]
    assert caplog.text.count("the one before is used") == 2
    paths[0].write_bytes(b"")
    for choose in (newest_checkpoint, sound_checkpoint):
        with pytest.raises(CheckpointError, match="all checkpoints"):
            choose(tmp_path)


def test_foreign_objects_are_refused_and_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": Foreign()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="refused"):
        BackgroundCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert "executed" not in capsys.readouterr().out


def test_missing_damaged_and_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save({"weights": torch.zeros(10_000)}, tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save([1, 2], tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "b.ckpt")


def test_a_link_moves_from_one_file_to_the_next(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        replace_link(tmp_path / name, tmp_path / "last")
        assert (tmp_path / "last").read_text() == name
        assert (tmp_path / "last").readlink() == Path(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "last"]


def test_shared_tensors_count_once() -> None:
    weights = torch.zeros(100)
    assert tensor_bytes({"a": weights, "b": [weights[:50], (torch.zeros(10),)], "c": 3}) == 440
