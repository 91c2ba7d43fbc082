import subprocess
import sys

import numpy as np
import pytest

from datamodules.order import RunOrder

SIZES = np.array([5, 3, 8, 1, 6, 4])


@pytest.mark.parametrize("block_shards", [1, 2, 4, 100])
def test_every_pass_is_a_permutation(block_shards):
    order = RunOrder(SIZES, seed=3, block_shards=block_shards)
    for first in (0, 27, 54):
        assert sorted(order(n) for n in range(first, first + 27)) == list(range(27))


def test_passes_and_seeds_differ():
    order, other = RunOrder(SIZES, 3, 2), RunOrder(SIZES, 4, 2)
    first = [order(n) for n in range(27)]
    assert first != [order(n) for n in range(27, 54)]
    assert first != [other(n) for n in range(27)]


def test_order_is_random_access():
    order = RunOrder(SIZES, 3, 2)
    forward = [order(n) for n in range(81)]
    backward = [RunOrder(SIZES, 3, 2)(n) for n in reversed(range(81))]
    assert forward == backward[::-1]
    assert RunOrder(SIZES, 3, 2)(10**10) in range(27)


def test_reads_stay_within_a_block_and_mix_inside_it():
    sizes = np.full(20, 10)
    order = RunOrder(sizes, seed=0, block_shards=4)
    shards = np.array([order(n) for n in range(200)]) // 10
    blocks = [set(shards[first : first + 40].tolist()) for first in range(0, 200, 40)]
    assert [len(block) for block in blocks] == [4] * 5
    assert set().union(*blocks) == set(range(20))
    assert len(set(shards[:10].tolist())) > 1


def test_samples_come_first_equally_often():
    sizes = np.array([2, 2, 2])
    first = np.bincount([RunOrder(sizes, seed, 2)(0) for seed in range(3000)], minlength=6)
    assert abs(first / 3000 - 1 / 6).max() < 0.03


def test_the_order_is_the_same_in_another_process_and_for_ever():
    code = (
        "import numpy as np; from datamodules.order import RunOrder;"
        "order = RunOrder(np.array([5, 3, 8, 1, 6, 4]), 3, 2); print([order(n) for n in range(54)])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    order = RunOrder(SIZES, 3, 2)
    assert output.strip() == str([order(n) for n in range(54)])
    assert [order(n) for n in range(6)] == FROZEN


def test_a_block_needs_a_shard():
    with pytest.raises(ValueError, match="block_shards must be at least 1"):
        RunOrder(SIZES, 0, 0)


# Written down so that a change of the order, which would break running jobs, does not go unnoticed.
FROZEN = [6, 7, 20, 22, 19, 5]
