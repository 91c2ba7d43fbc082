"""Latents of a real, tiny VAE: a few steps of the toy configuration's first stage."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

from datamodules.commands import main
from datamodules.errors import DataError
from datamodules.index import read_index
from datamodules.latent_format import LatentRecord, read_latent
from datamodules.latents import LatentsDataModule
from datamodules.loading import collate_evaluation
from datamodules.object_format import ObjectRecord
from datamodules.objects import ObjectAssembler
from datamodules.prepare.encode import EncodeSettings, encode_set
from datamodules.prepare.trained import TrainedVAE, open_vae
from datamodules.samples import SampleStore
from gsforge.cli import main as gsforge
from gsforge.core.object_camera import turned_camera
from gsforge.training.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[4]
TOKENS, KEYS = [8, 16], [f"toy_{number:06d}" for number in range(6)]
VIEWS, POINTS = 2, 256
CHANGES = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.limit_val_batches": 0,
    "trainer.logger": "false",
    "model.init_args.lr_scheduler": "null",
    "model.init_args.network.width": 32,
    "model.init_args.network.latent_channels": 4,
    "model.init_args.sampling.context_points": POINTS // 2,
    "model.init_args.sampling.target_points": 64,
    "model.init_args.sampling.tokens": TOKENS,
    "model.init_args.sampling.feature_views": VIEWS,
    "data.init_args.points": POINTS,
    "data.init_args.views": 3,
    "data.init_args.eval_views": 4,
    "data.init_args.num_workers": 0,
}


@pytest.fixture(scope="module")
def run(conditioned_objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "run"
    sets = {f"data.init_args.{name}": conditioned_objects for name in ("train", "val", "test")}
    files = [f"--config={ROOT}/configs/{name}.yaml" for name in ("deg/vae_toy", "trainer/cpu")]
    values = [f"--{name}={value}" for name, value in (CHANGES | sets).items()]
    assert gsforge(["fit", *files, f"--run_dir={folder}", *values]) == 0
    return folder


def encode(run: Path, data: Path, out: Path, *options: str) -> int:
    fixed = ["--data", str(data), "--out", str(out), "--workers", "0", "--device", "cpu", "--batch-size", "2"]
    return main(["encode", str(run), *fixed, *options])


@pytest.fixture(scope="module")
def latents(run: Path, conditioned_objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "latents"
    assert encode(run, conditioned_objects, out) == 0
    return out


@pytest.fixture(scope="module")
def vae(run: Path) -> TrainedVAE:
    return open_vae(run, device="cpu")


def store_of(folder):
    return SampleStore({str(folder): read_index(str(folder))})


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stored(folder, tokens, turns):
    """[objects, 2, M, C] mean and log-variance."""
    store = store_of(folder)
    members = [store.read(number) for number in range(len(store))]
    arrays = [read_latent(each, LatentRecord.read(each), tokens, turns) for each in members]
    return torch.from_numpy(np.stack(arrays)).float()


def batch_of(folder):
    store = store_of(folder)
    assemble = ObjectAssembler(4, POINTS, 32)
    return collate_evaluation([assemble(store.read(number), None) for number in range(len(store))])


def about_z(turns):
    cosine, sine = round(math.cos(turns * math.pi / 2)), round(math.sin(turns * math.pi / 2))
    return torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


def test_latents_are_those_of_turned_objects(latents, conditioned_objects, vae):
    """What is stored for k quarter turns is what the VAE makes of the object after these turns, views and all."""
    batch = batch_of(conditioned_objects)
    for turns in range(4):
        rotation = about_z(turns)
        matrices = batch["world_to_camera"].clone()
        matrices[..., :3, :3] = matrices[..., :3, :3] @ rotation.T
        rotated = batch | {"points": batch["points"] @ rotation.T, "world_to_camera": matrices}
        found = vae.model.ordered_latents(rotated, TOKENS, [0])
        for tokens in TOKENS:
            expected = torch.stack(found[tokens, 0], dim=1)
            torch.testing.assert_close(stored(latents, tokens, turns), expected, atol=4e-3, rtol=2e-3)
    assert (stored(latents, 16, 0) - stored(latents, 16, 1)).abs().max() > 0.1


def test_the_set_mirrors_the_objects(latents, conditioned_objects, vae, tmp_path, capsys):
    ours, theirs = read_index(str(latents), "latents"), read_index(str(conditioned_objects))
    assert [[sample.key for sample in shard.samples] for shard in ours.shards] == [KEYS[:2], KEYS[2:4], KEYS[4:]]
    assert [shard.file for shard in ours.shards] == [shard.file for shard in theirs.shards]
    new, old = store_of(latents).read(4), store_of(conditioned_objects).read(4)
    assert {name: old.content[name] for name in old.content if name.startswith("condition")} == {
        name: new.content[name] for name in new.content if name.startswith("condition")
    }
    record = LatentRecord.read(new)
    assert record.conditions.cameras.equal(ObjectRecord.read(old).conditions.cameras)
    assert (record.tokens, record.turns, record.channels) == ((8, 16), (0, 1, 2, 3), 4)
    assert record.vae == vae.sha256[:16]
    assert main(["check", str(latents)]) == 0
    assert "6 latents in 3 shards, 0 problems" in capsys.readouterr().out
    options = ["--out", str(tmp_path / "sheet.png"), "--objects", "2", "--views", "2", "--size", "40"]
    assert main(["show", str(latents), *options]) == 0
    assert "(178 x 66)" in capsys.readouterr().out


def test_the_data_module_loads_them(latents):
    options = {"tokens": 16, "batch_size": 3, "eval_batch_size": 6, "eval_views": 3, "num_workers": 0}
    data = LatentsDataModule(str(latents), str(latents), **options)
    data.trainer = Trainer(accelerator="cpu", logger=False, max_steps=4)
    data.setup("fit")
    shapes = {"latent": (3, 16, 4), "image": (3, 3, 40, 40), "camera": (3, 5), "turns": (3,), "position": (3,)}
    batch = next(iter(data.train_dataloader()))
    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    assert set(batch) == {*shapes, "key", "random"}
    batch = next(iter(data.val_dataloader()))
    for number, key in enumerate(batch["key"]):
        camera = LatentRecord.read(store_of(latents).read(number)).conditions.cameras[0]
        assert batch["camera"][number].equal(turned_camera(camera, int(batch["turns"][number])))
        mean, log_variance = stored(latents, 16, int(batch["turns"][number]))[number]
        distance = (batch["latent"][number] - mean) / (0.5 * log_variance).exp()
        assert distance.abs().max() < 5, key
        assert distance.std() == pytest.approx(1, abs=0.4)


# A process that is killed in the middle of its second shard.
KILLED = """
import os, signal, sys
from datamodules.commands import main
from datamodules.prepare import sets
write_shard = sets.write_shard
def interrupted(path, samples):
    def some():
        yield next(samples)
        os.kill(os.getpid(), signal.SIGKILL)
    return write_shard(path, some() if "000001" in path.name else samples)
sets.write_shard = interrupted
main(sys.argv[1:])
"""


def test_a_killed_encode_continues(run, latents, conditioned_objects, tmp_path, capsys):
    out = tmp_path / "latents"
    options = ["--data", str(conditioned_objects), "--out", str(out), "--workers", "0", "--batch-size", "2"]
    command = [sys.executable, "-c", KILLED, "encode", str(run), *options, "--device", "cpu"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert not (out / "index.json").exists()
    assert list(out.glob(".shard-000001*"))
    kept = (out / "shard-000000.tar").stat().st_mtime_ns
    assert encode(run, conditioned_objects, out) == 0
    assert "encoded 4 objects in" in capsys.readouterr().out.splitlines()[-1]
    assert (out / "shard-000000.tar").stat().st_mtime_ns == kept
    assert files(out) == files(latents)


def test_ranks_and_workers_give_the_shards_of_one_process(run, latents, conditioned_objects, tmp_path, capsys):
    out = tmp_path / "latents"
    assert encode(run, conditioned_objects, out, "--rank", "1", "--world", "2", "--workers", "2") == 0
    assert sorted(path.name for path in out.glob("*.tar")) == ["shard-000001.tar"]
    assert "The index is written by the rank that finishes last." in capsys.readouterr().out
    assert encode(run, conditioned_objects, out, "--rank", "0", "--world", "2") == 0
    assert files(out) == files(latents)


def with_weights(run, folder, change):
    """A copy of the run whose last checkpoint has other weights."""
    shutil.copytree(run, folder, symlinks=True)
    path = RunDirectory(folder).require_checkpoint().resolve()
    path = folder / "checkpoints" / path.name
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["state_dict"])
    path.unlink()
    torch.save(checkpoint, path)
    return path


def test_latents_of_another_checkpoint_are_refused(run, latents, conditioned_objects, tmp_path, capsys):
    before = files(latents)
    other = with_weights(run, tmp_path / "other", lambda weights: weights["encoder.to_mean.bias"].add_(0.1))
    assert encode(run, conditioned_objects, latents, "--checkpoint", str(other)) == 1
    error = capsys.readouterr().err
    assert "was begun with other settings" in error
    assert "checkpoint_sha256" in error
    assert encode(run, conditioned_objects, latents, "--tokens", "8") == 1
    assert "tokens: [8, 16] there, [8] now" in capsys.readouterr().err
    assert files(latents) == before


def test_objects_that_cannot_be_encoded_are_listed(run, conditioned_objects, tmp_path, capsys):
    damaged = tmp_path / "objects"
    shutil.copytree(conditioned_objects, damaged)
    sample = read_index(str(damaged)).shards[1].samples[0]
    with (damaged / "shard-000001.tar").open("r+b") as stream:
        stream.seek(sample.offset + 700)
        stream.write(b"damage")
    assert encode(run, damaged, tmp_path / "latents", "--turns", "0", "--condition-views", "2") == 0
    output = capsys.readouterr().out
    assert "1 sources could not be used" in output
    assert "encoded 5 objects" in output
    failure = json.loads((tmp_path / "latents" / "failures.jsonl").read_text())
    assert failure["key"] == "toy_000002"
    assert "checksum differs" in failure["reason"]
    record = LatentRecord.read(store_of(tmp_path / "latents").read(2))
    assert (record.turns, len(record.conditions)) == ((0,), 2)

    def overflow(weights):
        weights["encoder.to_mean.bias"][0] = 1e6

    path = with_weights(run, tmp_path / "run", overflow)
    assert encode(run, conditioned_objects, tmp_path / "none", "--checkpoint", str(path)) == 1
    assert "none of 6 sources could be used" in capsys.readouterr().err
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "none" / "failures.jsonl").read_text().splitlines()]
    assert "'toy_000000': latent.8.0.npy holds values that are not finite, or too large for float16" in reasons[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--turns", "0", "2"], "--turns: expected 0 alone, or 0 1 2 3"),
        (["--tokens", "8", "8"], "--tokens: expected different numbers"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--rank", "2", "--world", "2"], "rank must be from 0 to world - 1"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path, capsys, options, message):
    assert encode(tmp_path / "run", tmp_path, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition_views": 4}, "'toy_000000' of .* has 3 condition views, 4 are asked for"),
        ({"tokens": [POINTS]}, "the VAE refuses what is asked of it: .*256 points asked of a set of 128"),
    ],
)
def test_what_cannot_be_had_is_refused(vae, conditioned_objects, tmp_path, change, message):
    settings, console = EncodeSettings(**change), Console(quiet=True)
    with pytest.raises(DataError, match=message):
        encode_set(vae, str(conditioned_objects), tmp_path / "out", settings, console)


def test_a_folder_that_is_no_run_is_refused(conditioned_objects, tmp_path, capsys):
    assert encode(tmp_path, conditioned_objects, tmp_path / "out") == 1
    assert "is no run directory" in capsys.readouterr().err
