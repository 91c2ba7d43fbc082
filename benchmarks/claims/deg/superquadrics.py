"""Tokens of shapes that need no rendering: surface points of coloured superquadrics, and three orders of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gsforge.core.sampling import farthest_point_sampling
from gsforge.core.vecseq import order_tokens, sobol_anchors
from gsforge.metrics.points import chamfer_distance

SHAPE_NUMBERS, COLOR_NUMBERS = 7, 6
TOKEN_CHANNELS = 6
ORDERS = ("Sobol-OT", "FPS", "random")
_SURFACE = 512  # points of a surface that tokens are chosen from


@dataclass(frozen=True)
class Shapes:
    """Superquadrics that taper along z, are turned about z by up to 45 degrees, and fade from one colour to another.

    Attributes:
        shape: [B, 7] in [-1, 1]: sizes along x, y and z, two exponents, taper, turn.
        color: [B, 6] in [-1, 1]: below and above.
    """

    shape: Tensor
    color: Tensor


def random_shapes(count: int) -> Shapes:
    """Draw shapes.

    Args:
        count: how many.

    Returns:
        The shapes.
    """
    numbers = 2 * torch.rand(count, SHAPE_NUMBERS + COLOR_NUMBERS) - 1
    return Shapes(*numbers.split((SHAPE_NUMBERS, COLOR_NUMBERS), dim=1))


def surface_points(shapes: Shapes, count: int) -> Tensor:
    """Draw points of the surfaces, seen from the centre in all directions alike.

    Args:
        shapes: B shapes.
        count: points of each.

    Returns:
        [B, count, 6] places, the half extents between 1/8 and 1/2 but for the taper, and colours in [0, 1].
    """
    sizes, exponents, taper, turn = (2 ** (shapes.shape[:, :3] - 2), *shapes.shape[:, 3:].split((2, 1, 1), dim=1))
    upright, across = (1 + 0.7 * exponents).unsqueeze(1).unbind(-1)
    x, y, z = torch.nn.functional.normalize(torch.randn(len(sizes), count, 3), dim=-1).abs().unbind(-1)
    level = (x ** (2 / across) + y ** (2 / across)) ** (across / upright) + z ** (2 / upright)
    signs = torch.randint(2, (len(sizes), count, 3)) * 2 - 1
    x, y, z = (torch.stack([x, y, z], -1) * signs * level[..., None] ** (-upright[..., None] / 2)).unbind(-1)
    narrow = 1 + 0.4 * taper * z
    x, y, z = x * narrow * sizes[:, :1], y * narrow * sizes[:, 1:2], z * sizes[:, 2:]
    cos, sin = (turn * torch.pi / 4).cos(), (turn * torch.pi / 4).sin()
    places = torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)
    below, above = (shapes.color[:, None] / 2).split(3, dim=-1)
    return torch.cat([places, 0.5 + torch.lerp(below, above, (0.5 + 2 * places[..., 2:]).clamp(0, 1))], dim=-1)


def draw_tokens(shapes: Shapes, count: int) -> Tensor:
    """Draw surfaces and choose tokens by farthest-point sampling, as the encoder of DeG places its own.

    Args:
        shapes: B shapes.
        count: tokens M of each.

    Returns:
        [B, M, 6] places and colours, in the order in which they were chosen.
    """
    points = surface_points(shapes, _SURFACE)
    return _taken(points, farthest_point_sampling(points[..., :3].contiguous(), count))


def ordered(tokens: Tensor) -> dict[str, Tensor]:
    """The same sets in three orders, each drawn or found once for an object.

    Args:
        tokens: [B, M, 6] in the order of farthest-point sampling.

    Returns:
        [B, M, 6] by the name of the order.
    """
    assigned = order_tokens(tokens[..., :3], sobol_anchors(tokens.shape[1]))
    shuffled = torch.rand(tokens.shape[:2]).argsort(dim=1)
    return dict(zip(ORDERS, (_taken(tokens, assigned), tokens, _taken(tokens, shuffled)), strict=True))


def _taken(rows: Tensor, indices: Tensor) -> Tensor:
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


@dataclass(frozen=True)
class Examples:
    """Sets of tokens and their conditions.

    Attributes:
        sets: [B, M, 6] by the name of their order, normalised.
        shapes: B conditions.
        mean: [6] of the tokens.
        spread: [6] standard deviations of the tokens.
    """

    sets: dict[str, Tensor]
    shapes: Shapes
    mean: Tensor
    spread: Tensor

    def part(self, rows: slice) -> "Examples":
        """Some of the sets, normalised as all are.

        Args:
            rows: which.

        Returns:
            These.
        """
        sets = {order: tokens[rows] for order, tokens in self.sets.items()}
        return Examples(sets, Shapes(self.shapes.shape[rows], self.shapes.color[rows]), self.mean, self.spread)

    def normalised(self, tokens: Tensor) -> Tensor:
        """Tokens as a model sees them.

        Args:
            tokens: [B, M, 6] places and colours.

        Returns:
            [B, M, 6].
        """
        return (tokens - self.mean) / self.spread

    def places(self, tokens: Tensor) -> Tensor:
        """Where tokens lie.

        Args:
            tokens: [B, M, 6] normalised.

        Returns:
            [B, M, 3] in the unit of the objects.
        """
        return (tokens * self.spread + self.mean)[..., :3]

    def chamfer(self, found: Tensor, true: Tensor) -> float:
        """Distance between the places of paired sets.

        Args:
            found: [B, M, 6] normalised.
            true: [B, M, 6] normalised.

        Returns:
            Mean over the pairs, in the unit of the objects.
        """
        return chamfer_distance(self.places(found), self.places(true)).mean().item()

    def chamfer_of_tokens(self, found: Tensor, true: Tensor) -> float:
        """Distance between paired sets in place and colour.

        Args:
            found: [B, M, 6] normalised.
            true: [B, M, 6] normalised.

        Returns:
            Mean over the pairs, in standard deviations.
        """
        return chamfer_distance(found, true).mean().item()


def draw_examples(count: int, tokens: int) -> Examples:
    """Draw shapes and their tokens.

    Args:
        count: shapes.
        tokens: M of each.

    Returns:
        The sets.
    """
    shapes = random_shapes(count)
    drawn = draw_tokens(shapes, tokens)
    mean, spread = drawn.mean((0, 1)), drawn.std((0, 1))
    sets = {order: (found - mean) / spread for order, found in ordered(drawn).items()}
    return Examples(sets, shapes, mean, spread)


def positional_variance(places: Tensor) -> Tensor:
    """How far the token of an index lies from where it lies in the mean over objects.

    Args:
        places: [B, M, 3].

    Returns:
        [M] variance of its place over the objects, as a share of the variance of all places.
    """
    return places.var(0, unbiased=False).sum(-1) / places.flatten(0, 1).var(0, unbiased=False).sum()
