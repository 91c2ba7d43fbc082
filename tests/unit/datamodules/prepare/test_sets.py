import json
import resource
import sys
import textwrap
from dataclasses import replace

import pytest
from rich.console import Console

from datamodules.errors import DataError
from datamodules.index import read_index
from datamodules.prepare.plan import SetPlan, Source
from datamodules.prepare.sets import SetSummary, write_set
from datamodules.shards import EncodedSample


def numbers(count):
    return [Source(f"n_{number:03d}", f"raw/{number}.txt", number) for number in range(count)]


def plan_in(folder, count=10, shard_size=4, **settings):
    return SetPlan(folder, "numbers", {"scale": 2} | settings, numbers(count), shard_size)


def double(source):
    if source.number == 5:
        raise ValueError("five is not liked")
    return EncodedSample(source.key, {"number.json": json.dumps(source.number * 2).encode()})


def write(plan, recipe=double, **options):
    return write_set(plan, recipe, (ValueError,), Console(quiet=True), **{"workers": 0, "timeout": 60} | options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_set_is_written(tmp_path):
    assert write(plan_in(tmp_path / "set")) == SetSummary(shards=3, planned=3, samples=9, failures=1)
    index = read_index(str(tmp_path / "set"), "numbers")
    assert [len(shard.samples) for shard in index.shards] == [4, 3, 2]
    failure = json.loads((tmp_path / "set" / "failures.jsonl").read_text())
    assert failure == {"source": "raw/5.txt", "key": "n_005", "reason": "five is not liked"}


@pytest.mark.parametrize("stop_at", [0, 3, 4, 6, 9])
def test_a_stopped_run_continues_without_doing_anything_twice(tmp_path, stop_at):
    write(plan_in(tmp_path / "whole"))
    plan = plan_in(tmp_path / "set")

    def interrupted(source):
        if source.number == stop_at:
            raise KeyboardInterrupt
        return double(source)

    with pytest.raises(KeyboardInterrupt):
        write(plan, interrupted)
    assert not (plan.out / "index.json").exists()
    assert len([name for name in files(plan.out) if name.endswith(".tar")]) == stop_at // 4
    made = []

    def noted(source):
        made.append(source.number)
        return double(source)

    assert write(plan, noted).complete
    assert made == list(range(stop_at // 4 * 4, 10))
    assert files(plan.out) == files(tmp_path / "whole")
    made.clear()
    assert write(plan, noted).complete
    assert made == []


def test_a_full_disk_costs_the_shard_in_hand_alone(tmp_path):
    def wordy(source):
        if source.number == 5:
            raise ValueError("five is not liked" * 2000)
        return double(source)

    write(plan_in(tmp_path / "whole"), wordy)
    plan = plan_in(tmp_path / "set")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # room for the second shard, not for its manifest
    try:
        with pytest.raises(DataError, match=r"cannot write .*shard-000001\.json: File too large.* run the same"):
            write(plan, wordy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(plan.out.rglob("*.tmp"))
    kept = (plan.out / "shard-000000.tar").stat().st_mtime_ns
    assert write(plan, wordy).complete
    assert (plan.out / "shard-000000.tar").stat().st_mtime_ns == kept
    assert files(plan.out) == files(tmp_path / "whole")


def test_a_shard_without_a_manifest_or_of_another_size_is_made_again(tmp_path):
    plan = plan_in(tmp_path / "set")
    write(plan)
    whole = files(plan.out)
    plan.manifest(0).unlink()
    (plan.out / "shard-000001.tar").write_bytes(b"cut off")
    (plan.out / ".shard-000001.tar.elsewhere-1.tmp").write_bytes(b"left by a killed process")
    write(plan)
    assert files(plan.out) == whole


def test_ranks_share_the_work_and_the_last_writes_the_index(tmp_path):
    write(plan_in(tmp_path / "whole"))
    plan = plan_in(tmp_path / "set")
    assert write(plan, rank=1, world=2) == SetSummary(shards=1, planned=3, samples=3, failures=1)
    assert not (plan.out / "index.json").exists()
    assert write(plan, rank=0, world=2).complete
    assert files(plan.out) == files(tmp_path / "whole")


def test_other_settings_or_sources_are_refused_with_the_difference(tmp_path):
    plan = plan_in(tmp_path / "set")
    write(plan)
    with pytest.raises(DataError, match=r"begun with other settings.*\n  scale: 2 there, 3 now\nRepeat"):
        write(plan_in(plan.out, scale=3))
    with pytest.raises(DataError, match="sources: 10 there, 11 now"):
        write(plan_in(plan.out, count=11))
    renamed = [source._replace(name=f"other/{source.name}") for source in plan.sources]
    with pytest.raises(DataError, match="sources_sha256"):
        write(replace(plan, sources=renamed))


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="is not empty and was not begun by this command"):
        write(plan_in(tmp_path))


def test_a_shard_of_failures_has_no_file_and_an_empty_set_is_an_error(tmp_path):
    def picky(source):
        if source.number < 4:
            raise ValueError("too small")
        return double(source)

    write(plan_in(tmp_path / "set"), picky)
    assert [shard.file for shard in read_index(str(tmp_path / "set")).shards] == [
        "shard-000001.tar",
        "shard-000002.tar",
    ]
    with pytest.raises(DataError, match=r"none of 4 sources could be used; see .*failures\.jsonl"):
        write(plan_in(tmp_path / "none", count=4), picky)


CRASHING = """
    import os, signal, time
    from datamodules.shards import EncodedSample
    def recipe(source):
        if source.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if source.number == 2:
            raise ZeroDivisionError("a fault of the parser")
        if source.number == 3:
            time.sleep(60)
        return EncodedSample(source.key, {"number.json": b"0"})
"""


def test_a_crashing_killed_or_hanging_source_does_not_lose_the_others(tmp_path, monkeypatch):
    (tmp_path / "crashing_recipe.py").write_text(textwrap.dedent(CRASHING))
    monkeypatch.syspath_prepend(tmp_path)
    import crashing_recipe

    summary = write(plan_in(tmp_path / "set", count=6), crashing_recipe.recipe, workers=2, timeout=2)
    del sys.modules["crashing_recipe"]
    assert summary == SetSummary(shards=2, planned=2, samples=3, failures=3)
    lines = (tmp_path / "set" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [
        "its process ended with exit code -9",
        "ZeroDivisionError: a fault of the parser",
        "took longer than 2 s",
    ]
