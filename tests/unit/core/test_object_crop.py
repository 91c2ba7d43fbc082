"""The crop around an object: where it lies, what it keeps, and images that have nothing or too much to show."""

import pytest
import torch

from gsforge.core.object_crop import crop_to_object, crops_to_objects


def disc(height: int, width: int, x: float, y: float, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    alpha = ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).float()
    color = torch.stack([columns / width, rows / height, torch.full_like(rows, 0.5)])
    return torch.cat([color, alpha[None]])


@pytest.mark.parametrize(("x", "y"), [(50, 40), (12, 70), (95, 8)])  # within, and over two borders of the image
def test_the_object_fills_the_square_but_for_the_margin_wherever_it_is(x: float, y: float) -> None:
    crop = crop_to_object(disc(80, 100, x, y, 20), 48)
    assert crop.shape == (3, 48, 48)
    columns = (crop[2] > 0.25).any(0).nonzero()[:, 0]
    rows = (crop[2] > 0.25).any(1).nonzero()[:, 0]
    for places, cut in ((columns, (x < 20, x > 80)), (rows, (y < 20, y > 60))):
        if not any(cut):
            assert (48 - 1.0 * (places.max() - places.min() + 1)).item() == pytest.approx(48 * (1 - 1 / 1.2), abs=2)
            assert (places.min() + places.max()).item() / 2 == pytest.approx(23.5, abs=1)


def test_straight_colour_is_kept_and_what_is_transparent_is_black() -> None:
    image = disc(60, 60, 30, 30, 15)
    image[:3, image[3] == 0] = 1.0  # colour that must not show
    crop = crop_to_object(image, 32)
    assert crop[:, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(crop[:, 16, 16], torch.tensor([0.5, 0.5, 0.5]), rtol=0, atol=0.03)


def test_half_transparent_pixels_are_half_as_bright() -> None:
    image = torch.ones(4, 40, 40)
    image[3] = 0.5
    assert crop_to_object(image, 20)[:, 10, 10].tolist() == pytest.approx([0.5] * 3, abs=1e-5)


def test_nothing_and_a_single_pixel_are_no_error() -> None:
    assert not crop_to_object(torch.zeros(4, 8, 8), 4).any()
    one = torch.zeros(4, 8, 8)
    one[:, 3, 5] = 1
    assert crop_to_object(one, 4).amax() > 0.9


def test_batches_are_single_images() -> None:
    images = torch.stack([disc(32, 32, 10, 20, 6), disc(32, 32, 20, 12, 9)])
    assert torch.equal(crops_to_objects(images, 16)[1], crop_to_object(images[1], 16))
    with pytest.raises(ValueError, match=r"expected shape \[4, H, W\], got \[3, 8, 8\]"):
        crop_to_object(torch.zeros(3, 8, 8), 4)
