"""Cameras of five numbers: what they see, and how they turn with their object."""

import math

import pytest
import torch

from gsforge.core.object_camera import pinholes, turned_camera, turns_to_front
from gsforge.methods.deg.latents import quarter_turned


def test_every_camera_comes_within_45_degrees_of_the_front() -> None:
    for yaw in torch.linspace(-math.pi, math.pi, 41).tolist():
        direction = torch.tensor([math.cos(yaw), math.sin(yaw), 0.3])
        camera = torch.cat([direction, torch.ones(2)])
        turned = turned_camera(camera, int(turns_to_front(camera)))
        assert abs(math.atan2(turned[1], turned[0])) <= math.pi / 4 + 1e-5
        assert turned[2:].tolist() == pytest.approx([0.3, 1, 1])


@pytest.mark.parametrize("inverse_distance", [0.5, 0.0])
def test_a_camera_sees_its_half_width_at_the_centre(inverse_distance: float) -> None:
    cameras = pinholes(torch.tensor([[3.0, 1.0, 2.0, inverse_distance, 0.6]]), 64)
    assert cameras.project(torch.zeros(1, 3))[0][0, 0].tolist() == pytest.approx([32, 32], abs=1e-3)
    direction = torch.tensor([3.0, 1.0, 2.0]) / math.sqrt(14)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]), direction), dim=0)
    border = cameras.project(0.6 * right[None])[0][0, 0]
    assert border.tolist() == pytest.approx([64, 32], abs=0.05)


def test_a_turned_object_looks_the_same_to_a_turned_camera() -> None:
    points, camera = torch.rand(20, 3), torch.tensor([0.2, -0.9, 0.4, 0.4, 0.7])
    before = pinholes(camera[None], 32).project(points - 0.5)[0]
    after = pinholes(turned_camera(camera, 3)[None], 32).project(quarter_turned(points, 3) - 0.5)[0]
    torch.testing.assert_close(before, after, rtol=0, atol=1e-3)
