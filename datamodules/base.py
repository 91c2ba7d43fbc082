"""What every DataModule over shards shares: the sets, the loaders and the position in the run."""

import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from datamodules.errors import DataError
from datamodules.index import read_index
from datamodules.loading import (
    Assemble,
    EvaluationDataset,
    EvaluationSampler,
    RunDataset,
    RunSampler,
    Sample,
    TrainLoader,
    collate,
    collate_evaluation,
    ignore_stop_signals,
)
from datamodules.order import RunOrder
from datamodules.samples import SampleStore

log = logging.getLogger(__name__)


class ShardDataModule(LightningDataModule, ABC):
    """Training, validation, test and prediction loaders over sets of shards.

    A checkpoint holds one number, the position: how many samples the run has trained on. It counts batches that the
    training loop has processed, so it is exact whether the checkpoint was saved after a step, after validation or in
    the middle of a step, and holds for any number of ranks and workers.

    An optimiser step takes `batch_size` samples over all ranks. Where a rank's share is more than it can hold at once,
    it takes it in `parts` of equal size and accumulates their gradients, so a run can go on with fewer ranks.

    Args:
        train: folder or address of the training set, or several.
        val: folder or address of the validation set.
        test: folder or address of the test and prediction set.
        batch_size: samples of an optimiser step over all ranks.
        rank_batch_size: most samples that a rank takes at once in training; None for its whole share.
        eval_batch_size: samples of an evaluation batch of one rank.
        num_workers: worker processes of each loader and rank; 0 loads in the main process.
        seed: seed of the order and of all draws, 0 <= seed < 2^32.
        block_shards: shards whose samples are shuffled together.
        max_unreadable: number of different samples that may be replaced before the run stops.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        train: str | list[str],
        val: str,
        test: str | None,
        *,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        block_shards: int,
        max_unreadable: int,
        rank_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._sets = {"train": [train] if isinstance(train, str) else list(train), "val": [val]}
        self._sets |= {"test": [test]} if test is not None else {}
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._rank_batch_size = rank_batch_size
        self._num_workers, self._seed = num_workers, seed
        self._block_shards, self._max_unreadable = block_shards, max_unreadable
        self._stores: dict[str, SampleStore] = {}
        # Position of the run, and training batches that had been processed there.
        self._position, self._batches_there = 0, 0

    @property
    def parts(self) -> int:
        """Batches of an optimiser step on each rank: as few as keep to `rank_batch_size`.

        Raises:
            DataError: if the samples of a step cannot be shared out evenly to the ranks.
            RuntimeError: if no Trainer is attached.
        """
        ranks = self._replicas()["num_replicas"]
        share, rest = divmod(self._batch_size, ranks)
        if rest or not share:
            legal = [number for number in range(1, self._batch_size + 1) if self._batch_size % number == 0]
            raise DataError(
                f"batch_size {self._batch_size} (samples of a step over all ranks) cannot be shared out to {ranks} "
                f"ranks; run on one of {legal} ranks, or choose a multiple of {ranks}"
            )
        most = self._rank_batch_size or share
        return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= most)

    @property
    def training_shards(self) -> int:
        """Shards of the training sets; `setup` reads them."""
        return len(self._stores["train"].addresses)

    @abstractmethod
    def assembler(self, store: SampleStore, training: bool) -> Assemble:
        """What makes tensors of the files of a set; must be picklable.

        Args:
            store: the set.
            training: whether samples are drawn at random, or chosen by rule.

        Returns:
            A function of a sample's files.

        Raises:
            DataError: if the set cannot give what was asked for.
        """

    def setup(self, stage: str) -> None:
        """Read the indices of the sets that the stage needs.

        Args:
            stage: fit, validate, test or predict.

        Raises:
            DataError: if a set was not given, or its index cannot be used.
        """
        names = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        for name in names:
            if name not in self._sets:
                raise DataError("no test set was given; add `--data.test FOLDER` or `test:` in the config")
            if name not in self._stores:
                self._stores[name] = SampleStore({folder: read_index(folder, self.kind) for folder in self._sets[name]})
        if stage == "fit" and self._batches() == 0:
            self._position, self._batches_there = 0, 0

    def _batches(self) -> int:
        """Training batches processed so far, as Lightning counts and restores them."""
        progress = self._attached().fit_loop.epoch_loop.batch_progress.total
        return int(progress.state_dict()["processed"])

    def position(self) -> int:
        """Number of samples that the run has trained on, which is the number of its next sample.

        Returns:
            The position, counted in samples over all ranks.

        Raises:
            RuntimeError: if no Trainer is attached.
        """
        return self._position + (self._batches() - self._batches_there) * (self._batch_size // self.parts)

    def state_dict(self) -> dict[str, Any]:
        """The position, for the checkpoint, with the set that it counts.

        Returns:
            The position, and the fingerprint of the training set (None if it was not read).

        Raises:
            RuntimeError: if no Trainer is attached.
        """
        train = self._stores.get("train")
        return {"position": self.position(), "fingerprint": train.fingerprint if train is not None else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the checkpoint's position, whatever the sizes and the number of ranks are now.

        Args:
            state_dict: what `state_dict` gave.
        """
        self._position = state_dict["position"]
        train = self._stores.get("train")
        if train is not None and state_dict["fingerprint"] not in (None, train.fingerprint):
            log.warning(
                "The training shards changed since the checkpoint was saved: the run goes on with other samples."
            )

    def train_dataloader(self) -> TrainLoader:
        """The rest of the run; its length is the run where `max_steps` is set, and one pass over the set otherwise.

        Returns:
            The loader of this rank's part of each batch, which begins at the run's position.

        Raises:
            DataError: if the batch cannot be shared out evenly to the ranks.
            RuntimeError: if no Trainer is attached.
        """
        trainer, replicas, parts = self._attached(), self._replicas(), self.parts
        if parts > 1 and trainer.accumulate_grad_batches != parts:
            raise DataError(
                f"rank_batch_size {self._rank_batch_size} makes {parts} parts of a step: give the Trainer "
                f"accumulate_grad_batches={parts}; `gsforge fit` does so by itself"
            )
        self._batches_there = self._batches()
        store = self._stores["train"]
        order = RunOrder(store.shard_sizes, self._seed, self._block_shards)
        dataset = RunDataset(store, order, self.assembler(store, training=True), self._seed)
        steps = trainer.max_steps if trainer.max_steps > 0 else max(1, len(store) // self._batch_size)
        batch_size, batches = self._batch_size // parts, steps * trainer.accumulate_grad_batches
        sampler = RunSampler(dataset, batch_size, **replicas, position=self.position, batches=batches)
        return TrainLoader(
            dataset,
            batch_size=batch_size // replicas["num_replicas"],
            sampler=sampler,
            collate_fn=collate,
            max_unreadable=self._max_unreadable,
            **self._workers(),
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation set, see `EvaluationSampler`.

        Returns:
            The loader of this rank's part of the set.

        Raises:
            DataError: if the set cannot give what was asked for.
            RuntimeError: if no Trainer is attached.
        """
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """The test set, see `EvaluationSampler`.

        Returns:
            The loader of this rank's part of the set.

        Raises:
            DataError: if the set cannot give what was asked for.
            RuntimeError: if no Trainer is attached.
        """
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The test set, see `EvaluationSampler`.

        Returns:
            The loader of this rank's part of the set.

        Raises:
            DataError: if the set cannot give what was asked for.
            RuntimeError: if no Trainer is attached.
        """
        return self._evaluation("test")

    def _evaluation(self, name: str) -> DataLoader[Sample]:
        store = self._stores[name]
        dataset = EvaluationDataset(store, self.assembler(store, training=False))
        return DataLoader(
            dataset,
            batch_size=self._eval_batch_size,
            sampler=EvaluationSampler(dataset, **self._replicas()),
            collate_fn=collate_evaluation,
            **self._workers(),
        )

    def _attached(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("loaders need a Trainer: call trainer.fit(model, datamodule=...), or set .trainer first")
        return self.trainer

    def _replicas(self) -> dict[str, int]:
        """How many ranks get different data, and which this is; tensor-parallel ranks share theirs."""
        return self._attached().distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}

    def _workers(self) -> dict[str, Any]:
        """Loader options. Torch gives every worker process a single thread by itself."""
        return {
            "num_workers": self._num_workers,
            "worker_init_fn": ignore_stop_signals,
            "persistent_workers": self._num_workers > 0,
            "pin_memory": self._attached().strategy.root_device.type == "cuda",
        }
