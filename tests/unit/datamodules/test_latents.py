import io
import json
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from datamodules.conditions import member_name
from datamodules.errors import DataError, SampleError
from datamodules.index import Index, read_index, write_index
from datamodules.latent_format import latent_name
from datamodules.latents import LatentAssembler, LatentsDataModule, premultiplied
from datamodules.prepare.check import CHECKS, check_shard, shard_tasks
from datamodules.samples import Members
from datamodules.shards import EncodedSample, encode_npy, write_shard
from gsforge.core.object_crop import object_square

M, C, S = 8, 4, 32
YAWS = [10, 100, 190, -80]  # degrees; of the condition views, one for each number of quarter turns
TURNS = [0, 3, 2, 1]
CAMERAS = [
    [math.cos(math.radians(yaw)) * 0.8, math.sin(math.radians(yaw)) * 0.8, 0.6, 0.1 * view, 0.9]
    for view, yaw in enumerate(YAWS)
]
ASSEMBLER = LatentAssembler(tokens=M, condition_size=S, eval_views=1, augment=0.0, vae="abc")


def picture(view, number=0):
    """A half transparent square off the centre, of a colour of its own."""
    image = np.zeros((S, S, 4), np.uint8)
    image[4:12, 10:16] = [200, 40 * view, 10 * number, 128]
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def sample_of(number=0, log_variance=-60.0, vae="abc", turns=(0, 1, 2, 3), cameras=CAMERAS, tokens=(M, 2 * M)):
    """Latents whose mean is 10 * object + quarter turns."""
    record = {"schema": 1, "tokens": list(tokens), "turns": list(turns), "channels": C, "vae": vae}
    record |= {"conditions": {"size": S, "cameras": cameras}} if cameras else {}
    members = {"record.json": json.dumps(record).encode()}
    for count in tokens:
        for turn in turns:
            latent = np.stack([np.full((count, C), 10.0 * number + turn), np.full((count, C), log_variance)])
            members[latent_name(count, turn)] = encode_npy(latent.astype(np.float16))
    members |= {member_name(view): picture(view, number) for view in range(len(cameras))}
    return EncodedSample(f"object_{number}", members)


def members_of(**options):
    sample = sample_of(**options)
    return Members(sample.key, "here", sample.members)


def write(folder, samples, shard_size=3):
    folder.mkdir(parents=True)
    groups = [samples[first : first + shard_size] for first in range(0, len(samples), shard_size)]
    shards = [write_shard(folder / f"shard-{number:06d}.tar", group) for number, group in enumerate(groups)]
    write_index(folder, Index("latents", tuple(shards)))
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write(tmp_path_factory.mktemp("latents") / "set", [sample_of(number, -2.0) for number in range(7)])


def attached(folder, val=None, **options):
    sets = [str(each) for each in (folder if isinstance(folder, list) else [folder])]
    options = {"tokens": M, "batch_size": 4, "num_workers": 0, "seed": 5} | options
    data = LatentsDataModule(sets, str(val or sets[0]), **options)
    data.trainer = Trainer(accelerator="cpu", logger=False, max_steps=4)
    data.setup("fit")
    return data


def taken(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("view", range(4))
def test_latent_image_and_camera_are_of_one_view(view):
    drawn = (ASSEMBLER(members_of(), np.random.RandomState(seed)) for seed in range(100))
    sample = next(sample for sample in drawn if sample["turns"] == TURNS[view])
    torch.testing.assert_close(sample["latent"], torch.full((M, C), float(TURNS[view])))
    yaw = math.degrees(math.atan2(sample["camera"][1], sample["camera"][0]))
    assert yaw == pytest.approx(10, abs=1e-3)
    torch.testing.assert_close(sample["camera"][2:], torch.tensor(CAMERAS[view][2:]))
    assert sample["image"][1, S // 2, S // 2] == pytest.approx(40 * view / 255 * 128 / 255, abs=2e-3)


def test_one_orientation_alone_is_not_turned():
    sample = ASSEMBLER(members_of(turns=(0,), cameras=CAMERAS[1:2]), None)
    assert sample["turns"] == 0
    assert sample["camera"].equal(torch.tensor(CAMERAS[1]))
    torch.testing.assert_close(sample["latent"], torch.zeros(M, C))


def test_the_latent_is_a_draw_of_its_posterior():
    draws = [
        ASSEMBLER(members_of(number=1, log_variance=math.log(0.25), turns=(0,)), np.random.RandomState(n))["latent"]
        for n in range(200)
    ]
    assert torch.stack(draws).mean() == pytest.approx(10, abs=0.03)
    assert torch.stack(draws).std() == pytest.approx(0.5, abs=0.02)


def test_evaluation_takes_the_first_view_and_never_changes(latents):
    first, second = (list(attached(latents, augment=1.0, seed=seed).val_dataloader()) for seed in (1, 2))
    assert [batch["key"] for batch in first] == [[f"object_{number}"] for number in range(7)]
    for a, b in zip(first, second, strict=True):
        assert a["latent"].equal(b["latent"])
        assert a["image"].equal(b["image"])
        assert a["turns"].item() == TURNS[0]
    assert not (first[0]["latent"] - first[1]["latent"] + 10).allclose(torch.zeros(M, C), atol=1e-3)


def test_evaluation_shows_whole_views_of_the_turned_object():
    sample = LatentAssembler(M, S, 3, 0.0, "abc")(members_of(cameras=CAMERAS[1:]), None)
    assert sample["turns"] == TURNS[1]
    assert sample["views"].shape == (3, 3, S, S)
    assert sample["view_cameras"][0].equal(sample["camera"])
    yaws = torch.atan2(sample["view_cameras"][:, 1], sample["view_cameras"][:, 0]).rad2deg()
    for view, yaw, camera in zip(sample["views"], yaws, sample["view_cameras"], strict=True):
        number = round(camera[3].item() / 0.1)  # where the camera is in CAMERAS
        turned = YAWS[number] + 90 * sample["turns"]
        assert math.cos(math.radians(yaw - turned)) == pytest.approx(1, abs=1e-5)
        shown = view[:, 4:12, 10:16] * 255 / 128 * 255
        torch.testing.assert_close(shown[1], torch.full((8, 6), 40.0 * (number - 1)), atol=0.01, rtol=0)
        assert view.sum() == pytest.approx(view[:, 4:12, 10:16].sum())
    drawn = ASSEMBLER(members_of(), np.random.RandomState(0))
    assert "views" not in drawn


def test_statistics_are_those_of_the_means_in_all_orientations(latents, tmp_path):
    """Means are 10 * object + quarter turn, the same in every channel."""
    mean, deviation = attached(latents).latent_statistics()
    values = torch.tensor([10.0 * number + turn for number in range(7) for turn in range(4)])
    torch.testing.assert_close(mean, values.mean().expand(C))
    torch.testing.assert_close(deviation, values.std(unbiased=False).expand(C), rtol=0.01, atol=0)
    with pytest.raises(DataError, match="none of 2 objects tried can be used"):
        attached(write(tmp_path / "other", [sample_of(n, tokens=(3 * M,)) for n in range(2)])).latent_statistics()


def test_batches_do_not_depend_on_workers(latents):
    alone, helped = (taken(attached(latents, num_workers=n, augment=0.5).train_dataloader(), 5) for n in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("latent", "image", "camera", "turns", "position"))
    assert torch.cat([batch["position"] for batch in alone]).tolist() == list(range(20))
    assert len({turns for batch in alone for turns in batch["turns"].tolist()}) == 4
    other = taken(attached(latents, augment=0.5, seed=6).train_dataloader(), 1)
    assert not other[0]["latent"].equal(alone[0]["latent"])


def test_the_object_fills_the_middle_over_black():
    """The square of 10 pixels about a box of 8 x 6, whose sides of straight colour 200 have alpha 128."""
    view = premultiplied(torch.from_numpy(np.asarray(Image.open(io.BytesIO(picture(1)))) / 255).permute(2, 0, 1))
    square = object_square(view)
    assert square.shape == (4, 10, 10)
    assert square[3].nonzero().amin(0).tolist() == [1, 2]
    assert square[3].nonzero().amax(0).tolist() == [8, 7]
    assert square[0].max() == pytest.approx(200 / 255 * 128 / 255)
    corner = torch.zeros(4, 16, 16)
    corner[:, :5, 11:] = 1
    square = object_square(corner)
    assert square.shape == (4, 6, 6)
    assert square[3].sum() == 25
    whole = torch.ones(4, 10, 10)
    assert object_square(whole).shape == (4, 12, 12)
    assert object_square(whole)[3].sum() == 100


@pytest.mark.parametrize("size", [8, 32, 64])
def test_images_come_in_the_size_asked_for(size):
    image = LatentAssembler(M, size, 1, 0.0, "abc")(members_of(), None)["image"]
    assert image.shape == (3, size, size)
    assert 0 <= image.min() <= image.max() <= 1
    assert image[0].mean() == pytest.approx(200 / 255 * 128 / 255 * 48 / 100, rel=0.1)


def test_a_damaged_sample_is_replaced_named_and_counted(latents, tmp_path, caplog):
    folder = write(tmp_path / "set", [sample_of(number, -2.0) for number in range(7)])
    shard = read_index(str(folder)).shards[1]
    with (folder / shard.file).open("r+b") as stream:
        stream.seek(shard.samples[1].offset + 600)
        stream.write(b"damage")
    loader = attached(folder).train_dataloader()
    with caplog.at_level(logging.WARNING):
        batches = taken(loader, 4)
    assert "object_4" not in {key for batch in batches for key in batch["key"]}
    assert list(loader.unreadable) == [f"sample 'object_4' of {folder}/shard-000001.tar"]
    assert "checksum differs" in caplog.text
    report = check_shard(shard_tasks(folder)[1])
    assert "sha256" in " | ".join(report.problems)


def npy(shape, value=0.0, dtype=np.float16):
    return encode_npy(np.full(shape, value, dtype))


BROKEN = {
    "missing": (lambda c: c.pop("latent.8.2.npy"), "no member 'latent.8.2.npy'"),
    "extra": (lambda c: c.update({"latent.9.0.npy": npy((2, 9, C))}), "unknown members: latent.9.0.npy"),
    "shape": (lambda c: c.update({"latent.8.0.npy": npy((2, C, M))}), "float16[2, 4, 8], expected float16[2, 8, 4]"),
    "type": (lambda c: c.update({"latent.8.0.npy": npy((2, M, C), dtype=np.float32)}), "expected float16"),
    "nan": (lambda c: c.update({"latent.8.0.npy": npy((2, M, C), np.nan)}), "latent.8.0.npy holds NaN"),
    "pickle": (lambda c: c.update({"latent.8.0.npy": pickle.dumps(0)}), "is damaged"),
    "record": (lambda c: c.update({"record.json": b'{"schema": 1}'}), "record is incomplete: KeyError"),
    "version": (lambda c: c.update({"record.json": b'{"schema": 2}'}), "schema 2, this gsforge reads 1"),
    "picture": (lambda c: c.update({"condition.000.png": b"no picture"}), "is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_finds_what_is_wrong(name):
    change, message = BROKEN[name]
    members = members_of()
    content = dict(members.content)
    change(content)
    try:
        problems = " | ".join(CHECKS["latents"](Members("object_0", "here", content)))
    except SampleError as error:
        problems = str(error)
    assert list(CHECKS["latents"](members)) == []
    assert message in problems


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": (16, 64)}, r"has latents of \[16, 64\] tokens; set `tokens` to one of them, not 8"),
        ({"turns": (0, 2)}, "expected 0 alone, or 0 to 3"),
        ({"cameras": []}, "no condition views; prepare the objects with --condition-views"),
    ],
)
def test_what_a_set_cannot_give_is_refused_at_the_start(tmp_path, options, message):
    data = attached(write(tmp_path / "set", [sample_of(number, **options) for number in range(2)]))
    with pytest.raises(DataError, match=message):
        data.train_dataloader()


def test_latents_of_two_vaes_are_never_mixed(latents, tmp_path):
    other = write(tmp_path / "set", [sample_of(number, vae="xyz") for number in range(2)])
    with pytest.raises(DataError, match="has latents of the VAE xyz, others are of abc"):
        attached([latents, other]).train_dataloader()
    data = attached(latents, val=other)
    data.train_dataloader()
    with pytest.raises(DataError, match="has latents of the VAE xyz"):
        data.val_dataloader()


@pytest.mark.parametrize("options", [{"augment": 1.5}, {"condition_size": 0}])
def test_options_that_make_no_sense_are_refused(latents, options):
    with pytest.raises(DataError, match="expected augment from 0 to 1"):
        attached(latents, **options)
