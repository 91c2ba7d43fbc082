import logging

import numpy as np
import pytest
import torch

from datamodules.errors import DataError, SampleError
from datamodules.index import read_index
from datamodules.loading import (
    EvaluationDataset,
    EvaluationSampler,
    RunDataset,
    RunSampler,
    TrainLoader,
    collate,
    collate_evaluation,
)
from datamodules.order import RunOrder
from datamodules.samples import SampleStore


def number_of(members, random):
    draw = -1 if random is None else int(random.randint(10**6))
    return {"number": torch.tensor(members.decode("number.json")), "draw": draw}


def run_over(folder, seed=0):
    store = SampleStore({str(folder): read_index(str(folder))})
    return RunDataset(store, RunOrder(store.shard_sizes, seed, 2), number_of, seed)


def damage(folder, key):
    """Flip a bit in one sample."""
    shard, sample = next(
        (shard, sample) for shard in read_index(str(folder)).shards for sample in shard.samples if sample.key == key
    )
    with (folder / shard.file).open("r+b") as stream:
        stream.seek(sample.offset + 512)
        byte = stream.read(1)
        stream.seek(sample.offset + 512)
        stream.write(bytes([byte[0] ^ 1]))


def taken(loader, batches):
    iterator = iter(loader)
    return [next(iterator) for _ in range(batches)]


def loader_over(dataset, batch_size=2, num_workers=0, position=0, max_unreadable=100):
    sampler = RunSampler(dataset, batch_size, 1, 0, position=lambda: position, batches=100)
    return TrainLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        max_unreadable=max_unreadable,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_run_goes_on_beyond_the_set_in_the_same_order_with_any_workers(write_numbers, num_workers):
    dataset = run_over(write_numbers([3, 2, 2]))
    batches = taken(loader_over(dataset, 2, num_workers), 7)
    numbers = torch.cat([batch["number"] for batch in batches]).tolist()
    assert torch.cat([batch["position"] for batch in batches]).tolist() == list(range(14))
    assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7))
    assert numbers == [dataset[n]["number"] for n in range(14)]
    assert set(batches[0]) == {"number", "draw", "position", "random"}


def test_draws_depend_on_seed_and_position_alone(write_numbers):
    folder = write_numbers([3, 2])
    first = [run_over(folder, 5)[n]["draw"] for n in (0, 1, 2, 5, 2**33)]
    assert first == [run_over(folder, 5)[n]["draw"] for n in (0, 1, 2, 5, 2**33)]
    assert len(set(first)) == 5
    assert first[0] != run_over(folder, 6)[0]["draw"]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_every_batch(write_numbers, world):
    dataset = run_over(write_numbers([7]))
    ranks = [iter(RunSampler(dataset, 6, world, rank, position=lambda: 12, batches=4)) for rank in range(world)]
    for batch in range(3):
        share = [next(rank) for rank in ranks for _ in range(6 // world)]
        assert share == list(range(12 + batch * 6, 12 + (batch + 1) * 6))
    assert len(RunSampler(dataset, 6, world, 0, position=lambda: 0, batches=4)) == 4 * 6 // world


def test_a_damaged_sample_is_replaced_named_and_counted(write_numbers, caplog):
    folder = write_numbers([3, 2, 2])
    whole = [run_over(folder)[n]["number"].item() for n in range(21)]
    damage(folder, "sample_0004")
    loader = loader_over(run_over(folder), 3)
    with caplog.at_level(logging.WARNING):
        found = torch.cat([batch["number"] for batch in taken(loader, 7)]).tolist()
    assert 4 not in found
    assert [a for a in whole if a != 4] == [b for a, b in zip(whole, found, strict=True) if a != 4]
    assert list(loader.unreadable) == [f"sample 'sample_0004' of {folder}/shard-000001.tar"]
    assert len([record for record in caplog.records if "Replaced an unusable sample (1 so far)" in record.message]) == 1
    assert "checksum differs" in caplog.text
    assert found == torch.cat([batch["number"] for batch in taken(loader_over(run_over(folder), 3, 2), 7)]).tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_damaged_samples_stop_the_run(write_numbers, num_workers):
    folder = write_numbers([10])
    for number in range(3):
        damage(folder, f"sample_{number:04d}")
    assert len(taken(loader_over(run_over(folder), 2, num_workers, max_unreadable=3), 5)) == 5
    with pytest.raises(DataError, match=r"3 different training samples .* max_unreadable=2.*gsforge data check"):
        taken(loader_over(run_over(folder), 2, num_workers, max_unreadable=2), 5)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_set_without_a_usable_sample_stops_at_once(write_numbers, num_workers):
    folder = write_numbers([2])
    for number in range(2):
        damage(folder, f"sample_{number:04d}")
    with pytest.raises(SampleError, match="16 samples in a row cannot be used"):
        taken(loader_over(run_over(folder), 2, num_workers), 1)


@pytest.mark.parametrize(("samples", "world"), [(7, 1), (7, 2), (6, 3), (2, 4), (5, 4)])
def test_evaluation_counts_every_sample_once(write_numbers, samples, world):
    folder = write_numbers([samples])
    dataset = EvaluationDataset(SampleStore({str(folder): read_index(str(folder))}), number_of)
    ranks = [[dataset[n] for n in EvaluationSampler(dataset, world, rank)] for rank in range(world)]
    assert {len(rank) for rank in ranks} == {-(-samples // world)}
    counted = [sample for rank in ranks for sample in rank if sample["position"] >= 0]
    assert sorted(sample["number"].item() for sample in counted) == list(range(samples))
    assert all(sample["position"] == sample["number"] for sample in counted)
    assert all(sample["draw"] == -1 for rank in ranks for sample in rank)
    assert all(sample["position"] == -1 for rank in ranks for sample in rank if sample["position"] < 0)


def test_evaluation_does_not_replace(write_numbers):
    folder = write_numbers([2])
    damage(folder, "sample_0001")
    dataset = EvaluationDataset(SampleStore({str(folder): read_index(str(folder))}), number_of)
    assert collate_evaluation([dataset[0]])["position"].tolist() == [0]
    with pytest.raises(SampleError, match="'sample_0001'"):
        dataset[1]


def test_collate_keeps_names_and_gathers_reports():
    samples = [{"key": "a", "x": np.float32(1), "unreadable": [("n", "r")]}, {"key": "b", "x": np.float32(2)}]
    batch = collate(samples)
    assert batch["key"] == ["a", "b"]
    assert batch["x"].tolist() == [1, 2]
    assert batch["unreadable"] == [("n", "r")]
