import gc
import io
import multiprocessing
import pickle
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save as save_safetensors
from torch.utils.data import DataLoader, Dataset

from datamodules import samples
from datamodules.errors import SampleError
from datamodules.index import Index, read_index, write_index
from datamodules.loading import EvaluationDataset, RunDataset, collate, collate_evaluation
from datamodules.samples import SampleStore, parse_members
from datamodules.shards import EncodedSample, write_shard


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def image(array, kind):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def store_of(folder, *samples):
    entry = write_shard(folder / "shard-000000.tar", samples)
    write_index(folder, Index("any", (entry,)))
    return SampleStore({str(folder): read_index(str(folder))})


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_every_format_is_decoded(tmp_path):
    grey = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    rgba = np.random.default_rng(0).integers(0, 255, (4, 4, 4), dtype=np.uint8)
    arrays = {"x": np.arange(3.0)}
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    members = {
        "depth.png": image(grey, "png"),
        "color.png": image(rgba, "png"),
        "photo.jpg": image(np.full((8, 8, 3), 128, np.uint8), "jpeg"),
        "photo.webp": image(np.full((8, 8, 3), 128, np.uint8), "webp"),
        "points.npy": npy(np.arange(6, dtype=np.float32)),
        "more.npz": packed.getvalue(),
        "record.json": b'{"a": 1}',
        "weights.safetensors": save_safetensors(arrays),
    }
    found = store_of(tmp_path, EncodedSample("k", members)).read(0)
    assert found.key == "k"
    np.testing.assert_array_equal(found.decode("depth.png"), grey)
    np.testing.assert_array_equal(found.decode("color.png"), rgba)
    assert abs(int(found.decode("photo.jpg").mean()) - 128) <= 1
    assert found.decode("photo.webp").shape == (8, 8, 3)
    np.testing.assert_array_equal(found.decode("points.npy"), np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(found.decode("more.npz")["x"], arrays["x"])
    np.testing.assert_array_equal(found.decode("weights.safetensors")["x"], arrays["x"])
    assert found.decode("record.json") == {"a": 1}


@pytest.mark.parametrize("name", ["x.pyd", "x.pickle", "x.pth", "x.pt", "x.pkl", "x", "x.json.gz", "x.JSON"])
def test_a_refused_member_is_named_and_not_executed(tmp_path, name):
    trap = tmp_path / "executed"
    store = store_of(tmp_path, EncodedSample("k", {"a.json": b"1", name: pickle.dumps(Bomb(trap))}))
    with pytest.raises(SampleError, match=rf"'k' of .*shard-000000\.tar: member '{name}' is refused"):
        store.read(0)
    assert not trap.exists()


def test_a_pickle_inside_an_npy_is_not_executed(tmp_path):
    trap = tmp_path / "executed"
    hidden = npy(np.array([Bomb(trap)], dtype=object), allow_pickle=True)
    members = store_of(tmp_path, EncodedSample("k", {"points.npy": hidden})).read(0)
    with pytest.raises(SampleError, match=r"'points\.npy' is damaged"):
        members.decode("points.npy")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n broken"),
        ("a.png", image(np.zeros((64, 64), np.uint8), "png")[:60]),
        ("a.npy", npy(np.zeros(100))[:-8]),
        ("a.npy", b""),
        ("a.npz", b"PK broken"),
        ("a.npz", b"PK\x03\x04 broken"),
        ("a.npy", npy(np.zeros(8)).replace(b"(8,)", b"(9" + b"0" * 15 + b",)")),
        ("a.json", b"[" * 100_000),
        ("a.json", b"{"),
        ("a.json", b"\xff\xfe"),
        ("a.safetensors", b"\x00" * 20),
    ],
)
def test_damaged_content_is_reported(tmp_path, name, content):
    members = store_of(tmp_path, EncodedSample("k", {name: content})).read(0)
    with pytest.raises(SampleError, match=rf"'k' of .*'{name}' is damaged"):
        members.decode(name)


def test_a_missing_member_is_named(tmp_path):
    with pytest.raises(SampleError, match=r"no member 'b\.json'"):
        store_of(tmp_path, EncodedSample("k", {"a.json": b"1"})).read(0).decode("b.json")


def test_a_flipped_bit_is_found_anywhere(write_numbers):
    folder = write_numbers([2, 2])
    store = SampleStore({str(folder): read_index(str(folder))})
    path = folder / "shard-000001.tar"
    whole = path.read_bytes()
    for place in (3, 150, 512, 530):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(SampleError, match=r"'sample_0002' of .*shard-000001\.tar: checksum differs"):
            store.read(2)
        assert store.read(3).decode("number.json") == 3


def test_a_truncated_shard_is_found(write_numbers):
    folder = write_numbers([2])
    store = SampleStore({str(folder): read_index(str(folder))})
    with (folder / "shard-000000.tar").open("ab") as stream:
        stream.truncate(1300)
    assert store.read(0).decode("number.json") == 0
    with pytest.raises(SampleError, match=r"'sample_0001'.*got 276 bytes of 1024; the shard is truncated"):
        store.read(1)


def test_a_vanished_shard_is_a_sample_error(write_numbers):
    folder = write_numbers([1])
    store = SampleStore({str(folder): read_index(str(folder))})
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(SampleError, match="cannot be read: FileNotFoundError"):
        store.read(0)


def tar_of(name, kind=tarfile.REGTYPE):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return stream.getvalue()


@pytest.mark.parametrize(
    "extent", [tar_of("other.a.json"), tar_of("../k.a.json"), tar_of("k.a.json", tarfile.SYMTYPE), tar_of("k")]
)
def test_foreign_tar_entries_are_refused(extent):
    for part in (extent, extent[: tarfile.BLOCKSIZE]):  # with the end of the archive, and as in a shard
        with pytest.raises(SampleError, match=r"unexpected tar entry|refused"):
            parse_members("k", "shard.tar", part)


def test_plain_headers_are_read_as_tarfile_reads_them(tmp_path):
    content = {"a.json": b"[1]", "b.json": b"x" * 512, "c.json": b"", "d.npy": bytes(range(256)) * 9}
    entry = write_shard(tmp_path / "shard.tar", [EncodedSample("k-1", content)]).samples[0]
    extent = (tmp_path / "shard.tar").read_bytes()[entry.offset : entry.offset + entry.size]
    plain = samples._plain_files(extent)
    assert plain == list(samples._any_files(extent)) == [(f"k-1.{name}", True, data) for name, data in content.items()]
    assert parse_members("k-1", "shard.tar", extent).content == content


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_other_headers_are_left_to_tarfile(kind):
    stream, name = io.BytesIO(), "k." + "a" * 150 + ".json"
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"[1]"))
    assert samples._plain_files(stream.getvalue()) is None
    assert dict(parse_members("k", "shard.tar", stream.getvalue()).content) == {name[2:]: b"[1]"}


def test_no_tar_at_all():
    with pytest.raises(SampleError, match="broken tar content"):
        parse_members("k", "shard.tar", b"x" * 1024)


def test_several_sets_are_one_sequence(write_numbers):
    folders = [str(write_numbers([2, 1], "a")), str(write_numbers([3], "b"))]
    store = SampleStore({folder: read_index(folder) for folder in folders})
    assert len(store) == 6
    assert store.shard_sizes.tolist() == [2, 1, 3]
    assert [store.read(i).decode("number.json") for i in range(6)] == [0, 1, 2, 0, 1, 2]


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves files with support for ranges, or without where `ranges` is off; notes what was asked for."""

    asked: ClassVar[list] = []
    ranges = True

    def do_GET(self):
        path, wanted = self.translate_path(self.path), self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if self.path.startswith("/refused"):
            return self.send_error(500)
        try:
            with open(path, "rb") as stream:
                content = stream.read()
        except OSError:
            return self.send_error(404)
        if wanted and self.ranges:
            first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            content = content[first : last + 1]
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Stay silent."""


@pytest.fixture
def server(tmp_path):
    handler = type("Handler", (RangeHandler,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: handler(*args, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_http_reads_one_range_for_one_sample(write_numbers, server):
    handler, address = server
    write_numbers([2, 2])
    folder = f"{address}/numbers"
    store = SampleStore({folder: read_index(folder)})
    handler.asked.clear()
    assert store.read(3).decode("number.json") == 3
    assert handler.asked == [("/numbers/shard-000001.tar", "bytes=1024-2047")]


def number_of(members, _):
    return {"number": members.decode("number.json")}


@pytest.mark.parametrize(
    ("made_of", "collated"),
    [
        (lambda store: RunDataset(store, lambda n: n, number_of, seed=0), collate),
        (lambda store: EvaluationDataset(store, number_of), collate_evaluation),
    ],
)
def test_http_reads_the_samples_of_a_batch_at_the_same_time(write_numbers, server, made_of, collated):
    handler, address = server
    folder = f"{address}/numbers"
    write_numbers([2, 2])
    store = SampleStore({folder: read_index(folder)})
    together = threading.Barrier(4)
    handler.log_request = lambda *_: together.wait(timeout=20)  # before it answers
    [batch] = DataLoader(made_of(store), batch_size=4, collate_fn=collated, sampler=[3, 1, 2, 0])
    assert batch["number"].tolist() == batch["position"].tolist() == [3, 1, 2, 0]
    assert batch.get("unreadable", []) == []


def test_extents_come_in_the_order_asked_for_and_each_with_its_own_error(write_numbers, server):
    _, address = server
    local = write_numbers([2, 2])
    index = read_index(str(local))
    store = SampleStore({str(local): index, f"{address}/refused": index, f"{address}/numbers": index})
    places = [9, 4, 1, 8]
    extents = dict(zip(places, store.extents(places), strict=True))
    with pytest.raises(SampleError, match="cannot be read"):
        store.members(4, extents.pop(4))
    found = {place: store.members(place, extent).decode("number.json") for place, extent in extents.items()}
    assert found == {9: 1, 1: 1, 8: 0}


class NumbersOf(Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        return self.store.read(index).decode("number.json")


def test_http_works_in_forked_workers_after_the_parent_has_read(write_numbers, server):
    _, address = server
    write_numbers([3, 3])
    store = SampleStore({f"{address}/numbers": read_index(f"{address}/numbers")})
    assert store.read(0).decode("number.json") == 0
    loader = DataLoader(NumbersOf(store), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=30)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]


def read_and_collect(store):
    store.read(1)
    gc.collect()


def test_http_works_in_the_parent_after_a_forked_worker_has_ended(write_numbers, server):
    handler, address = server
    handler.protocol_version = "HTTP/1.1"  # keeps connections open
    write_numbers([3])
    store = SampleStore({f"{address}/numbers": read_index(f"{address}/numbers")})
    store.read(0)
    worker = multiprocessing.get_context("fork").Process(target=read_and_collect, args=(store,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    read = threading.Thread(target=store.read, args=(2,), daemon=True)
    read.start()
    read.join(20)
    assert not read.is_alive()


def test_http_errors_are_sample_errors(write_numbers, server):
    handler, address = server
    write_numbers([2])
    folder = f"{address}/numbers"
    index = read_index(folder)
    handler.ranges = False
    with pytest.raises(SampleError, match=r"got .* bytes of 1024"):
        SampleStore({folder: index}).read(1)
    with pytest.raises(SampleError, match="cannot be read"):
        SampleStore({f"{address}/refused": index}).read(0)
    with pytest.raises(SampleError, match="cannot be read: FileNotFoundError"):
        SampleStore({f"{address}/elsewhere": index}).read(0)


def test_postscript_under_a_picture_name_is_refused(tmp_path):
    """Pillow would hand it to Ghostscript, another program, whatever the member is called."""
    postscript = image(np.zeros((8, 8, 3), np.uint8), "eps")
    found = store_of(tmp_path, EncodedSample("k", {"color.png": postscript})).read(0)
    with pytest.raises(SampleError, match=r"'color\.png' is damaged: UnidentifiedImageError"):
        found.decode("color.png")
