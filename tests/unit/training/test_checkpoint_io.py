import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from gsforge.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint, replace_link, tensor_bytes
from gsforge.training.errors import CheckpointError


class Foreign:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_round_trip(tmp_path: Path) -> None:
    saved = {"weights": torch.arange(5.0), "step": 3, "nested": [{"a": torch.ones(2)}]}
    AtomicCheckpointIO().save_checkpoint(saved, tmp_path / "new" / "a.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "new" / "a.ckpt")
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.ckpt"]


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk: the write stops half way
    try:
        with pytest.raises(CheckpointError, match="written before are untouched"):
            io.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert io.load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_too_little_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"has 0\.00 GB free"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10)}, tmp_path / "a.ckpt")


def test_foreign_objects_are_refused_and_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": Foreign()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="refused"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
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
