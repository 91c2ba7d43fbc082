"""Which splats are listed for which tiles, and in what order, against all pairs and NumPy's stable sort."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render import RenderSettings
from gsforge.render.cpu import bin
from gsforge.render.cpu.arrays import Array, Scene, Splats
from gsforge.render.cpu.passes import forward
from gsforge.render.cpu.tiles import (
    DEPTH,
    GROUP,
    PLACED,
    SPLAT_COLUMNS,
    TILE_HEIGHT,
    TILE_WIDTH,
    place_splats,
    tile_origin,
)
from gsforge.render.projection import project


def scene_of(gaussians: Gaussians, cameras: Cameras) -> Scene:
    """Arrays of one scene seen by several cameras."""
    pose, lens = cameras.world_to_camera.double(), cameras.intrinsics.double()
    columns = [
        pose[:, :3, :3].reshape(-1, 9), pose[:, :3, 3], lens[:, [0, 1, 0, 1], [0, 1, 2, 2]], cameras.centers.double()
    ]  # fmt: skip
    arrays = [getattr(gaussians, name).numpy()[None] for name in ("means", "quats", "scales", "opacities", "sh")]
    real = arrays[0].dtype
    return Scene(
        *arrays,
        colors=np.empty((0, gaussians.count, 3), real),
        features=np.empty((1, gaussians.count, 0), real),
        cameras=torch.cat(columns, dim=1).numpy(),
        backgrounds=np.zeros((cameras.count, 3), real),
        width=cameras.width,
        height=cameras.height,
        settings=RenderSettings(),
    )


def with_needles(gaussians: Gaussians) -> Gaussians:
    """Every third Gaussian becomes a long thin needle, every fifth a large one, every seventh almost transparent."""
    gaussians.scales[::3] *= torch.tensor([30.0, 0.01, 0.01])
    gaussians.scales[::5] *= 8
    gaussians.opacities[::7] = 1.02 / 255
    return gaussians


def touched_pixels(gaussians: Gaussians, cameras: Cameras) -> Array:
    """[pixels above the threshold, 4] image, Gaussian, y and x, from the alphas of all pairs."""
    seen = project(gaussians.to(dtype=torch.float64), cameras.to(dtype=torch.float64), RenderSettings())
    ys = torch.arange(cameras.height).double()[:, None] + 0.5
    xs = torch.arange(cameras.width).double() + 0.5
    dx, dy = xs - seen.means2d[..., 0, None, None], ys - seen.means2d[..., 1, None, None]
    a, b, c = (entry[..., None, None] for entry in seen.conics.unbind(-1))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = seen.opacities[..., None, None] * torch.exp(-sigma) * seen.visible[..., None, None]
    return (alpha >= 1 / 255).nonzero().numpy()


def listed(splats: Splats) -> set[tuple[int, int]]:
    """Pairs of tile and splat."""
    tiles = np.repeat(np.arange(len(splats.tile_starts) - 1), np.diff(splats.tile_starts))
    return set(zip(tiles.tolist(), splats.entries[:, 0].tolist(), strict=True))


def test_every_pixel_above_the_threshold_is_in_a_listed_tile(
    random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras]
) -> None:
    gaussians, cameras = with_needles(random_scene(150)), orbit(3, 61, 45)
    scene = scene_of(gaussians, cameras)
    _, splats = forward(scene)
    image, gaussian, y, x = touched_pixels(gaussians, cameras).T
    splat = image * gaussians.count + gaussian
    tile = (image * scene.tiles_y + y // TILE_HEIGHT) * scene.tiles_x + x // TILE_WIDTH
    needed = set(zip(tile.tolist(), splat.tolist(), strict=True))
    pairs = listed(splats)
    assert needed <= pairs
    assert len(pairs) < 1.2 * len(needed), "many tiles without any pixel: slow, though correct"
    assert len(pairs) == len(splats.entries) == splats.counts.sum(), "a splat stands twice in the list of a tile"

    needed_rows = set(zip(tile.tolist(), splat.tolist(), (y % TILE_HEIGHT).tolist(), strict=True))
    rows = placed_rows(splats, scene.tiles_x, scene.tiles_y)
    assert needed_rows <= rows
    assert len(rows) < 1.1 * len(needed_rows), "many rows without any pixel: slow, though correct"


def placed_rows(splats: Splats, tiles_x: int, tiles_y: int) -> set[tuple[int, int, int]]:
    """Tile, splat and row of the tile of all that is drawn."""
    placed, extents = np.ones(PLACED, np.float32), np.empty(2 * GROUP, np.int32)
    whole = (0, TILE_WIDTH - 1, 0, TILE_HEIGHT - 1)
    found = set()
    for tile in range(len(splats.tile_starts) - 1):
        _, x0, y0 = tile_origin(tile, tiles_x, tiles_y)
        for k in range(splats.tile_starts[tile], splats.tile_starts[tile + 1]):
            place_splats(k, k + 1, splats.entries, splats.table, splats.colors, x0, y0, whole, placed, extents)
            first, number = extents[[0, GROUP]].tolist()
            found |= {(tile, int(splats.entries[k, 0]), row) for row in range(first, first + number)}
    return found


def test_tiles_list_their_splats_front_to_back(
    random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras]
) -> None:
    gaussians, cameras = random_scene(150), orbit(2, 61, 45)
    gaussians.means[100:] = gaussians.means[:50]  # the same depth: in the order of their indices
    _, splats = forward(scene_of(gaussians, cameras))
    for start, end in zip(splats.tile_starts[:-1], splats.tile_starts[1:], strict=True):
        inside = splats.entries[start:end, 0]
        assert (inside == np.sort(inside)[np.argsort(splats.table[np.sort(inside), DEPTH], kind="stable")]).all()
    assert sorted(splats.entries[:, 1]) == list(range(len(splats.entries))), "two entries share a slot for their sums"


@pytest.mark.parametrize("groups", [40, 1500], ids=["many ties at once", "few ties at once"])
def test_depths_are_sorted_exactly_and_ties_keep_their_order(groups: int) -> None:
    images, count = 2, 3000
    generator = np.random.default_rng(0)
    # Groups that float32 cannot tell apart, and within a group depths that are equal in float64 as well.
    group = generator.choice(np.exp(generator.uniform(-20, 20, groups)), images * count)
    depths = group * (1 + 1e-9 * generator.integers(0, 8, images * count))
    assert len(np.unique(depths.astype(np.float32))) < len(np.unique(depths)) / 2
    assert len(np.unique(depths)) < len(depths)
    splats = np.full((images * count, SPLAT_COLUMNS), np.nan)
    splats[:, DEPTH] = depths
    counts = generator.integers(0, 3, images * count).astype(np.int32)
    order, spare_order = np.empty((2, images * count), np.int32)
    keys, spare_keys = np.empty((2, images * count), np.uint32)
    visible = np.empty(images, np.int64)

    bin.sort_by_depth(0, images, splats, counts, count, order, visible, keys, spare_order, spare_keys)
    for image in range(images):
        seen = image * count + np.flatnonzero(counts[image * count : (image + 1) * count])
        assert visible[image] == len(seen)
        expected = seen[np.argsort(depths[seen], kind="stable")]
        assert (order[image * count : image * count + len(seen)] == expected).all()
