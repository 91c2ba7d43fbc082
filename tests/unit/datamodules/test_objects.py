import io
import json
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules.errors import DataError, SampleError
from datamodules.index import Index, read_index, write_index
from datamodules.object_format import ObjectRecord, read_points, read_view
from datamodules.objects import ObjectAssembler, ObjectsDataModule, shrink
from datamodules.samples import Members, SampleStore
from datamodules.shards import EncodedSample, write_shard

B, V, P, S = 2, 3, 256, 32
SHAPES = {
    "points": (B, P, 3),
    "point_normals": (B, P, 3),
    "point_colors": (B, P, 3),
    "images": (B, V, 3, S, S),
    "alphas": (B, V, 1, S, S),
    "depths": (B, V, 1, S, S),
    "normals": (B, V, 3, S, S),
    "world_to_camera": (B, V, 4, 4),
    "intrinsics": (B, V, 3, 3),
}


def store_of(folder):
    return SampleStore({str(folder): read_index(str(folder))})


def attached(folder, **options):
    data = ObjectsDataModule(str(folder), str(folder), str(folder), points=P, num_workers=0, **options)
    data.trainer = Trainer(accelerator="cpu", logger=False, max_steps=4)
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


@pytest.fixture(scope="module")
def batch(toy_objects):
    data = attached(toy_objects, batch_size=B, views=V, eval_views=V)
    return next(iter(data.train_dataloader()))


def test_the_batch_is_what_is_promised(batch):
    assert {name: tuple(batch[name].shape) for name in SHAPES} == SHAPES
    assert set(batch) == {*SHAPES, "key", "position", "random"}
    assert all(batch[name].dtype == torch.float32 for name in SHAPES)
    assert batch["position"].tolist() == [0, 1]
    assert batch["position"].dtype == torch.int64
    assert all(isinstance(key, str) for key in batch["key"])


def test_values_are_in_their_ranges_and_agree(batch):
    hit = batch["depths"] > 0
    assert 0.03 < hit.float().mean() < 0.6
    assert ((batch["depths"][hit] > 1.1) & (batch["depths"][hit] < 2.9)).all()
    for name in ("images", "alphas", "point_colors"):
        assert batch[name].min() >= 0
        assert batch[name].max() <= 1
    lengths = batch["normals"].norm(dim=2, keepdim=True)
    torch.testing.assert_close(lengths, hit.float())
    assert (batch["alphas"][hit] > 0).all()
    assert batch["points"].abs().max() <= 0.5
    torch.testing.assert_close(batch["point_normals"].norm(dim=-1), torch.ones(B, P), atol=2e-3, rtol=0)


def test_normals_face_the_camera(batch):
    in_camera = torch.einsum("bvij,bvjhw->bvihw", batch["world_to_camera"][..., :3, :3], batch["normals"])
    ys, xs = torch.meshgrid(torch.arange(S) + 0.5, torch.arange(S) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys, torch.ones_like(xs)])
    rays = torch.einsum("bvij,jhw->bvihw", batch["intrinsics"].inverse(), pixels)
    facing = (in_camera * rays).sum(2)
    assert (facing <= 0.05).all()


def test_unprojected_depth_lies_on_the_surface(toy_objects):
    """Depth, camera matrices and points agree: pixels lifted by their depth land on the surface points."""
    store = store_of(toy_objects)
    for index in range(3):
        sample = ObjectAssembler(4, 1024, 32)(store.read(index), None)
        view, row, column = torch.nonzero(sample["depths"][:, 0], as_tuple=True)
        depth = sample["depths"][view, 0, row, column]
        pixels = torch.stack([column + 0.5, row + 0.5, torch.ones_like(depth)], dim=-1)
        camera = torch.einsum("nij,nj->ni", sample["intrinsics"][view].inverse(), pixels) * depth[:, None]
        rotation, translation = sample["world_to_camera"][view, :3, :3], sample["world_to_camera"][view, :3, 3]
        world = torch.einsum("nji,nj->ni", rotation, camera - translation)
        assert torch.cdist(world, sample["points"]).min(1).values.quantile(0.95) < 0.06


def test_views_and_points_depend_on_the_position_alone(toy_objects):
    dataset = attached(toy_objects, batch_size=B, views=V, eval_views=V).train_dataloader().dataset
    again = attached(toy_objects, batch_size=B, views=V, eval_views=V).train_dataloader().dataset
    for n in (0, 5, 100):
        torch.testing.assert_close(dataset[n]["points"], again[n]["points"])
        torch.testing.assert_close(dataset[n]["world_to_camera"], again[n]["world_to_camera"])
    first = {dataset[n]["key"]: dataset[n] for n in range(8)}
    second = {dataset[n]["key"]: dataset[n] for n in range(8, 16)}
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[key]["world_to_camera"], second[key]["world_to_camera"]) for key in first)
    assert not torch.equal(first["toy_000000"]["points"], second["toy_000000"]["points"])


def test_evaluation_takes_spread_views_and_never_changes(toy_objects):
    data = attached(toy_objects, views=1, eval_views=4)
    batches, again = list(data.val_dataloader()), list(data.test_dataloader())
    assert [batch["key"] for batch in batches] == [[f"toy_{i:06d}"] for i in range(8)]
    assert [batch["position"].item() for batch in batches] == list(range(8))
    torch.testing.assert_close(batches[3]["images"], again[3]["images"])
    matrices = batches[0]["world_to_camera"][0]
    centers = -torch.einsum("vji,vj->vi", matrices[:, :3, :3], matrices[:, :3, 3])
    assert torch.pdist(centers).min() > 1.5


def test_lower_image_size_scales_intrinsics_and_averages_covered_colour(toy_objects):
    members = store_of(toy_objects).read(0)
    large, small = (ObjectAssembler(2, P, size)(members, None) for size in (32, 16))
    torch.testing.assert_close(small["intrinsics"][:, :2], large["intrinsics"][:, :2] / 2)
    torch.testing.assert_close(small["intrinsics"][:, 2], large["intrinsics"][:, 2])
    torch.testing.assert_close(small["alphas"].mean(), large["alphas"].mean())
    premultiplied = [(sample["images"] * sample["alphas"]).mean() for sample in (small, large)]
    torch.testing.assert_close(*premultiplied)
    assert set(small["depths"].unique().tolist()) <= set(large["depths"].unique().tolist())


def test_shrinking_keeps_the_colour_of_an_edge():
    color, alpha = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    color[0, :, 0, 0], alpha[0, :, 0, 0] = torch.tensor([0.2, 0.4, 0.8]), 1.0
    views = {"color": color, "alpha": alpha, "depth": alpha.clone(), "normal": color.clone()}
    small = shrink(views, 2)
    assert small["alpha"].item() == 0.25
    torch.testing.assert_close(small["color"].flatten(), torch.tensor([0.2, 0.4, 0.8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 7}, "has 6 views, 7 are asked for"),
        ({"eval_views": 7}, "has 6 views, 7 are asked for; lower `views` or `eval_views`"),
        ({"image_size": 20}, "images of 32 px, from which 20 px cannot be made"),
    ],
)
def test_what_a_set_cannot_give_is_refused_at_the_start(toy_objects, options, message):
    data = attached(toy_objects, **{"views": 2, "eval_views": 2, **options})
    with pytest.raises(DataError, match=message):
        [data.train_dataloader(), data.val_dataloader()]


def test_too_many_points_are_refused_at_the_start(toy_objects):
    data = ObjectsDataModule(str(toy_objects), str(toy_objects), points=5000)
    data.trainer = Trainer(accelerator="cpu", logger=False)
    data.setup("fit")
    with pytest.raises(DataError, match="has 1024 surface points, 5000 are asked for"):
        data.train_dataloader()


def changed(members, change):
    """A sample with some members replaced; `change` gets a dict of their contents and of the record."""
    content = dict(members.content)
    record = json.loads(content["record.json"])
    change(content, record)
    return Members(members.key, members.source, {**content, "record.json": json.dumps(record).encode()})


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    return stream.getvalue()


def set_nan(content, record):
    record["world_to_camera"][2][0][3] = float("nan")


def drop_views(content, record):
    """An object that is whole, but has only two views."""
    record.update(views=2)
    for name in ("world_to_camera", "intrinsics"):
        record[name] = record[name][:2]


def spoil_normal(content, value):
    normals = np.load(io.BytesIO(content["point_normals.npy"])).copy()
    normals[700, 1] = value
    content["point_normals.npy"] = npy(normals)


BROKEN = {
    "another version": (lambda c, r: r.update(schema=2), "record has schema 2"),
    "no views": (lambda c, r: r.pop("views"), "record is incomplete: KeyError"),
    "cameras": (
        lambda c, r: r["world_to_camera"].pop(),
        r"world_to_camera has shape \[5, 4, 4\], expected \[6, 4, 4\]",
    ),
    "ragged": (lambda c, r: r["intrinsics"][0].pop(), "record is incomplete: ValueError"),
    "nan": (set_nan, "world_to_camera holds NaN"),
    "depth range": (lambda c, r: r.update(depth_range=[2, 1]), "depth_range"),
    "text": (lambda c, r: r.update(views="many"), "record is incomplete"),
    "missing": (lambda c, r: [c.pop(f"normal.{i:03d}.png") for i in range(6)], r"no member 'normal\.00"),
    "image": (
        lambda c, r: c.update({f"color.{i:03d}.png": png(np.zeros((16, 32, 4), np.uint8)) for i in range(6)}),
        r"color.* is uint8\[16, 32, 4\], expected uint8\[32, 32, 4\]",
    ),
    "depth type": (
        lambda c, r: c.update({f"depth.{i:03d}.png": png(np.zeros((32, 32), np.uint8)) for i in range(6)}),
        "expected uint16",
    ),
    "few views": (drop_views, "has 2 views, 3 are asked for"),
    "few points": (lambda c, r: r.update(points=100), "has 100 surface points"),
    "shape": (lambda c, r: c.update({"points.npy": npy(np.zeros((1024, 2), np.float32))}), r"points\.npy is float32"),
    "nan normal": (lambda c, r: spoil_normal(c, np.nan), r"point_normals\.npy holds NaN"),
    "infinite normal": (lambda c, r: spoil_normal(c, -np.inf), r"point_normals\.npy holds NaN or infinite"),
    "nan points": (lambda c, r: c.update({"points.npy": npy(np.full((1024, 3), np.nan, np.float32))}), "holds NaN"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_object_is_a_sample_error(toy_objects, name):
    change, message = BROKEN[name]
    members = changed(store_of(toy_objects).read(0), change)
    with pytest.raises(SampleError, match=message) as raised:
        ObjectAssembler(V, P, S)(members, np.random.RandomState(0))
    assert "'toy_000000' of" in str(raised.value)


def test_a_list_as_record_is_a_sample_error(toy_objects):
    members = Members("k", "s", {"record.json": b"[1]"})
    with pytest.raises(SampleError, match="record has schema None"):
        ObjectRecord.read(members)


def with_broken_object(toy_objects, folder):
    """A copy of the set in which one object's cameras are not numbers."""
    shutil.copytree(toy_objects, folder)
    store = store_of(folder)
    samples = [store.read(index) for index in range(len(store))]
    samples[3] = changed(samples[3], set_nan)
    entry = write_shard(folder / "all.tar", [EncodedSample(members.key, dict(members.content)) for members in samples])
    write_index(folder, Index("objects", (entry,)))
    return folder


def test_training_replaces_a_broken_object_and_evaluation_stops(toy_objects, tmp_path, caplog):
    data = attached(with_broken_object(toy_objects, tmp_path / "set"), views=V, eval_views=V, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert "toy_000003" not in batch["key"]
    assert batch["world_to_camera"].isfinite().all()
    assert "all.tar: world_to_camera holds NaN" in caplog.text
    with pytest.raises(SampleError, match="'toy_000003'"):
        list(data.val_dataloader())


def test_stored_values_come_back(toy_objects):
    members = store_of(toy_objects).read(1)
    record = ObjectRecord.read(members)
    view, points = read_view(members, record, 2), read_points(members, record)
    raw = members.decode("depth.002.png")
    near, far = record.depth_range
    expected = torch.from_numpy(np.where(raw > 0, near + (raw.astype(np.float64) - 1) / 65534 * (far - near), 0))
    torch.testing.assert_close(view["depth"][0].double(), expected, atol=1e-6, rtol=0)
    color = members.decode("color.002.png")
    np.testing.assert_allclose(view["alpha"][0] * 255, color[..., 3], rtol=1e-6)
    assert points["points"].shape == (1024, 3)


class Total(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys = []

    def training_step(self, batch, batch_idx):
        self.keys.append(batch["key"])
        return (batch["images"].mean() - self.weight).square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_it_trains_under_lightning_with_workers(toy_objects):
    module = Total()
    data = ObjectsDataModule([str(toy_objects)], str(toy_objects), views=2, points=P, batch_size=4, num_workers=2)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=4,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    assert sorted(module.keys[0] + module.keys[1]) == sorted(module.keys[2] + module.keys[3])
    assert module.weight > 0
