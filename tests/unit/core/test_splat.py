"""Files of 32 bytes for each Gaussian: their layout, an independent reader, a published file of the same scene."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from gsforge.core.cameras import cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import load_ply
from gsforge.core.splat import save_splat
from gsforge.render import rasterize

Reader = Callable[[Path], Gaussians]


def test_layout_and_order_of_the_file(tmp_path: Path) -> None:
    scene = Gaussians(
        means=torch.tensor([[0.0, 0, 0], [1, -2, 3e8], [4, 5, 6]]),
        quats=torch.tensor([[1.0, 0, 0, 0], [0.5, -0.5, 0.5, -0.5], [0, 0, 0, -2]]),
        scales=torch.tensor([[0.0, 1, 1], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]),
        opacities=torch.tensor([1.0, 0.25, 0.75]),
        sh=torch.tensor([[[0.0, 0, 0]], [[-1.7, 0, 1.7]], [[1, 2, -2]]]),
    )
    save_splat(tmp_path / "scene.splat", scene)
    content = (tmp_path / "scene.splat").read_bytes()
    rows = list(struct.iter_unpack("<6f8B", content))
    assert [row[:3] for row in rows] == [(4, 5, 6), (1, -2, 3e8), (0, 0, 0)]
    assert rows[1][3:6] == pytest.approx((0.1, 0.2, 0.3))
    assert rows[2][3] > 0, "readers take its logarithm"
    assert rows[1][6:] == (5, 128, 250, 64, 192, 64, 192, 64)
    assert rows[2][9:] == (255, 255, 128, 128, 128)
    assert rows[0][9:] == (191, 128, 128, 128, 0)


def test_another_reader_finds_the_scene(tmp_path: Path, reread: Reader) -> None:
    generator = torch.Generator().manual_seed(0)
    scene = Gaussians(
        means=torch.randn(200, 3, generator=generator),
        quats=normalize(torch.randn(200, 4, generator=generator), dim=-1),
        scales=torch.randn(200, 3, generator=generator).exp(),
        opacities=torch.rand(200, generator=generator),
        sh=3 * torch.rand(200, 1, 3, generator=generator) - 1.5,
    )
    save_splat(tmp_path / "scene.splat", scene)
    found = reread(tmp_path / "scene.splat")
    size = scene.scales.prod(-1) * scene.opacities
    scene = scene.map(lambda tensor: tensor[size.argsort(descending=True)])
    torch.testing.assert_close(found.means, scene.means)
    torch.testing.assert_close(found.scales, scene.scales)
    torch.testing.assert_close(found.opacities, scene.opacities, rtol=0, atol=0.501 / 255)
    torch.testing.assert_close(found.sh, scene.sh, rtol=0, atol=0.501 / 255 / 0.2820948)
    # Half a step of 1/128 in each component; readers that take 255 for 1 are off by as much again.
    torch.testing.assert_close(normalize(found.quats, dim=-1), scene.quats, rtol=0, atol=1.5 / 128)


def test_y_up_turns_the_scene(tmp_path: Path) -> None:
    scene = Gaussians(
        means=torch.tensor([[1.0, 2, 3]]),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        scales=torch.ones(1, 3),
        opacities=torch.ones(1),
        sh=torch.zeros(1, 4, 3),
    )
    save_splat(tmp_path / "scene.splat", scene, up="y")
    row = struct.unpack("<6f8B", (tmp_path / "scene.splat").read_bytes())
    assert row[:3] == pytest.approx((1, 3, -2))
    assert row[10:] == (219, 37, 128, 128)  # a quarter turn about -x
    with pytest.raises(ValueError, match="up: expected z or y"):
        save_splat(tmp_path / "scene.splat", scene, up="x")  # type: ignore[arg-type]


def test_colours_that_are_cut_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Gaussians(
        torch.zeros(1, 3), torch.ones(1, 4), torch.ones(1, 3), torch.ones(1), torch.tensor([[[9.0, 0, 0]]])
    )
    save_splat(tmp_path / "scene.splat", scene)
    assert "1 of 3 colours lie beyond the range of the file and are cut" in caplog.text


def statue(shared_data: Path, name: str) -> Path:
    path = shared_data / "splats" / "statues" / name
    if not path.is_file():
        pytest.skip(f"no file at {path}")
    return path


def fields(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """[N, 6] floats and [N, 8] bytes."""
    rows = np.fromfile(path, np.uint8).reshape(-1, 32)
    return rows[:, :24].copy().view("<f4"), rows[:, 24:].astype(int)


def test_a_published_file_of_the_same_scene_is_the_same(shared_data: Path, tmp_path: Path) -> None:
    published, path = statue(shared_data, "angel.splat"), tmp_path / "angel.splat"
    save_splat(path, load_ply(statue(shared_data, "angel.ply")))
    (floats, small), (expected_floats, expected_small) = fields(path), fields(published)
    # Which of two Gaussians of nearly the same size comes first depends on how the size was rounded.
    assert (floats[:, :3] == expected_floats[:, :3]).all(-1).mean() > 0.99
    order, expected_order = np.lexsort(floats.T), np.lexsort(expected_floats.T)
    np.testing.assert_array_equal(floats[order], expected_floats[expected_order])
    steps = small[order] - expected_small[expected_order]
    assert set(np.unique(steps)) <= {0, 1}, "the published file rounds down"


def test_a_real_scene_looks_the_same(shared_data: Path, tmp_path: Path, reread: Reader) -> None:
    scene = load_ply(statue(shared_data, "angel.ply"))
    save_splat(tmp_path / "angel.splat", scene)
    cameras = cameras_around(sphere_hammersley(3), radius=4.0, fov=0.7, size=128)
    images, expected = (rasterize(gaussians, cameras).rgb for gaussians in (reread(tmp_path / "angel.splat"), scene))
    assert expected.amax((1, 2, 3)).amin() > 0.5, "the statue is not in view"
    psnr = -10 * (images - expected).square().mean((1, 2, 3)).log10()
    assert psnr.amin() > 45, psnr
