"""The forward and the backward pass: arrays in, arrays out."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gsforge.render.cpu import accumulate, bin, differentiate, draw, geometry, prepare
from gsforge.render.cpu.arrays import Array, Chunk, Gradients, ImageGradients, Images, Scene, Splats
from gsforge.render.cpu.buffers import empty
from gsforge.render.cpu.colors import color_splats, copy_colors, differentiate_colors
from gsforge.render.cpu.threads import run, share
from gsforge.render.cpu.tiles import (
    FIRST_ROW,
    FIRST_SLOT,
    FIRST_SPAN,
    LANES,
    PLACE_COLUMNS,
    ROWS,
    SPLAT_COLUMNS,
)

# Entries (splat, tile) held at once; beyond, tiles are drawn in chunks of rows. 60 to 100 bytes each with gradients.
MAX_ENTRIES = 1 << 22
# Items worth a call from another thread.
_SPLATS, _TILES, _GROUPS = 4096, 16, 4


def forward(scene: Scene) -> tuple[Images, Splats]:
    """Draw.

    Args:
        scene: what is drawn.

    Returns:
        The images, and what `backward` needs.
    """
    splats = _prepare(scene)
    shape, real = (scene.height, scene.width), scene.means.dtype
    images = Images(
        rgb=empty((scene.images, 3, *shape), real),
        alpha=empty((scene.images, 1, *shape), real),
        depth=empty((scene.images, 1, *shape), real),
        features=empty((scene.images, scene.features.shape[2], *shape), real),
        rests=empty((scene.images * scene.tiles_y * scene.tiles_x, LANES), real),
        lasts=empty((scene.images * scene.tiles_y * scene.tiles_x, LANES), real),
    )
    for chunk in _chunks(scene, splats):
        run(
            draw.draw_tiles, chunk.tiles, _TILES,
            chunk.first_tile, chunk.tile_starts, chunk.entries, splats.table, splats.colors, scene.features,
            scene.feature_repeat, scene.limits, scene.tiles_x, scene.tiles_y, scene.backgrounds,
            images.rgb, images.alpha, images.depth, images.features, images.rests, images.lasts,
        )  # fmt: skip
        if chunk.tiles == scene.images * scene.tiles_y * scene.tiles_x:
            splats = replace(splats, tile_starts=chunk.tile_starts, entries=chunk.entries)
    return images, splats


def backward(scene: Scene, splats: Splats, rests: Array, lasts: Array, v: ImageGradients) -> Gradients:
    """Undo.

    Args:
        scene: what was drawn.
        splats: from `forward`.
        rests: from `forward`.
        lasts: from `forward`.
        v: gradients of the images.

    Returns:
        The gradients of the scene; for the SH and the colours those of the one that was drawn.
    """
    real, columns = scene.means.dtype, differentiate.GRAD_FEATURES + scene.features.shape[2]
    totals = empty((len(splats.counts), columns), real)
    totals.fill(0)
    v_backgrounds = np.zeros((scene.images * scene.tiles_y * scene.tiles_x, 3), real)
    for chunk in _chunks(scene, splats):
        sums = empty((len(chunk.entries), columns), real)
        run(
            differentiate.differentiate_tiles, chunk.tiles, _TILES,
            chunk.first_tile, chunk.tile_starts, chunk.entries, splats.table, splats.colors, scene.features,
            scene.feature_repeat, scene.limits, scene.tiles_x, scene.tiles_y, scene.backgrounds, rests, lasts,
            v.rgb, v.alpha, v.depth, v.features, v.loss, v.residuals, v.contribution, sums, v_backgrounds,
        )  # fmt: skip
        run(accumulate.add_slots, len(totals), _SPLATS, chunk.places, chunk.counts, sums, totals)
    return _gradients(scene, splats, totals, v_backgrounds)


def _gradients(scene: Scene, splats: Splats, totals: Array, v_backgrounds: Array) -> Gradients:
    scenes, views, settings = len(scene.means), scene.images // max(len(scene.means), 1), scene.settings
    real = scene.means.dtype
    groups = scenes * -(-scene.count // accumulate.GROUP)
    v_means, v_quats = empty(scene.means.shape, real), empty(scene.quats.shape, real)
    v_scales, v_opacities = empty(scene.scales.shape, real), empty(scene.opacities.shape, real)
    v_cameras = np.empty((groups, views, geometry.CAMERA_COLUMNS))
    run(
        accumulate.differentiate_geometry, groups, _GROUPS,
        scene.means, scene.quats, scene.scales, scene.opacities, scene.cameras, scene.width, scene.height,
        settings.eps2d, settings.mode == "antialiased", splats.table, splats.counts, totals,
        v_means, v_quats, v_scales, v_opacities, v_cameras,
    )  # fmt: skip
    v_sh = empty(scene.sh.shape, real)
    if len(scene.colors):
        v_sh.fill(0)
    else:
        run(
            differentiate_colors, groups, _GROUPS,
            scene.means, scene.sh, scene.cameras, splats.colors, splats.counts, totals, v_sh, v_means, v_cameras,
        )  # fmt: skip
    by_view = totals.reshape(scenes, views, scene.count, totals.shape[1])
    red, token, features = differentiate.GRAD_RED, differentiate.GRAD_TOKEN, differentiate.GRAD_FEATURES
    return Gradients(
        means=v_means,
        quats=v_quats,
        scales=v_scales,
        opacities=v_opacities,
        sh=v_sh,
        colors=_over_views(by_view[..., red : red + 3], scene.colors),
        features=_over_views(by_view[..., features:], scene.features),
        cameras=v_cameras.reshape(scenes, -1, views, geometry.CAMERA_COLUMNS).sum(1).reshape(scene.cameras.shape),
        backgrounds=v_backgrounds.reshape(scene.images, -1, 3).sum(1),
        tokens=by_view[..., token].sum(1),
    )


def _over_views(values: Array, given: Array) -> Array:
    """Sum gradients [B, views, N, D] over the views, unless every view was given a value of its own."""
    if len(given) <= len(values):
        return values.sum(1)[: len(given)]
    return np.ascontiguousarray(values).reshape(given.shape)


def _prepare(scene: Scene) -> Splats:
    number, settings = scene.images * scene.count, scene.settings
    table = empty((number, SPLAT_COLUMNS), np.float64)
    places = empty((number, PLACE_COLUMNS), np.int32)
    run(
        prepare.prepare_splats, scene.images * -(-scene.count // geometry.BLOCK), _SPLATS // geometry.BLOCK,
        scene.means, scene.quats, scene.scales, scene.opacities, scene.cameras, scene.width, scene.height,
        settings.eps2d, settings.near, settings.far, settings.radius_clip, settings.mode == "antialiased",
        table, places,
    )  # fmt: skip
    colors = empty((number, 3), scene.means.dtype)
    if len(scene.colors):
        repeat = scene.images // len(scene.colors)
        run(copy_colors, number, _SPLATS, scene.colors, repeat, places, colors)
    else:
        run(color_splats, number, _SPLATS, scene.means, scene.sh, scene.cameras, places, colors)
    rows = bin.sum_before(places[:, ROWS], places, FIRST_SPAN)
    spans, counts = empty((rows, 2), np.int32), empty((number,), np.int32)
    run(bin.find_spans, number, _SPLATS, table, places, scene.width, scene.height, spans, counts)
    bin.sum_before(counts, places, FIRST_SLOT)
    order, spare_order = empty((number,), np.int32), empty((number,), np.int32)
    keys, spare_keys = empty((number,), np.uint32), empty((number,), np.uint32)
    visible = np.empty(scene.images, np.int64)
    run(
        bin.sort_by_depth, scene.images, 1, table, counts, scene.count, order, visible, keys, spare_order, spare_keys
    )  # fmt: skip
    unknown = np.empty(0, np.int64), np.empty((0, 2), np.int32)
    return Splats(table, colors, places, spans, counts, order, visible, *unknown)


def _chunks(scene: Scene, splats: Splats) -> Iterator[Chunk]:
    """Groups of rows of tiles with at most `MAX_ENTRIES` entries, or one row."""
    all_rows = scene.images * scene.tiles_y
    if len(splats.tile_starts):
        yield Chunk(
            0, all_rows * scene.tiles_x, splats.tile_starts, splats.entries, splats.places, splats.counts
        )  # fmt: skip
        return
    if int(splats.counts.sum(dtype=np.int64)) <= MAX_ENTRIES:
        yield _chunk(scene, splats, 0, all_rows)
        return
    width = splats.spans[:, 1] - splats.spans[:, 0]
    owner = np.repeat(np.arange(len(splats.places)), splats.places[:, ROWS])
    within = np.arange(len(width)) - splats.places[owner, FIRST_SPAN]
    row = owner // scene.count * scene.tiles_y + splats.places[owner, FIRST_ROW] + within
    entries_of_row = np.bincount(row, weights=width, minlength=all_rows).astype(np.int64)
    first, entries = 0, 0
    for row in range(all_rows):
        if entries + entries_of_row[row] > MAX_ENTRIES and row > first:
            yield _chunk(scene, splats, first, row)
            first, entries = row, 0
        entries += entries_of_row[row]
    yield _chunk(scene, splats, first, all_rows)


def _chunk(scene: Scene, splats: Splats, first_row: int, end_row: int) -> Chunk:
    places, counts = splats.places, splats.counts
    sizes = scene.count, scene.tiles_x, scene.tiles_y
    if end_row - first_row < scene.images * scene.tiles_y:
        counts = empty(counts.shape, counts.dtype)
        run(
            bin.count_in_rows, len(counts), _SPLATS,
            places, splats.spans, scene.count, scene.tiles_y, first_row, end_row, counts,
        )  # fmt: skip
        places = places.copy()
        bin.sum_before(counts, places, FIRST_SLOT)
    # Every piece of work looks at all splats of its images: no more pieces than threads.
    grain = share(end_row - first_row) if len(counts) > _SPLATS else end_row - first_row
    tiles, origin = (end_row - first_row) * scene.tiles_x, first_row * scene.tiles_x
    tile_counts = np.zeros(tiles, np.int64)
    run(
        bin.count_splats_of_tiles, end_row - first_row, grain,
        first_row, places, splats.spans, *sizes, tile_counts,
    )  # fmt: skip
    tile_starts = np.zeros(tiles + 1, np.int64)
    np.cumsum(tile_counts, out=tile_starts[1:])
    entries = empty((int(tile_starts[-1]), 2), np.int32)
    run(
        bin.fill_tiles, end_row - first_row, grain,
        first_row, places, splats.spans, splats.order, splats.visible, *sizes,
        tile_starts[:-1].copy(), entries,
    )  # fmt: skip
    return Chunk(origin, tiles, tile_starts, entries, places, counts)
