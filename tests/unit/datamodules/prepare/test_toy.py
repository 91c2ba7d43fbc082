import numpy as np
import pytest
import torch

from datamodules.prepare.mesh import normalise
from datamodules.prepare.raycast import render_views
from datamodules.prepare.surface import sample_surface
from datamodules.prepare.toy import FAMILIES, toy_object
from gsforge.core.cameras import cameras_around, sphere_hammersley


@pytest.mark.parametrize("index", range(len(FAMILIES)))
def test_every_family_is_sound(index):
    mesh, family = toy_object(seed=5, index=index)
    assert family == FAMILIES[index]
    assert len(mesh.faces) < 30_000
    assert np.isfinite(mesh.corner_uvs).all()
    agreement = np.einsum("fkd,fd->fk", mesh.corner_normals, mesh.face_normals)
    solid = mesh.face_areas > 1e-9
    assert (agreement[solid] > 0).mean() > 0.99  # winding and shading normals agree
    small, _, _ = normalise(mesh)
    points = sample_surface(small, 500, seed=0)
    assert np.abs(points.points).max() < 0.5
    views = render_views(small, cameras_around(sphere_hammersley(2), 2.0, 0.7, 24), supersampling=1)
    assert ((views.depth > 0).mean(axis=(1, 2)) > 0.02).all()


def test_same_seed_and_index_same_object():
    first, second = toy_object(1, 14)[0], toy_object(1, 14)[0]
    assert (first.vertices == second.vertices).all()
    assert all(
        (a.texture is None and b.texture is None) or (a.texture == b.texture).all()
        for a, b in zip(first.materials, second.materials, strict=True)
    )
    other = toy_object(2, 14)[0]
    assert first.vertices.shape != other.vertices.shape or (first.vertices != other.vertices).any()
    next_of_family = toy_object(1, 14 + len(FAMILIES))[0]
    assert first.vertices.shape != next_of_family.vertices.shape or (first.vertices != next_of_family.vertices).any()


def test_families_are_many_and_outsides_face_outwards():
    assert len(FAMILIES) >= 8
    mesh, _ = toy_object(0, FAMILIES.index("superquadric"))
    centers = mesh.vertices[mesh.faces].mean(axis=1)
    assert ((centers * mesh.face_crosses).sum(axis=1) >= -1e-12).all()
    tower, _ = toy_object(0, FAMILIES.index("tower"))
    corners = tower.vertices[tower.faces]
    volume = np.einsum("fd,fd->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume > 0.02


def test_views_are_the_same_every_time():
    mesh, _, _ = normalise(toy_object(0, 4)[0])
    cameras = cameras_around(torch.tensor([[0.6, 0.0, 0.8]]), 2.0, 0.7, 16)
    first, second = render_views(mesh, cameras), render_views(mesh, cameras)
    assert (first.color == second.color).all()
    assert (first.depth == second.depth).all()
