"""Structure metrics and the picture of a density."""

import math

import torch

from gsforge.core.cameras import Cameras, cameras_around
from gsforge.methods.deg.density import DensitySamples
from gsforge.methods.deg.evaluation import density_picture, structure_metrics


def test_chamfer_is_zero_on_the_surface_and_its_baseline_fills_the_box() -> None:
    torch.manual_seed(0)
    azimuth = torch.rand(2, 400) * 2 * math.pi
    ring = torch.stack([0.4 * azimuth.cos(), 0.4 * azimuth.sin(), torch.zeros_like(azimuth)], dim=-1)
    metrics = structure_metrics(ring, ring)
    assert torch.equal(metrics["chamfer"], torch.zeros(2))
    # Points of the square about a circle of radius r are r / 10 and more from it on average.
    assert ((metrics["chamfer_baseline"] > 0.04) & (metrics["chamfer_baseline"] < 0.2)).all()


def test_a_shifted_set_has_the_shift_as_its_distance() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-0.4, 0.4])] * 3)[None]
    metrics = structure_metrics(corners + torch.tensor([0.03, 0.0, 0.0]), corners)
    torch.testing.assert_close(metrics["chamfer"], torch.tensor([0.03]))


def front_camera(batch: int) -> Cameras:
    cameras = cameras_around(torch.tensor([[0.0, -1.0, 0.0]]), 2.0, math.radians(40), 41)
    return cameras.map(lambda matrix: matrix.expand(batch, *matrix.shape))


def test_the_likeliest_point_is_yellow_and_the_least_likely_violet() -> None:
    # World x is to the right: one dot on each side of the picture, in the other order in the second object.
    points = torch.tensor([[[0.25, 0.5, 0.5], [0.75, 0.5, 0.5]]]).expand(2, 2, 3)
    log_q = torch.tensor([[-9.0, -3.0], [-3.0, -9.0]])
    picture = density_picture(DensitySamples(points, log_q), front_camera(2))
    assert picture.shape == (2, 1, 3, 41, 41)
    assert picture[:, :, :, 0].max() == 0  # black around them
    left, right = picture[..., :20].flatten(3).amax(-1)[:, 0], picture[..., 21:].flatten(3).amax(-1)[:, 0]
    for likely, unlikely in ((right[0], left[0]), (left[1], right[1])):
        assert likely[0] > likely[2] * 3  # red and green without blue
        assert likely[1] > likely[2] * 3
        assert unlikely[2] > unlikely[0]
        assert unlikely[1] < 1e-6  # no green, up to the rounding of its spherical harmonic


def test_equal_probabilities_draw_without_dividing_by_zero() -> None:
    drawn = DensitySamples(torch.full((1, 3, 3), 0.5), torch.full((1, 3), -4.0))
    assert density_picture(drawn, front_camera(1)).isfinite().all()
