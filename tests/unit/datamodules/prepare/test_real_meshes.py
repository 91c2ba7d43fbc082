"""Public meshes of several makers; skipped where the data folder is absent."""

import numpy as np
import pytest

from datamodules.prepare.mesh import MeshError, load_mesh, normalise
from datamodules.prepare.raycast import render_views
from datamodules.prepare.surface import sample_surface
from gsforge.core.cameras import cameras_around, sphere_hammersley


def test_every_mesh_is_used_or_refused_with_a_reason(shared_data):
    folder = shared_data / "objects"
    cameras = cameras_around(sphere_hammersley(3), radius=2.0, fov=0.7, size=32)
    refused = {}
    paths = sorted(path for suffix in ("glb", "obj") for path in folder.rglob(f"*.{suffix}"))
    assert len(paths) > 40
    for path in paths:
        try:
            mesh, _, _ = normalise(load_mesh(path))
        except MeshError as error:
            refused[path.name] = str(error)
            continue
        views = render_views(mesh, cameras, supersampling=1)
        seen = views.depth > 0
        assert seen.any(), path.name
        assert 1.0 < views.depth[seen].min() < views.depth[seen].max() < 3.0, path.name
        assert np.isfinite(sample_surface(mesh, 200, seed=0).normals).all(), path.name
    assert list(refused) == ["chess_board.glb"]
    assert "KHR_draco_mesh_compression" in refused["chess_board.glb"]


@pytest.mark.parametrize(
    ("name", "up", "color"),
    [("ycb_banana.glb", "z", (200, 165, 15)), ("ycb_mug/textured.obj", "z", (120, 10, 15))],
)
def test_typical_colour(shared_data, name, up, color):
    mesh, _, _ = normalise(load_mesh(shared_data / "objects" / name, up=up))
    median = np.median(sample_surface(mesh, 2000, seed=0).colors, axis=0)
    np.testing.assert_allclose(median, color, atol=30)
