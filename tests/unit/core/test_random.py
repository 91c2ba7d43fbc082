"""Random numbers of samples."""

import torch

from gsforge.core.random import SampleRandom, normal_like, random_of, uniform_like


def test_a_sample_has_the_same_numbers_in_any_batch() -> None:
    whole, part = SampleRandom([5, 6, 7]), SampleRandom([7, 5])
    for draw in ("normal", "uniform", "normal"):
        a, b = (getattr(random, draw)(2, 3, dtype=torch.float64) for random in (whole, part))
        assert a.shape == (3, 2, 3)
        assert a.dtype == torch.float64
        assert torch.equal(a[[2, 0]], b)
        assert not torch.equal(a[0], a[1])


def test_the_numbers_are_of_the_distribution() -> None:
    random = SampleRandom(range(4))
    normal, uniform = random.normal(50_000), random.uniform(50_000)
    torch.testing.assert_close(normal.mean(1), torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(normal.std(1), torch.ones(4), rtol=0, atol=0.02)
    torch.testing.assert_close(uniform.mean(1), torch.full((4,), 0.5), rtol=0, atol=0.01)
    assert uniform.amin() >= 0
    assert uniform.amax() < 1


def test_a_batch_without_seeds_draws_from_the_global_generators() -> None:
    batch = torch.zeros(2, 3)
    assert random_of({"points": batch}, "cpu") is None
    torch.manual_seed(1)
    expected = torch.randn(2, 3), torch.rand(2, 3)
    torch.manual_seed(1)
    assert torch.equal(normal_like(batch, None), expected[0])
    assert torch.equal(uniform_like(batch, None), expected[1])
    assert torch.equal(normal_like(batch, random_of({"random": [3, 4]}, "cpu")), SampleRandom([3, 4]).normal(3))
