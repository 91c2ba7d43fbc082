import numpy as np
import pytest
import torch

from datamodules.jitter import JITTERS, jittered
from gsforge.core.object_crop import resized


def picture(size):
    """A disc of waves, half covered at its rim, over black."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    alpha = ((0.8 - (x * x + y * y).sqrt()) * size / 4).clamp(0, 1)
    color = torch.stack([0.5 + 0.4 * (9 * x).sin(), 0.5 + 0.4 * (7 * y).cos(), 0.3 + 0 * x])
    return torch.cat([color * alpha, alpha[None]])


@pytest.mark.parametrize("size", [16, 256])
@pytest.mark.parametrize("name", JITTERS)
def test_each_kind_changes_the_picture_within_its_range(name, size):
    image, distinct = picture(size), set()
    for seed in range(10):
        changed = JITTERS[name](image.clone(), np.random.RandomState(seed))
        assert changed.shape == image.shape
        assert changed.dtype == torch.float32
        assert 0 <= changed.min() <= changed.max() <= 1
        difference = (changed - image)[:3].abs()
        assert difference.max() > 0.005
        assert difference.mean() < 0.25, "the object can still be recognised"
        assert changed.equal(JITTERS[name](image.clone(), np.random.RandomState(seed)))
        distinct.add(changed.numpy().tobytes())
    assert len(distinct) > 5


@pytest.mark.parametrize("name", ["color", "noise", "compression"])
def test_what_changes_colours_leaves_the_background_black(name):
    image = picture(64)
    changed = JITTERS[name](image, np.random.RandomState(0))
    assert changed[3].equal(image[3])
    assert changed[:3, image[3] == 0].eq(0).all()


def test_moving_kinds_move_colour_and_alpha_alike():
    image = picture(64)
    image[1] = image[3]
    for name in ("crop", "perspective", "blur"):
        changed = JITTERS[name](image, np.random.RandomState(1))
        torch.testing.assert_close(changed[1], changed[3])


def test_each_kind_comes_with_its_own_probability(monkeypatch):
    image, random = picture(16), np.random.RandomState(0)
    assert jittered(image, 0.0, random) is image
    counts = dict.fromkeys(JITTERS, 0)
    for name in JITTERS:

        def counted(given, generator, name=name):
            counts[name] += 1
            return given

        monkeypatch.setitem(JITTERS, name, counted)
    for _ in range(4000):
        jittered(image, 0.05, random)
    assert all(150 < count < 250 for count in counts.values())
    jittered(image, 1.0, random)


def test_resizing_down_averages_and_up_is_smooth():
    image = picture(64)
    small = resized(image, 16)
    torch.testing.assert_close(small.mean((1, 2)), image.mean((1, 2)), atol=0.01, rtol=0)
    stripes = torch.zeros(1, 64, 64)
    stripes[:, :, ::2] = 1
    assert resized(stripes, 16)[..., 2:-2].sub(0.5).abs().max() < 0.1
    assert resized(image, 150).shape == (4, 150, 150)
