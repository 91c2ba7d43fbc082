"""Which splats touch which tiles, front to back; only exact bounds of the ellipses are used, and no sort of pairs."""

import math

import numpy as np

from gsforge.render.cpu.prepare import MARGIN, pixels_between
from gsforge.render.cpu.tiles import (
    DEPTH,
    FIRST_ROW,
    FIRST_SLOT,
    FIRST_SPAN,
    HALF_HEIGHT,
    LOG_255,
    LOG_OPACITY,
    PLACE_COLUMNS,
    ROWS,
    TILE_HEIGHT,
    TILE_WIDTH,
    A,
    B,
    C,
    X,
    Y,
    kernel,
)

_DIGIT = 11  # bits of a pass of the radix sort
_FEW = 32  # to be sorted by insertion
_AHEAD = 32  # splats whose tiles are read at once
# What is read of each: its number, its place behind it column by column, and its first span.
_SPLAT, _PLACE, _LEFT, _RIGHT = 0, 1, 5, 6


@kernel
def sum_before(counts, places, column):
    """Write the sum of all counts before each one to a column of `places`; returns the sum of all."""
    total = 0
    for s in range(len(counts)):
        places[s, column] = total
        total += counts[s]
    return total


@kernel
def find_spans(first, end, splats, places, width, height, spans, counts):
    """Find, for the splats first..end-1, the tiles touched in each row of tiles.

    Args:
        first: first splat.
        end: splat after the last.
        splats: [S, 8].
        places: [S, 4].
        width: of the image.
        height: of the image.
        spans: [R, 2] written: first tile column, and the one after the last.
        counts: [S] written: tiles touched in all.
    """
    for s in range(first, end):
        total = 0
        for k in range(places[s, ROWS]):
            top = (places[s, FIRST_ROW] + k) * TILE_HEIGHT
            left, right = span_of_rows(splats, s, top + 0.5, min(top + TILE_HEIGHT, height) - 0.5)
            first_pixel, end_pixel = pixels_between(left, right, width)
            span = places[s, FIRST_SPAN] + k
            spans[span, 0], spans[span, 1] = 0, 0
            if first_pixel < end_pixel:
                spans[span, 0], spans[span, 1] = first_pixel // TILE_WIDTH, (end_pixel - 1) // TILE_WIDTH + 1
                total += spans[span, 1] - spans[span, 0]
        counts[s] = total


@kernel
def span_of_rows(splats, s, low, high):
    """Least and largest x of the ellipse p^2 + r^2 <= reach between y = low and y = high."""
    reach = max(LOG_255 + splats[s, LOG_OPACITY], 0.0)
    a, b, c = splats[s, A], splats[s, B], splats[s, C]
    low = max(low - splats[s, Y], -splats[s, HALF_HEIGHT])
    high = min(high - splats[s, Y], splats[s, HALF_HEIGHT])
    # The rightmost point of the ellipse; the leftmost lies opposite.
    at = -b * math.sqrt(reach / (c * c + b * b)) / c
    right, left = min(max(at, low), high), min(max(-at, low), high)
    half_right = math.sqrt(max(reach - c * c * right * right, 0.0))
    half_left = math.sqrt(max(reach - c * c * left * left, 0.0))
    return splats[s, X] + (-half_left - b * left) / a - MARGIN, splats[s, X] + (half_right - b * right) / a + MARGIN


@kernel
def sort_by_depth(first, end, splats, counts, count, order, visible, keys, spare_order, spare_keys):
    """Order the splats of the images first..end-1 that touch a tile, front to back; equal depths keep their order.

    A radix sort of the depths rounded to float32, whose bits order positive numbers, then of those that rounding made
    equal by what it took away.

    Args:
        first: first image.
        end: image after the last.
        splats: [S, 8].
        counts: [S] tiles touched.
        count: splats of an image.
        order: [S] written: splats of an image in order, at the image's first place.
        visible: [I] written: number of splats in order.
        keys: [S] uint32, to scribble on.
        spare_order: [S] to scribble on.
        spare_keys: [S] uint32, to scribble on.
    """
    starts = np.empty((1 << _DIGIT) + 1, np.int64)
    single = np.empty(1, np.float32)
    bits = single.view(np.uint32)
    for image in range(first, end):
        begin, found = image * count, 0
        for s in range(begin, begin + count):
            if counts[s] > 0:
                single[0] = splats[s, DEPTH]
                order[begin + found], keys[begin + found] = s, bits[0]
                found += 1
        visible[image] = found
        o, k = order[begin : begin + found], keys[begin : begin + found]
        spare_o, spare_k = spare_order[begin : begin + found], spare_keys[begin : begin + found]
        for shift in range(0, 32, _DIGIT):
            sort_by_digit(shift, o, k, spare_o, spare_k, starts)
            o, spare_o, k, spare_k = spare_o, o, spare_k, k
        spare_o[:] = o  # `spare_o` is `order`: the number of passes is odd
        settle_ties(splats, spare_o, k, o, spare_k, starts)


@kernel
def sort_by_digit(shift, order, keys, to_order, to_keys, starts):
    """One stable pass of a radix sort."""
    mask = np.uint32((1 << _DIGIT) - 1)
    starts[:] = 0
    for i in range(len(order)):
        starts[((keys[i] >> np.uint32(shift)) & mask) + 1] += 1
    for digit in range(1, len(starts)):
        starts[digit] += starts[digit - 1]
    for i in range(len(order)):
        digit = (keys[i] >> np.uint32(shift)) & mask
        place = starts[digit]
        starts[digit] += 1
        to_order[place], to_keys[place] = order[i], keys[i]


@kernel
def settle_ties(splats, order, keys, spare_order, spare_keys, starts):
    """Order by exact depth what has equal keys: a few by insertion, many by their bits."""
    first = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and keys[end] == keys[first]:
            continue
        if end - first > _FEW:
            sort_by_rest(
                splats, order[first:end], keys[first:end], spare_order[first:end], spare_keys[first:end], starts
            )  # fmt: skip
        elif end - first > 1:
            insert_by_depth(splats, order, first, end)
        first = end


@kernel
def insert_by_depth(splats, order, first, end):
    """Insertion sort of order[first:end] by exact depth."""
    for i in range(first + 1, end):
        s, place = order[i], i
        while place > first and splats[order[place - 1], DEPTH] > splats[s, DEPTH]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = s


@kernel
def sort_by_rest(splats, order, keys, spare_order, spare_keys, starts):
    """Order depths that are equal in float32 by their distance from the least, which is below 2^30 steps of float64."""
    single = np.empty(1, np.float64)
    bits = single.view(np.uint64)
    single[0] = np.inf
    for s in order:
        single[0] = min(single[0], splats[s, DEPTH])
    least = bits[0]
    for i in range(len(order)):
        single[0] = splats[order[i], DEPTH]
        keys[i] = bits[0] - least
    sort_by_digit(0, order, keys, spare_order, spare_keys, starts)
    sort_by_digit(_DIGIT, spare_order, spare_keys, order, keys, starts)
    sort_by_digit(2 * _DIGIT, order, keys, spare_order, spare_keys, starts)
    order[:] = spare_order


@kernel
def count_in_rows(first, end, places, spans, count, tiles_y, first_row, end_row, counts):
    """Count the tiles that the splats first..end-1 touch in the rows of tiles first_row..end_row-1 of all images."""
    for s in range(first, end):
        total = 0
        row = s // count * tiles_y + places[s, FIRST_ROW]
        for k in range(places[s, ROWS]):
            if (row + k >= first_row) & (row + k < end_row):
                total += spans[places[s, FIRST_SPAN] + k, 1] - spans[places[s, FIRST_SPAN] + k, 0]
        counts[s] = total


@kernel
def count_splats_of_tiles(first, end, chunk_row, places, spans, count, tiles_x, tiles_y, tile_counts):
    """Count the splats of each tile in some rows of tiles.

    Args:
        first: first row, counted from `chunk_row`.
        end: row after the last.
        chunk_row: row that the chunk begins with, numbered over all images.
        places: [S, 4].
        spans: [R, 2].
        count: splats of an image.
        tiles_x: tiles in a row.
        tiles_y: rows of an image.
        tile_counts: [tiles of the chunk] added to.
    """
    first_row, end_row = chunk_row + first, chunk_row + end
    for image in range(first_row // tiles_y, (end_row - 1) // tiles_y + 1):
        for s in range(image * count, (image + 1) * count):
            row = image * tiles_y + places[s, FIRST_ROW]
            for k in range(max(first_row - row, 0), min(places[s, ROWS], end_row - row)):
                span = places[s, FIRST_SPAN] + k
                tile = (row + k - chunk_row) * tiles_x
                for column in range(spans[span, 0], spans[span, 1]):
                    tile_counts[tile + column] += 1


@kernel
def fill_tiles(
    first, end, chunk_row, places, spans, order, visible, count, tiles_x, tiles_y, cursors, entries,
):  # fmt: skip
    """Write the entries of the tiles of some rows, front to back.

    Args:
        first: first row, counted from `chunk_row`.
        end: row after the last.
        chunk_row: row that the chunk begins with, numbered over all images.
        places: [S, 4].
        spans: [R, 2].
        order: [S] splats of each image front to back.
        visible: [I] number of them.
        count: splats of an image.
        tiles_x: tiles in a row.
        tiles_y: rows of an image.
        cursors: [tiles of the chunk] where the next entry of a tile goes; moved on.
        entries: [M, 2] written: splat, slot.
    """
    first_row, end_row = chunk_row + first, chunk_row + end
    heads = np.empty((_AHEAD, 7), np.int32)
    for image in range(first_row // tiles_y, (end_row - 1) // tiles_y + 1):
        stop = image * count + visible[image]
        for begin in range(image * count, stop, _AHEAD):
            number = min(_AHEAD, stop - begin)
            read_ahead(begin, number, places, spans, order, heads)
            for i in range(number):
                s, row, rows = heads[i, _SPLAT], image * tiles_y + heads[i, _PLACE + FIRST_ROW], heads[i, _PLACE + ROWS]
                span, slot = heads[i, _PLACE + FIRST_SPAN], heads[i, _PLACE + FIRST_SLOT]
                left, right = heads[i, _LEFT], heads[i, _RIGHT]
                for k in range(min(rows, end_row - row)):
                    if k > 0:
                        left, right = spans[span + k, 0], spans[span + k, 1]
                    if row + k >= first_row:
                        tile = (row + k - chunk_row) * tiles_x
                        for column in range(left, right):
                            place = cursors[tile + column]
                            cursors[tile + column] = place + 1
                            entries[place, 0], entries[place, 1] = s, slot + column - left
                    if row + k >= chunk_row:
                        slot += right - left


@kernel
def read_ahead(begin, number, places, spans, order, heads):
    """Write splat, place and first span of some splats: without a branch, the loads from far apart overlap."""
    for i in range(number):
        s = order[begin + i]
        heads[i, _SPLAT] = s
        for column in range(PLACE_COLUMNS):
            heads[i, _PLACE + column] = places[s, column]
    for i in range(number):
        span = heads[i, _PLACE + FIRST_SPAN]
        heads[i, _LEFT], heads[i, _RIGHT] = spans[span, 0], spans[span, 1]
