"""The benchmark of the data: equal work for all contenders, a server that waits and honours ranges, a whole report."""

import json
import multiprocessing
import re
import time
from collections import Counter
from itertools import islice, product
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch

from benchmarks.speed import data, data_sets
from benchmarks.speed.data_parts import PARTS
from benchmarks.speed.data_peers import contenders, own_loader, stream_loader
from benchmarks.speed.data_raw import decode_raw, read_raw, shards_of
from benchmarks.speed.data_server import serve
from benchmarks.speed.data_sets import SetSize, Work, drop, files_of, make_set, resident, warm

SIZE = SetSize(objects=3, views=3, size=16, points=64, shards=3, shard_samples=4)
ALL = Work(views=3, points=64, size=16, batch=4, buffer=4)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def small(sets: Path) -> Path:
    return make_set(sets, SIZE)


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


def contents(loader, batches: int) -> dict[str, float]:
    """Sum of what was seen of each object in one pass; with all views and points the draws do not show."""
    sums = {}
    for batch in islice(loader, batches):
        for number, key in enumerate(batch["key"]):
            parts = [batch[name][number].double().sum() for name in ("images", "depths", "normals", "points")]
            sums[key] = float(torch.stack(parts).sum())
    return sums


def test_all_contenders_give_the_same_samples(small: Path) -> None:
    folder = str(small)
    own, streamed = contents(own_loader(folder, ALL, 0), 3), contents(stream_loader(folder, ALL, 0), 3)
    raw = {members.key: members for members in read_raw(shards_of(folder))}
    assert len(own) == SIZE.samples
    assert sorted(own) == sorted(streamed) == sorted(raw)
    assert streamed == pytest.approx(own, rel=1e-9)
    for key, members in raw.items():
        tensors = ALL.assemble(members, np.random.RandomState(1))
        parts = [tensors[name].double().sum() for name in ("images", "depths", "normals", "points")]
        assert float(torch.stack(parts).sum()) == pytest.approx(own[key], rel=1e-9)


def test_raw_decodes_what_the_assembler_decodes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members, work = next(read_raw(shards_of(str(small)))), Work(views=2, points=8, size=16, batch=4)
    decoded: list[str] = []
    decode = type(members).decode
    monkeypatch.setattr(type(members), "decode", lambda self, name: (decoded.append(name), decode(self, name))[1])
    work.assemble(members, np.random.RandomState(5))
    assembled, decoded[:] = Counter(decoded), []
    decode_raw(members, work, np.random.RandomState(5))
    assert Counter(decoded) == assembled
    assert len(decoded) == 1 + 3 + 2 * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_contenders_give_batches_without_end_and_leave_no_process(small: Path, workers: int) -> None:
    for contender in contenders():
        with contender.open(str(small), ALL, workers) as batches:
            keys = [key for batch in islice(batches, 5) for key in batch]
        assert len(keys) == 20
        assert multiprocessing.active_children() == []


def test_the_server_waits_and_honours_ranges(small: Path) -> None:
    shard = sorted(small.glob("*.tar"))[0]
    content = shard.read_bytes()
    with serve(small, latency=0.15) as address:
        url = f"{address}/{shard.name}"
        started = time.perf_counter()
        with urlopen(Request(url, headers={"Range": "bytes=512-1535"})) as answer:
            assert (answer.status, answer.read()) == (206, content[512:1536])
            assert answer.headers["Content-Range"] == f"bytes 512-1535/{len(content)}"
        assert 0.15 < time.perf_counter() - started < 2
        with urlopen(url) as answer:
            assert (answer.status, answer.read()) == (200, content)
        for asked, status in ((f"bytes={len(content)}-", 416), ("", 404)):
            with pytest.raises(HTTPError, match=str(status)):
                urlopen(Request(url if asked else f"{url}.old", headers={"Range": asked} if asked else {}))
        assert sorted(members.key for members in read_raw(shards_of(address))) == sorted(
            members.key for members in read_raw(shards_of(str(small)))
        )


def test_the_cache_is_seen_to_hold_files_and_to_forget_them(small: Path) -> None:
    files = files_of(small)
    warm(files)
    assert resident(files) == 1
    for _ in range(60):  # pages that were just read or written may be in use for a moment
        drop(files)
        if (left := resident(files)) < 0.5:
            return
        time.sleep(0.05)
    if left == 1:
        pytest.skip("this file system does not forget")
    pytest.fail(f"the page cache still holds {left:.0%}")


def test_a_set_is_made_once(sets: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sets, "gsforge_data", lambda words: 1)
    assert make_set(sets, SIZE) == small
    with pytest.raises(SystemExit, match="toy objects could not be made"):
        make_set(sets / "elsewhere", SIZE)


@pytest.mark.usefixtures("one_thread")
def test_a_tiny_run(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = data.Plan(SIZE, ALL, (0,), samples=4, rounds=1, http_rounds=1, shards=SIZE, resumes=1)
    results = data.run(plan, sets, tmp_path, latency_ms=5)

    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"ratio raw samples/s \d+\.\d\d", last)
    assert float(last.split()[-1]) == pytest.approx(results.headline.ratio("raw"), abs=0.006)
    record = json.loads((tmp_path / "data.json").read_text())
    rows = [(speed["place"], speed["cold"], speed["workers"]) for speed in record["speeds"]]
    assert rows == list(product(("local", "http"), (False, True), (0,)))
    for speed in record["speeds"]:
        assert list(speed["samples_per_s"]) == ["gsforge", "raw", "raw+tensors", "webdataset"]
        assert all(len(rates) == 1 and rates[0] > 0 for rates in speed["samples_per_s"].values())
    assert list(record["parts"]["warm"]) == list(record["parts"]["cold"]) == list(PARTS)
    assert all(record["parts"]["warm"][part] > 0 for part in PARTS[:-1])
    assert [(resume["cold"], resume["workers"]) for resume in record["resumes"]] == [(False, 0), (True, 0)]
    page = (tmp_path / "data.md").read_text()
    for part in (*PARTS, "Samples a second", "What each does", "Resume", "| http | cold | 0 |", "noise"):
        assert part in page
