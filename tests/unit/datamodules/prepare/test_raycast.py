import numpy as np
import pytest
import torch
import trimesh

from datamodules.prepare.mesh import Material, build_mesh
from datamodules.prepare.raycast import render_views
from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley


def sphere(smooth: bool = True):
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    return build_mesh(mesh.vertices, mesh.faces, normals=mesh.vertices if smooth else None)


def square(material: Material | None = None, tiles: float = 1.0):
    vertices = np.array([[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]])
    uvs = np.array([[0, 1], [1, 1], [1, 0], [0, 0]]) * tiles
    return build_mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), material, uvs)


@pytest.mark.parametrize("supersampling", [1, 2, 3])
def test_sphere_depth_and_normals_match_the_formula(supersampling):
    cameras = cameras_around(sphere_hammersley(5), radius=2.0, fov=0.5, size=24)
    views = render_views(sphere(), cameras, supersampling)
    origins, directions = cameras.rays()
    along = (origins * directions).sum(-1)
    inside = along**2 - (origins**2).sum(-1) + 0.4**2
    distance = -along - inside.clamp_min(0).sqrt()
    hits = origins + distance[..., None] * directions
    forward = cameras.world_to_camera[:, 2, :3]
    depth = distance * torch.einsum("vhwd,vd->vhw", directions, forward)
    sure = (inside > 0.01).numpy()
    np.testing.assert_allclose(views.depth[sure], depth.numpy()[sure], atol=1e-3)
    np.testing.assert_allclose(views.normal[sure], (hits / 0.4).numpy()[sure], atol=2e-3)
    missed = (inside < -0.01).numpy()
    assert missed.any()
    assert not views.depth[missed].any()
    assert not views.normal[missed].any()


def test_cube_seen_from_the_front():
    box = trimesh.creation.box((0.8, 0.8, 0.8))
    views = render_views(build_mesh(box.vertices, box.faces), cameras_around(torch.tensor([[1.0, 0, 0]]), 2.0, 0.4, 16))
    np.testing.assert_allclose(views.depth, 1.6, atol=1e-5)
    np.testing.assert_allclose(views.normal, np.broadcast_to([1.0, 0, 0], views.normal.shape), atol=1e-6)


def test_both_sides_are_visible_and_normals_face_the_camera():
    cameras = cameras_around(torch.tensor([[0.0, -1, 0], [0.0, 1, 0]]), 2.0, 0.3, 8)
    views = render_views(square(), cameras)
    np.testing.assert_allclose(views.normal[0, ..., 1], -1)
    np.testing.assert_allclose(views.normal[1, ..., 1], 1)


def test_alpha_is_the_covered_part_of_a_pixel():
    cameras = cameras_around(torch.tensor([[0.0, -1, 0]]), 2.0, 0.5, 10)
    edge = float(cameras.intrinsics[0, 0, 0] * 0.25 / 2 + 5)
    shift = torch.eye(3)
    shift[0, 2] = int(edge) + 0.5 - edge  # moves the right edge of the object to the middle of a pixel
    cameras = Cameras(cameras.world_to_camera, shift @ cameras.intrinsics, 10, 10)
    half = build_mesh(square().vertices * [0.5, 1, 2], square().faces, Material((1.0, 0.0, 0.0, 1.0)))
    for supersampling in (4, 8):
        color = render_views(half, cameras, supersampling, shading=0.0).color[0]
        assert color[5, int(edge)].tolist() == [255, 0, 0, 128]  # straight colour: the background is not mixed in
        assert color[5, int(edge) - 1].tolist() == [255, 0, 0, 255]
        assert color[5, int(edge) + 1].tolist() == [0, 0, 0, 0]


def test_a_minified_texture_is_averaged_in_linear_light():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[(np.indices((64, 64)).sum(0) % 2) == 0] = 255
    cameras = cameras_around(torch.tensor([[0.0, -1, 0]]), 2.0, 0.3, 16)
    color = render_views(square(Material(texture=pixels), tiles=8), cameras, 1, shading=0.0).color[..., :3]
    np.testing.assert_allclose(color.astype(int), 188, atol=1)  # half the light, and not half of 255


def test_shading_is_a_hemisphere_light_fixed_to_the_world():
    cameras = cameras_around(torch.tensor([[0.0, 0, 1], [0.0, 0, -1]]), 2.0, 0.2, 9)
    lit = render_views(sphere(), cameras, shading=0.5).color[:, 4, 4, 0].astype(float)
    plain = render_views(sphere(), cameras, shading=0.0).color[:, 4, 4, 0]
    assert plain.tolist() == [255, 255]
    np.testing.assert_allclose(lit, [253, 191], atol=3)


def test_translucent_layers_are_composited_front_to_back():
    behind = square().vertices + np.array([0, 0.2, 0])
    vertices = np.concatenate([square().vertices, behind])
    faces = np.concatenate([square().faces, square().faces + 4])
    colors = np.array([[1, 0, 0, 0.25]] * 4 + [[0, 1, 0, 1]] * 4)
    mesh = build_mesh(vertices, faces, Material(alpha_mode="BLEND"), colors=colors)
    views = render_views(mesh, cameras_around(torch.tensor([[0.0, -1, 0]]), 2.0, 0.2, 5), shading=0.0)
    assert views.color[0, 2, 2].tolist() == [137, 225, 0, 255]
    np.testing.assert_allclose(views.depth[0], 2.2, atol=1e-5)  # the front layer is not solid


def test_objects_that_leave_the_image_or_surround_the_camera():
    cameras = cameras_around(torch.tensor([[0.0, -1.0, 0.0]]), radius=1.0, fov=0.3, size=16)  # sees the middle alone
    np.testing.assert_allclose(render_views(square(), cameras).depth, 1.0, atol=1e-5)
    inside = cameras_around(torch.tensor([[0.0, -1.0, 0.0]]), radius=0.1, fov=1.0, size=16)
    box = trimesh.creation.box((0.8, 0.8, 0.8))
    assert (render_views(build_mesh(box.vertices, box.faces), inside).depth > 0).all()
    away = build_mesh(square().vertices + np.array([5.0, 0, 0]), square().faces)
    assert not render_views(away, cameras).color.any()
