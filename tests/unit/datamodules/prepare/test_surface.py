import numpy as np
import pytest
import trimesh

from datamodules.prepare.mesh import Material, MeshError, build_mesh, load_mesh, normalise
from datamodules.prepare.surface import sample_surface


def test_points_are_uniform_over_area_and_carry_texture_colours(textured_quad):
    mesh, _, _ = normalise(load_mesh(textured_quad()))
    drawn = sample_surface(mesh, 20_000, seed=1)
    assert (drawn.points.dtype, drawn.normals.dtype, drawn.colors.dtype) == (np.float32, np.float16, np.uint8)
    assert np.abs(drawn.points).max() < 0.5
    np.testing.assert_allclose(drawn.normals, np.broadcast_to([0, -1, 0], drawn.normals.shape), atol=1e-3)
    expected = {(False, True): [255, 0, 0], (True, True): [0, 255, 0], (False, False): [0, 0, 255]}
    for (right, top), color in expected.items():
        chosen = ((drawn.points[:, 0] > 0) == right) & ((drawn.points[:, 2] > 0) == top)
        assert abs(chosen.mean() - 0.25) < 0.015
        inner = (
            chosen & (np.abs(drawn.points[:, [0, 2]]).min(axis=1) > 0.05) & (np.abs(drawn.points).max(axis=1) < 0.45)
        )
        assert (drawn.colors[inner] == color).all()


def test_points_lie_on_a_sphere_with_outward_normals():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    drawn = sample_surface(build_mesh(sphere.vertices, sphere.faces), 4000, seed=0)
    np.testing.assert_allclose(np.linalg.norm(drawn.points, axis=1), 0.4, atol=2e-3)
    assert ((drawn.points * drawn.normals).sum(axis=1) > 0.39).all()
    assert abs(drawn.points.mean(axis=0)).max() < 0.02


def test_same_seed_same_points():
    box = trimesh.creation.box((0.5, 0.6, 0.7))
    mesh = build_mesh(box.vertices, box.faces)
    first, second, other = (sample_surface(mesh, 100, seed).points for seed in (3, 3, 4))
    assert (first == second).all()
    assert (first != other).any()


def test_transparent_parts_get_no_points():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]) * 0.4
    colors = np.array([[1, 1, 1, 0.2]] * 3 + [[1, 1, 1, 0.9]] * 3)
    mesh = build_mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]]), Material(alpha_mode="BLEND"), colors=colors)
    drawn = sample_surface(mesh, 500, seed=0)
    assert len(drawn.points) == 500
    np.testing.assert_allclose(drawn.points[:, 2], 0.4)
    clear = build_mesh(vertices, np.array([[0, 1, 2]]), Material((1, 1, 1, 0.1), alpha_mode="BLEND"))
    with pytest.raises(MeshError, match="hardly any"):
        sample_surface(clear, 10, seed=0)
