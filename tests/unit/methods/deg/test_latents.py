"""Objects in four orientations: points, cameras and posteriors turn together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gsforge.core.sampling import farthest_points
from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.latents import quarter_turned
from gsforge.methods.deg.module import DeGVAE


def test_quarter_turns_go_from_x_to_y() -> None:
    point = torch.tensor([0.9, 0.5, 0.2])
    assert quarter_turned(point, 1).tolist() == pytest.approx([0.5, 0.9, 0.2])
    assert torch.equal(quarter_turned(point, 4), point)
    torch.testing.assert_close(quarter_turned(quarter_turned(point, 3), 2), quarter_turned(point, 1))


def nearest(places: Tensor, anchors: Tensor) -> Tensor:
    return (places - anchors).square().sum(-1).mean()


def test_latents_are_those_of_the_turned_object_in_the_order_of_the_anchors(
    build: Callable[..., DeGVAE], batch: dict[str, Any]
) -> None:
    model = build("appearance")
    latents = model.ordered_latents(batch, [4, 6], [0, 3])
    assert set(latents) == {(4, 0), (4, 3), (6, 0), (6, 3)}
    sets = model.feature_sets(batch)
    queries = farthest_points(sets[0][0], 6)
    turned = [(quarter_turned(points, 3), features) for points, features in sets]
    with torch.no_grad():
        mean, log_variance = model.encoder(quarter_turned(queries, 3), *turned)
    found_mean, found_log_variance = latents[6, 3]
    # The same tokens, in another order: the one in which they lie nearest to their anchors.
    distances = torch.cdist(found_mean, mean)
    order = distances.argmin(-1)
    torch.testing.assert_close(distances.amin(-1), torch.zeros(2, 6), rtol=0, atol=1e-5)
    assert all(sorted(row) == list(range(6)) for row in order.tolist())
    torch.testing.assert_close(
        found_log_variance, log_variance.gather(1, order[..., None].expand_as(mean)), rtol=1e-5, atol=1e-6
    )
    places = quarter_turned(queries, 3).gather(1, order[..., None].expand(-1, -1, 3))
    for shift in range(1, 6):
        for one in range(2):
            assert nearest(places[one], sobol_anchors(6)) <= nearest(places[one].roll(shift, 0), sobol_anchors(6))


def test_encoding_does_not_depend_on_what_else_is_encoded(build: Callable[..., DeGVAE], batch: dict[str, Any]) -> None:
    model = build("appearance")
    alone, together = model.ordered_latents(batch, [4], [1]), model.ordered_latents(batch, [6, 4], [0, 1, 2])
    torch.testing.assert_close(alone[4, 1], together[4, 1])
