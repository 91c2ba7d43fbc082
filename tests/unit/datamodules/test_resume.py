"""A run that was stopped and continued sees exactly the samples of a run that never stopped."""

import contextlib
import multiprocessing
import os
import signal
import subprocess

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from datamodules.base import ShardDataModule
from datamodules.errors import DataError


def number_of(members, random):
    return {"number": torch.tensor(members.decode("number.json")), "draw": -1 if random is None else random.randint(99)}


class Numbers(ShardDataModule):
    kind = "numbers"

    def __init__(self, folder, batch_size=4, num_workers=0, seed=7, rank_batch_size=None):
        super().__init__(
            str(folder),
            str(folder),
            str(folder),
            batch_size=batch_size,
            eval_batch_size=2,
            num_workers=num_workers,
            seed=seed,
            block_shards=2,
            max_unreadable=3,
            rank_batch_size=rank_batch_size,
        )

    def assembler(self, store, training):
        return number_of


class Recorder(LightningModule):
    """Notes what every step got."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.steps, self.validated, self.tested = [], [], []

    def training_step(self, batch, batch_idx):
        self.steps.append([batch[name].tolist() for name in ("position", "number", "draw")])
        return self.layer(batch["number"][:, None].float()).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated += batch["number"].tolist()

    def test_step(self, batch, batch_idx):
        self.tested += batch["number"].tolist()

    def predict_step(self, batch, batch_idx):
        return batch["number"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Stop(RuntimeError):
    """Ends a run as a kill would."""


class StopAfter(Callback):
    """Saves in `on_train_batch_end`, as checkpoints by step do, and stops the run."""

    def __init__(self, batch, path):
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(pl_module.steps) == self.batch:
            trainer.save_checkpoint(self.path)
            raise Stop


class StopInside(Callback):
    """Stops in the middle of a step; another callback saves."""

    def __init__(self, batch):
        self.batch = batch

    def on_before_backward(self, trainer, pl_module, loss):
        if len(pl_module.steps) == self.batch:
            raise Stop


def run(folder, callbacks=(), checkpoint=None, limits=None, **data):
    module = Recorder()
    options = {"max_steps": 13, "enable_checkpointing": False} | (limits or {})
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **options,
    )
    with contextlib.suppress(Stop):
        trainer.fit(module, datamodule=Numbers(folder, **data), ckpt_path=checkpoint)
    return module, trainer


class SignalLoaders(Callback):
    """Sends the loader's processes what they get when a run is asked to stop."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(pl_module.steps) == 2:
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGINT)
                os.kill(worker.pid, signal.SIGUSR2)
                subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # not from the process that trains


EPOCHS = {"max_steps": -1, "max_epochs": 4}  # 11 samples, batches of 4: epochs of 2 batches
ACCUMULATED = {"max_steps": 6, "accumulate_grad_batches": 2}
VALIDATED = {"max_steps": 13, "val_check_interval": 3, "check_val_every_n_epoch": None}


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        (None, 1),
        (None, 5),
        (None, 12),
        (EPOCHS, 1),
        (EPOCHS, 2),
        (EPOCHS, 5),
        (EPOCHS, 6),
        (ACCUMULATED, 4),
        (VALIDATED, 3),
        (VALIDATED, 4),
    ],
)
def test_stopped_and_resumed_is_uninterrupted(write_numbers, tmp_path, limits, stop, num_workers):
    folder, path = write_numbers([4, 3, 4]), tmp_path / "at.ckpt"
    whole, _ = run(folder, limits=limits, num_workers=num_workers)
    first, _ = run(folder, [StopAfter(stop, path)], limits=limits, num_workers=num_workers)
    second, _ = run(folder, checkpoint=path, limits=limits, num_workers=2 - num_workers)
    assert len(first.steps) == stop
    assert first.steps + second.steps == whole.steps
    positions = [position for step in whole.steps for position in step[0]]
    assert positions == list(range(len(positions)))


def test_stop_signals_do_not_end_the_loaders_processes(write_numbers):
    folder = write_numbers([4, 3, 4])
    whole, _ = run(folder)
    signalled, _ = run(folder, [SignalLoaders()], num_workers=2)
    assert signalled.steps == whole.steps


def test_saved_after_an_error_inside_a_step_repeats_that_step_alone(write_numbers, tmp_path):
    folder = write_numbers([4, 3, 4])
    whole, _ = run(folder)
    save = OnExceptionCheckpoint(tmp_path, "exception")
    first, _ = run(folder, [StopInside(5), save], limits={"enable_checkpointing": True})
    path = tmp_path / "exception.ckpt"
    second, _ = run(folder, [StopAfter(3, tmp_path / "again.ckpt")], checkpoint=path)
    third, _ = run(folder, checkpoint=tmp_path / "again.ckpt")
    assert first.steps[:4] + second.steps + third.steps == whole.steps


def test_saved_at_the_end_of_an_epoch(write_numbers, tmp_path):
    folder = write_numbers([4, 3, 4])
    whole, _ = run(folder, limits=EPOCHS)
    first, trainer = run(folder, limits=EPOCHS | {"max_epochs": 2})
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second, _ = run(folder, checkpoint=tmp_path / "end.ckpt", limits=EPOCHS)
    assert first.steps + second.steps == whole.steps


def test_another_batch_size_continues_at_the_same_sample(write_numbers, tmp_path):
    folder, path = write_numbers([4, 3, 4]), tmp_path / "at.ckpt"
    run(folder, [StopAfter(5, path)])
    second, _ = run(folder, [StopAfter(2, tmp_path / "again.ckpt")], checkpoint=path, batch_size=2)
    third, _ = run(folder, checkpoint=tmp_path / "again.ckpt", batch_size=1)
    assert [step[0] for step in second.steps] == [[20, 21], [22, 23]]
    assert [step[0] for step in third.steps[:2]] == [[24], [25]]


def test_the_checkpoint_holds_one_position(write_numbers, tmp_path):
    run(write_numbers([4, 3, 4]), [StopAfter(5, tmp_path / "at.ckpt")])
    state = torch.load(tmp_path / "at.ckpt", weights_only=True)["Numbers"]
    assert state["position"] == 20


def test_a_rank_that_holds_less_takes_its_share_in_parts(write_numbers, tmp_path):
    folder, path = write_numbers([4, 3, 4]), tmp_path / "at.ckpt"
    first, _ = run(
        folder, [StopAfter(10, path)], limits={"max_steps": 13, "accumulate_grad_batches": 2}, rank_batch_size=3
    )
    assert [len(step[0]) for step in first.steps] == [2] * 10
    second, _ = run(folder, checkpoint=path)
    taken = [position for step in first.steps + second.steps for position in step[0]]
    assert taken == list(range(len(taken)))
    with pytest.raises(DataError, match="accumulate_grad_batches=4"):
        run(folder, rank_batch_size=1)


def test_changed_shards_are_noticed(write_numbers, tmp_path, caplog):
    run(write_numbers([4, 3, 4], "a"), [StopAfter(2, tmp_path / "at.ckpt")])
    run(write_numbers([4, 3, 5], "b"), checkpoint=tmp_path / "at.ckpt")
    assert "training shards changed" in caplog.text


def test_the_length_is_the_run_or_one_pass(write_numbers):
    folder = write_numbers([4, 3, 4])
    assert run(folder)[1].num_training_batches == 13
    assert run(folder, limits=ACCUMULATED)[1].num_training_batches == 12
    assert run(folder, limits=EPOCHS)[1].num_training_batches == 2


def test_validation_test_and_prediction_see_every_sample_once(write_numbers):
    folder = write_numbers([4, 3, 4])
    module, trainer = run(folder, limits={"max_steps": 2})
    assert module.validated == list(range(11))
    trainer.test(module, datamodule=Numbers(folder), verbose=False)
    assert module.tested == list(range(11))
    assert torch.cat(trainer.predict(module, datamodule=Numbers(folder))).tolist() == list(range(11))


def test_a_batch_that_ranks_cannot_share_is_refused(write_numbers, monkeypatch):
    monkeypatch.setattr(Trainer, "distributed_sampler_kwargs", {"num_replicas": 3, "rank": 0})
    with pytest.raises(DataError, match=r"batch_size 4 .* one of \[1, 2, 4\] ranks, or choose a multiple of 3"):
        run(write_numbers([4]))


def test_loaders_without_a_trainer_say_so(write_numbers):
    data = Numbers(write_numbers([4]))
    with pytest.raises(RuntimeError, match="need a Trainer"):
        data.setup("fit")


def test_no_test_set_is_an_error(write_numbers):
    data = Numbers(write_numbers([4]))
    del data._sets["test"]
    with pytest.raises(DataError, match="no test set was given"):
        Trainer(accelerator="cpu", logger=False).test(Recorder(), datamodule=data)
