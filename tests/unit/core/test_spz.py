"""Compressed files: a published file of the same scene, an independent reader, bounds of every number, real scenes."""

import gzip
import math
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import load_ply
from gsforge.core.rotations import multiply_quaternions
from gsforge.core.sh import rotate_sh, sh_basis
from gsforge.core.spz import save_spz
from gsforge.render import rasterize

Reader = Callable[[Path], Gaussians]

# From z up to the y up of the file, as a matrix and as a quaternion.
Y_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
TURN = torch.tensor([math.sqrt(0.5), -math.sqrt(0.5), 0, 0])


def some_gaussians(count: int, degree: int) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    exact = torch.tensor([quat for quat in product((-1.0, 0.0, 1.0), repeat=4) if any(quat)])
    quats = torch.cat([exact, torch.randn(count, 4, generator=generator)])[:count]
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=normalize(quats, dim=-1),
        scales=torch.randn(count, 3, generator=generator).exp(),
        opacities=torch.rand(count, generator=generator),
        sh=0.6 * torch.rand(count, (degree + 1) ** 2, 3, generator=generator) - 0.3,
    )


def read_sections(path: Path) -> tuple[tuple[Any, ...], list[NDArray[np.uint8]]]:
    """Header fields, and the bytes of positions, opacities, colours, scales, rotations and harmonics."""
    content = gzip.decompress(path.read_bytes())
    header = struct.unpack("<4sIIBBBB", content[:16])
    count, harmonics = header[2], (header[3] + 1) ** 2 - 1
    ends = 16 + np.cumsum([0, 9 * count, count, 3 * count, 3 * count, 4 * count, 3 * count * harmonics])
    assert len(content) == ends[-1], "readers refuse a file that is longer or shorter"
    return header, np.split(np.frombuffer(content, np.uint8), ends)[1:-1]


def read_positions(path: Path) -> list[float]:
    header, (block, *_) = read_sections(path)
    numbers = (block[start : start + 3].tobytes() for start in range(0, len(block), 3))
    return [int.from_bytes(number, "little", signed=True) / 2 ** header[4] for number in numbers]


def test_a_published_file_of_the_same_scene_is_the_same(shared_data: Path, tmp_path: Path) -> None:
    published, path = shared_data / "splats" / "fixtures" / "three_points.spz", tmp_path / "scene.spz"
    if not published.is_file():
        pytest.skip(f"no file at {published}")
    scene = load_ply(published.with_suffix(".ply"))
    # It was made of this scene with y pointing down. Its quaternions turn the axes of the ellipsoids with the scene.
    half_turn = torch.tensor([1.0, -1, -1])
    rotation = Y_UP.T * half_turn
    conjugated = scene.quats * torch.tensor([1.0, 1, -1, -1])
    z_up = Gaussians(
        means=scene.means @ rotation.T,
        quats=multiply_quaternions(TURN * torch.tensor([1.0, -1, 1, 1]), conjugated),
        scales=scene.scales,
        opacities=scene.opacities,
        sh=rotate_sh(scene.sh, rotation),
    )
    save_spz(path, z_up)
    (header, sections), (expected_header, expected) = read_sections(path), read_sections(published)
    assert header[:4] == expected_header[:4] == (b"NGSP", 3, 3, 3)
    np.testing.assert_allclose(read_positions(path), read_positions(published), rtol=0, atol=0.51 * (2**-12 + 2**-14))
    for number in (1, 2, 3, 4):  # opacities, colours, scales, rotations
        np.testing.assert_array_equal(sections[number], expected[number])
    steps = sections[5].astype(int) - expected[5]
    assert (np.abs(steps) <= 16).all(), "one step: the published file rounds twice"
    assert (steps == 0).mean() > 0.9


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_another_reader_finds_every_number_to_half_a_step(tmp_path: Path, reread: Reader, degree: int) -> None:
    scene = some_gaussians(300, degree)
    save_spz(tmp_path / "scene.spz", scene)
    found = reread(tmp_path / "scene.spz")
    torch.testing.assert_close(found.means, scene.means @ Y_UP.T, rtol=0, atol=0.51 / 2**14)
    torch.testing.assert_close(found.scales.log(), scene.scales.log(), rtol=0, atol=0.501 / 16)
    torch.testing.assert_close(found.opacities, scene.opacities, rtol=0, atol=0.501 / 255)
    quats = multiply_quaternions(TURN, scene.quats)
    distances = torch.minimum((found.quats - quats).norm(dim=-1), (found.quats + quats).norm(dim=-1))
    assert distances.max() < math.sqrt(12) * 0.501 * math.sqrt(0.5) / 511, "half a step in three components"
    directions = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    basis = sh_basis(directions @ Y_UP.T, degree)
    seen, expected = basis @ found.sh, sh_basis(directions, degree) @ scene.sh
    half_steps = torch.tensor([0.5 / 255 / 0.15] + 3 * [4 / 128] + 12 * [8 / 128])[: (degree + 1) ** 2]
    assert ((seen - expected).abs() < 1.001 * (basis.abs() @ half_steps)[:, None]).all()


@pytest.mark.parametrize(
    ("furthest", "bits"), [(0.0, 14), (511.9, 14), (-512.1, 13), (2.0**22 + 0.4, 0), (-(2.0**23) + 1, 0)]
)
def test_large_scenes_give_up_bits_after_the_point(tmp_path: Path, furthest: float, bits: int) -> None:
    scene, path = some_gaussians(2, 0), tmp_path / "scene.spz"
    scene.means[1] = torch.tensor([furthest, -furthest, 0.25])
    save_spz(path, scene)
    assert read_sections(path)[0][4] == bits
    assert read_positions(path)[3:] == pytest.approx([furthest, 0.25, furthest], abs=0.5 / 2**bits)
    if abs(furthest) > 2**22:
        with pytest.raises(ValueError, match=r"coordinates up to 8388607, got .*: scale the scene"):
            save_spz(path, Gaussians(**{**vars(scene), "means": 2.1 * scene.means}))


def test_numbers_beyond_the_range_are_cut_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene, path = some_gaussians(4, 1), tmp_path / "scene.spz"
    scene.opacities[:2] = torch.tensor([0.0, 1.0])
    save_spz(path, scene)
    assert caplog.text == ""
    scene.scales[0] = torch.tensor([0.0, 4e-5, 5e-5])
    scene.scales[1] = torch.tensor([370.0, 410.0, math.exp(-10)])
    scene.sh[2, 0] = torch.tensor([-5.0, 5.0, 3.3])
    scene.sh[3, 2] = torch.tensor([-3.0, 3.0, 1.0])  # of z, which becomes y
    save_spz(path, scene)
    _, (_, opacities, colours, scales, _, harmonics) = read_sections(path)
    assert opacities[:2].tolist() == [0, 255]
    assert scales[:6].tolist() == [0, 0, 2, 255, 255, 0]
    assert colours[6:9].tolist() == [0, 255, 254]
    assert harmonics[27:30].tolist() == [255, 0, 0]  # Y_1,-1 = -y
    for told in ("3 of 12 scales", "2 of 12 colours", "2 of 36 spherical-harmonic coefficients"):
        assert f"{told} lie beyond the range of the file and are cut" in caplog.text


def test_the_same_scene_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = some_gaussians(10, 1)
    save_spz(tmp_path / "a.spz", scene)
    monkeypatch.setattr("time.time", lambda: 2e9)
    save_spz(tmp_path / "b.spz", scene)
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


@pytest.mark.parametrize(
    ("name", "psnr", "share"), [("statues/angel.ply", 45, 0.25), ("playbot/playbot_lod4.ply", 38, 0.17)]
)
def test_a_real_scene_looks_the_same(
    shared_data: Path, tmp_path: Path, reread: Reader, name: str, psnr: float, share: float
) -> None:
    source, path = shared_data / "splats" / name, tmp_path / "scene.spz"
    if not source.is_file():
        pytest.skip(f"no file at {source}")
    scene = load_ply(source)
    save_spz(path, scene)
    assert path.stat().st_size < share * source.stat().st_size
    cameras = cameras_around(sphere_hammersley(3), radius=4.0, fov=0.7, size=128)
    poses = cameras.world_to_camera.clone()
    poses[..., :3, :3] = poses[..., :3, :3] @ Y_UP.T
    expected = rasterize(scene, cameras).rgb
    images = rasterize(reread(path), Cameras(poses, cameras.intrinsics, 128, 128)).rgb
    assert expected.amax((1, 2, 3)).amin() > 0.3, "the object is not in view"
    measured = -10 * (images - expected).square().mean((1, 2, 3)).log10()
    assert measured.amin() > psnr, measured
