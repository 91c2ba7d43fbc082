"""Procedural textured objects: a training set that is made offline, in seconds, and looks like one."""

from collections.abc import Callable, Iterator

import numpy as np

from datamodules.prepare.mesh_types import Material, TexturedMesh, build_mesh, join_meshes
from datamodules.prepare.toy_shapes import Array, Part, box, lathe, prism, rod, sphere, superquadric, tube
from datamodules.prepare.toy_textures import color_pair, plain, textured

_Builder = Callable[[np.random.Generator], Iterator[tuple[Part, Material]]]


def toy_object(seed: int, index: int) -> tuple[TexturedMesh, str]:
    """Make a toy object; families take turns by index.

    Args:
        seed: of the whole set.
        index: place in the set; the same seed and index give the same object.

    Returns:
        mesh: about a unit in size, not normalised, z up.
        family: its name.
    """
    family = FAMILIES[index % len(FAMILIES)]
    generator = np.random.default_rng([seed, index])
    yaw, stretch = generator.uniform(0, 2 * np.pi), generator.uniform(0.85, 1.2)
    colored = family in _VERTEX_COLORED and generator.random() < 0.5
    meshes = []
    for part, material in _BUILDERS[family](generator):
        turned = part.turned(yaw)
        vertices = turned.vertices * [1, 1, stretch]
        normals = None if turned.normals is None else turned.normals / [1, 1, stretch]
        colors = _vertex_colors(generator, part.vertices) if colored else None
        surface = Material() if colored else material
        meshes.append(build_mesh(vertices, turned.faces, surface, turned.uvs, normals, colors))
    return join_meshes(meshes), family


def _vertex_colors(generator: np.random.Generator, vertices: Array) -> Array:
    """Linear colours that change smoothly from one to another in waves across the object."""
    first, second = color_pair(generator)
    wave = np.sin(vertices @ generator.normal(0, 5, 3) + generator.uniform(0, 6))
    weights = (0.5 + 0.5 * wave)[:, None]
    return (first * (1 - weights) + second * weights) ** 2.2


def _superquadric(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    x, y, z = generator.uniform(0.3, 0.5, 3)
    exponents = generator.uniform(0.25, 1.7, 2)
    yield superquadric((x, y, z), (exponents[0], exponents[1]), (3, 2)), textured(generator)


def _knot(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    turns, windings = ((1, 0), (2, 3), (3, 2), (2, 5))[generator.integers(4)]
    wobble = 0.0 if windings == 0 else generator.uniform(0.12, 0.18)

    def path(t: Array) -> Array:
        angle = 2 * np.pi * turns * t
        radius = 0.34 + wobble * np.cos(2 * np.pi * windings * t)
        height = 1.2 * wobble * np.sin(2 * np.pi * windings * t)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)

    radius = generator.uniform(0.1, 0.16) if windings == 0 else generator.uniform(0.05, 0.075)
    yield tube(path, radius, rows=240, tiles=(1, 10 if windings else 6)), textured(generator)


def _legs(generator: np.random.Generator, x: float, y: float, height: float) -> Iterator[tuple[Part, Material]]:
    material, radius = plain(generator), generator.uniform(0.012, 0.03)
    splay = generator.uniform(1.0, 1.15)
    for side_x in (-x, x):
        for side_y in (-y, y):
            yield rod((side_x * splay, side_y * splay, 0), (side_x, side_y, height), radius), material


def _table(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    width, depth, height = generator.uniform((0.7, 0.5, 0.4), (1.0, 0.8, 0.7))
    top = textured(generator)
    if generator.random() < 0.5:
        yield box((width, depth, 0.05)).shifted(z=height), top
    else:
        yield lathe(height + np.array([-0.025, -0.025, 0.025, 0.025]), np.array([0, 0.5, 0.5, 0]) * width), top
    yield from _legs(generator, 0.3 * width, 0.3 * depth, height)
    vase, size = textured(generator), generator.uniform(0.08, 0.13)
    x, y = generator.uniform(-0.12, 0.12, 2)
    yield sphere(size).shifted(x, y, height + 0.02 + size), vase


def _chair(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    width, seat, back = generator.uniform((0.4, 0.38, 0.35), (0.55, 0.5, 0.6))
    cushion, frame = textured(generator), plain(generator)
    yield box((width, width, 0.07)).shifted(z=seat), cushion
    yield from _legs(generator, 0.42 * width, 0.42 * width, seat)
    slats = int(generator.integers(3, 7))
    for x in np.linspace(-0.42, 0.42, slats) * width:
        yield rod((x, -0.45 * width, seat), (x, -0.52 * width, seat + back), 0.014), frame
    yield box((width, 0.05, 0.12)).turned(0.15, axis=0).shifted(y=-0.52 * width, z=seat + back), cushion


def _tower(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    z, width = 0.0, generator.uniform(0.45, 0.6)
    for _ in range(generator.integers(3, 6)):
        height, angle = generator.uniform(0.14, 0.28), generator.uniform(0, np.pi / 2)
        material = plain(generator) if generator.random() < 0.25 else textured(generator)
        yield box((width, width, height), 3.0).turned(angle).shifted(z=z + height / 2), material
        z, width = z + height, width * generator.uniform(0.65, 0.95)


def _vase(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    heights = np.linspace(0, 1, 25)
    knots = generator.uniform((0.15, 0.22, 0.1, 0.06, 0.12), (0.25, 0.4, 0.34, 0.16, 0.26))
    parameters = np.linspace(0, 1, len(knots))
    radii = np.polynomial.Polynomial.fit(parameters, knots, 4)(heights).clip(0.05, 0.45)
    outside = lathe(np.r_[0, heights], np.r_[0, radii], tiles=(4, 3))
    yield outside, textured(generator)
    yield lathe(np.r_[heights[::-1], 0.02], np.r_[radii[::-1] * 0.93, 0]), plain(generator)


def _mug(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    radius, height = generator.uniform((0.26, 0.55), (0.34, 0.8))
    wall, inside = textured(generator), plain(generator)
    yield lathe(np.array([0, 0, 0.05, 1, 1]) * height, np.array([0, 0.9, 1, 1, 0.92]) * radius, tiles=(4, 3)), wall
    yield lathe(np.array([1, 0.08, 0.08]) * height, np.array([0.92, 0.92, 0]) * radius), inside
    reach = generator.uniform(0.14, 0.22)

    def handle(t: Array) -> Array:
        angle = np.pi * (t - 0.5)
        x = 0.97 * radius + reach * np.cos(angle)
        return np.stack([x, np.zeros_like(t), height * (0.5 + 0.3 * np.sin(angle))], axis=-1)

    yield tube(handle, generator.uniform(0.025, 0.045), rows=40), plain(generator)


def _tree(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    trunk, crown = generator.uniform((0.35, 0.2), (0.6, 0.34))
    yield rod((0, 0, 0), (0, 0, trunk), generator.uniform(0.02, 0.05)), plain(generator)
    yield box((0.35, 0.35, 0.04)), textured(generator)
    leaves = textured(generator)
    kind = generator.integers(3)
    if kind == 0:
        yield sphere(crown).shifted(z=trunk + 0.9 * crown), leaves
    elif kind == 1:
        for level in range(3):
            size = crown * (1 - 0.25 * level)
            yield lathe(np.array([0, 0, 0.35]), np.array([0, size, 0])).shifted(z=trunk + 0.2 * level), leaves
    else:
        for offset in generator.uniform(-0.6, 0.6, (5, 3)) * crown:
            yield sphere(0.6 * crown).shifted(offset[0], offset[1], trunk + crown + 0.5 * offset[2]), leaves


def _staircase(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    steps, turn = int(generator.integers(10, 17)), generator.uniform(1.2, 2.2) * np.pi
    step, rail = textured(generator), plain(generator)
    yield rod((0, 0, 0), (0, 0, 1.05), 0.04), plain(generator)
    for index in range(steps):
        angle, z = turn * index / steps, (index + 0.5) / steps
        tread = box((0.38, 0.17, 0.03), 4.0).shifted(x=0.21).turned(angle).shifted(z=z)
        yield tread, step
        x, y = 0.38 * np.cos(angle), 0.38 * np.sin(angle)
        yield rod((x, y, z), (x, y, z + 0.16), 0.008), rail

    def banister(t: Array) -> Array:
        angle = turn * t * (steps - 1) / steps
        z = (t * (steps - 1) + 0.5) / steps + 0.16
        return np.stack([0.38 * np.cos(angle), 0.38 * np.sin(angle), z], axis=-1)

    yield tube(banister, 0.012), rail


def _gear(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    teeth, depth, height = int(generator.integers(7, 14)), generator.uniform(0.07, 0.13), generator.uniform(0.12, 0.3)
    angles = np.arange(8 * teeth) * (2 * np.pi / (8 * teeth))
    raised = np.clip(0.5 + 1.6 * np.cos(teeth * angles), 0, 1)
    radii = 0.5 - depth + depth * raised
    outline = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    tilt = generator.uniform(0, np.pi / 2)
    yield prism(outline, height, 3.0).turned(tilt, axis=0), textured(generator)
    hub, hub_height = generator.uniform(0.12, 0.2), height + generator.uniform(0.1, 0.3)
    heights = np.array([-0.5, -0.5, 0.5, 0.5]) * hub_height
    yield lathe(heights, np.array([0, hub, hub, 0])).turned(tilt, axis=0), textured(generator)


def _house(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    width, depth, height = generator.uniform((0.5, 0.6, 0.35), (0.7, 0.9, 0.55))
    roof = generator.uniform(0.2, 0.4)
    yield box((width, depth, height), 3.0).shifted(z=height / 2), textured(generator, "brick")
    gable = np.array([[-0.58 * width, 0], [0.58 * width, 0], [0, roof]]) - [0, roof / 3]
    roof_part = prism(gable, 1.1 * depth, 3.0).turned(np.pi / 2, axis=0).shifted(z=height + roof / 3)
    yield roof_part, textured(generator, str(generator.choice(["stripes", "checker", "noise"])))
    pane, door = plain(generator), plain(generator)
    for side in (-1, 1):
        for y in (-0.25 * depth, 0.25 * depth):
            yield box((0.02, 0.16, 0.16)).shifted(side * width / 2, y, 0.6 * height), pane
    yield box((0.16, 0.02, 0.6 * height)).shifted(y=depth / 2, z=0.3 * height), door
    chimney = box((0.09, 0.09, 0.3), 6.0).shifted(0.25 * width, -0.2 * depth, height + 0.6 * roof)
    yield chimney, textured(generator, "brick")


def _lamp(generator: np.random.Generator) -> Iterator[tuple[Part, Material]]:
    height, foot, wide, narrow, drop = generator.uniform((0.6, 0.14, 0.24, 0.1, 0.2), (0.95, 0.24, 0.36, 0.2, 0.4))
    metal, shade = plain(generator), textured(generator)
    yield lathe(np.array([0, 0, 0.03, 0.05]), np.array([0, foot, foot, 0])), metal
    yield rod((0, 0, 0.03), (0, 0, height), generator.uniform(0.012, 0.022)), metal
    yield lathe(height + np.array([0, drop]) - 0.6 * drop, np.array([wide, narrow]), tiles=(6, 2)), shade
    yield sphere(0.06).shifted(z=height), plain(generator)


_BUILDERS: dict[str, _Builder] = {
    "superquadric": _superquadric,
    "knot": _knot,
    "table": _table,
    "chair": _chair,
    "tower": _tower,
    "vase": _vase,
    "mug": _mug,
    "tree": _tree,
    "staircase": _staircase,
    "gear": _gear,
    "house": _house,
    "lamp": _lamp,
}
_VERTEX_COLORED = ("superquadric", "knot", "gear", "tree")
FAMILIES = tuple(_BUILDERS)
