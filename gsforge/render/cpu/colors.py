"""Colours of splats, and the gradients through the spherical harmonics: a batch of Gaussians at a time."""

import math

import numpy as np

from gsforge.render.cpu.accumulate import GROUP
from gsforge.render.cpu.geometry import CENTER
from gsforge.render.cpu.harmonics import (
    AT,
    BATCH,
    BY_X,
    BY_Y,
    BY_Z,
    INVERSE,
    PLANES,
    X,
    Y,
    Z,
    differentiate_harmonics,
    evaluate_harmonics,
)
from gsforge.render.cpu.tiles import GRAD_RED, HALF, ROWS, ZERO, kernel


@kernel
def color_splats(first, end, means, sh, cameras, places, colors):
    """Evaluate the spherical harmonics of the visible ones of the splats first..end-1, as their cameras see them.

    Args:
        first: first splat.
        end: splat after the last.
        means: [B, N, 3].
        sh: [B, N, K, 3].
        cameras: [I, 19].
        places: [S, 4] from `prepare_splats`.
        colors: [S, 3] written where visible.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    planes, batch = np.zeros(PLANES, sh.dtype), np.empty(BATCH, np.int64)
    for image in range(first // count, (end - 1) // count + 1):
        origin, size = image * count, 0
        begin, stop = max(first - origin, 0), min(end - origin, count)
        for n in range(begin, stop):
            batch[size] = n
            size += places[origin + n, ROWS] > 0
            if size == BATCH or n == stop - 1:
                color_batch(means, sh, image // views, cameras, image, batch, size, planes, colors, origin)
                size = 0


@kernel
def color_batch(means, sh, scene, cameras, image, batch, size, planes, colors, origin):
    """Write the colours of the Gaussians batch[:size]."""
    terms = sh.shape[2]
    if terms > 1:
        place_directions(means, scene, cameras, image, batch, size, planes)
    evaluate_harmonics(planes, terms)
    for i in range(size):
        n = batch[i]
        red, green, blue = HALF, HALF, HALF
        for k in range(terms):
            value = planes[i + AT[0] + k * BATCH]
            red += value * sh[scene, n, k, 0]
            green += value * sh[scene, n, k, 1]
            blue += value * sh[scene, n, k, 2]
        s = origin + n
        colors[s, 0], colors[s, 1], colors[s, 2] = max(red, ZERO), max(green, ZERO), max(blue, ZERO)


@kernel
def place_directions(means, scene, cameras, image, batch, size, planes):
    """Write the directions from a camera to the Gaussians batch[:size], rounded only when they have been normalised."""
    for i in range(size):
        n = batch[i]
        x = means[scene, n, 0] - cameras[image, CENTER]
        y = means[scene, n, 1] - cameras[image, CENTER + 1]
        z = means[scene, n, 2] - cameras[image, CENTER + 2]
        inverse = 1 / max(math.sqrt(x * x + y * y + z * z), 1e-12)
        planes[i + X], planes[i + Y], planes[i + Z] = x * inverse, y * inverse, z * inverse
        planes[i + INVERSE] = inverse


@kernel
def copy_colors(first, end, given, repeat, places, colors):
    """Take the colours of the visible ones of the splats first..end-1 as given, [scenes or images, N, 3]."""
    count = given.shape[1]
    for s in range(first, end):
        if places[s, ROWS] > 0:
            image = s // count
            for channel in range(3):
                colors[s, channel] = given[image // repeat, s - image * count, channel]


@kernel
def differentiate_colors(first, end, means, sh, cameras, colors, counts, totals, v_sh, v_means, v_cameras):
    """Gradients through the spherical harmonics, for the groups first..end-1 of Gaussians.

    Args:
        first: first group, as in `differentiate_geometry`.
        end: group after the last.
        means: [B, N, 3].
        sh: [B, N, K, 3].
        cameras: [I, 19].
        colors: [S, 3] as drawn: not below zero.
        counts: [S] 0 where a splat touches no tile.
        totals: [S, 11 + F].
        v_sh: [B, N, K, 3] written.
        v_means: [B, N, 3] added to.
        v_cameras: [groups, views, 19] added to.
    """
    count, views = means.shape[1], len(cameras) // len(means)
    groups, terms = (count + GROUP - 1) // GROUP, sh.shape[2]
    planes, batch = np.zeros(PLANES, sh.dtype), np.empty(BATCH, np.int64)
    for group in range(first, end):
        scene = group // groups
        begin = (group - scene * groups) * GROUP
        last = min(begin + GROUP, count)
        for start in range(begin, last, BATCH):
            for view in range(views):
                image = scene * views + view
                origin, size = image * count, 0
                for n in range(start, min(start + BATCH, last)):
                    batch[size] = n
                    size += counts[origin + n] > 0
                    if view == 0 and counts[origin + n] == 0:
                        v_sh[scene, n, :, :] = 0
                if size == 0:
                    continue
                if terms > 1:
                    place_directions(means, scene, cameras, image, batch, size, planes)
                evaluate_harmonics(planes, terms)
                differentiate_coefficients(sh, scene, batch, size, colors, totals, origin, view == 0, planes, v_sh)
                if terms > 1:
                    differentiate_harmonics(planes, terms)
                    add_directions(planes, scene, batch, size, v_means, v_cameras, group, view)


@kernel
def differentiate_coefficients(sh, scene, batch, size, colors, totals, origin, is_first, planes, v_sh):
    """Write or add the gradients by the coefficients; replace the harmonics by the gradients by them."""
    for i in range(size):
        n = batch[i]
        s = origin + n
        red = totals[s, GRAD_RED] if colors[s, 0] > 0 else ZERO
        green = totals[s, GRAD_RED + 1] if colors[s, 1] > 0 else ZERO
        blue = totals[s, GRAD_RED + 2] if colors[s, 2] > 0 else ZERO
        for k in range(sh.shape[2]):
            at = i + AT[0] + k * BATCH
            value = planes[at]
            planes[at] = red * sh[scene, n, k, 0] + green * sh[scene, n, k, 1] + blue * sh[scene, n, k, 2]
            if is_first:
                v_sh[scene, n, k, 0] = value * red
                v_sh[scene, n, k, 1] = value * green
                v_sh[scene, n, k, 2] = value * blue
            else:
                v_sh[scene, n, k, 0] += value * red
                v_sh[scene, n, k, 1] += value * green
                v_sh[scene, n, k, 2] += value * blue


@kernel
def add_directions(planes, scene, batch, size, v_means, v_cameras, group, view):
    """Add what `differentiate_harmonics` has written to the gradients by the means and by the place of the camera."""
    x, y, z = 0.0, 0.0, 0.0
    for i in range(size):
        n = batch[i]
        v_means[scene, n, 0] += planes[i + BY_X]
        v_means[scene, n, 1] += planes[i + BY_Y]
        v_means[scene, n, 2] += planes[i + BY_Z]
        x += planes[i + BY_X]
        y += planes[i + BY_Y]
        z += planes[i + BY_Z]
    v_cameras[group, view, CENTER] -= x
    v_cameras[group, view, CENTER + 1] -= y
    v_cameras[group, view, CENTER + 2] -= z
