"""Files of Gaussians: exact round trips, the layout of the format, and files that are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from torch.nn.functional import normalize

from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import load_ply, read_ply, save_ply, write_ply


def some_gaussians(count: int = 7, degree: int = 2) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=0.1 * torch.rand(count, 3, generator=generator) + 1e-3,
        opacities=torch.rand(count, generator=generator),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=generator),
    )


def vertices(path: Path) -> np.ndarray:
    return PlyData.read(path)["vertex"].data


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_gaussians_survive_the_round_trip(tmp_path: Path, degree: int) -> None:
    gaussians = some_gaussians(degree=degree)
    save_ply(tmp_path / "scene.ply", gaussians)
    loaded = load_ply(tmp_path / "scene.ply")
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(loaded, name), getattr(gaussians, name), rtol=1e-5, atol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["scene.ply"], "a temporary file was left behind"


def test_layout_of_the_file(tmp_path: Path) -> None:
    gaussians = some_gaussians(degree=1)
    save_ply(tmp_path / "scene.ply", gaussians)
    rows = vertices(tmp_path / "scene.ply")
    assert rows.dtype.names == (
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{index}" for index in range(9)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    )
    assert all(rows.dtype[name] == np.dtype("<f4") for name in rows.dtype.names)
    # f_rest is channel-major: the three coefficients of red come first.
    np.testing.assert_array_equal(rows["f_rest_1"], gaussians.sh[:, 2, 0])
    np.testing.assert_array_equal(rows["f_rest_3"], gaussians.sh[:, 1, 1])
    np.testing.assert_allclose(rows["opacity"], gaussians.opacities.logit(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows["scale_2"], gaussians.scales[:, 2].log(), rtol=1e-6)


def write_rows(path: Path, change: dict[str, float] | None = None, drop: str = "", text: bool = False) -> None:
    """A file of degree 1 with extreme logits, written without the code under test."""
    save_ply(path, some_gaussians(degree=1))
    rows = vertices(path).copy()
    rows["opacity"] = [-60, -17.5, -1e-8, 0, 16, 17.5, 90]
    rows["scale_0"][:2] = [-80, 20]
    rows["rot_0"] *= 3
    rows["nx"] = 0.25
    for name, value in (change or {}).items():
        rows[name][3] = value
    names = [name for name in rows.dtype.names or () if not (drop and name.startswith(drop))]
    kept = np.empty(len(rows), dtype=[(name, "<f4") for name in names])
    for name in names:
        kept[name] = rows[name]
    PlyData([PlyElement.describe(kept, "vertex")], text=text, byte_order="=" if text else "<").write(path)


def test_reading_and_writing_again_changes_no_bit(tmp_path: Path) -> None:
    first, second = tmp_path / "first.ply", tmp_path / "second.ply"
    write_rows(first)
    write_ply(second, read_ply(first))
    assert vertices(first).tobytes() == vertices(second).tobytes()


@pytest.mark.parametrize("name", ["fixtures/three_points.ply", "playbot/playbot_lod4.ply", "statues/angel.ply"])
def test_real_files_survive_unchanged(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "splats" / name
    if not source.is_file():
        pytest.skip(f"no file at {source}")
    scene = read_ply(source)
    write_ply(tmp_path / "copy.ply", scene)
    original, copy = vertices(source), vertices(tmp_path / "copy.ply")
    assert original.dtype == copy.dtype
    assert original.tobytes() == copy.tobytes()
    gaussians = scene.activated()
    torch.testing.assert_close(gaussians.quats.norm(dim=-1), torch.ones(gaussians.count))
    assert all(bool(getattr(gaussians, field).isfinite().all()) for field in ("scales", "opacities"))


def test_normals_may_be_absent_and_text_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "binary.ply")
    write_rows(tmp_path / "text.ply", drop="n", text=True)
    binary, text = load_ply(tmp_path / "binary.ply"), load_ply(tmp_path / "text.ply")
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(text, name), getattr(binary, name))


def test_certain_and_absent_gaussians_are_written_with_finite_numbers(tmp_path: Path) -> None:
    gaussians = Gaussians.stack([some_gaussians(2), some_gaussians(3)])[0]  # the last one is padding of opacity 0
    gaussians.opacities[0] = 1.0
    save_ply(tmp_path / "scene.ply", gaussians)
    loaded = load_ply(tmp_path / "scene.ply")
    torch.testing.assert_close(loaded.opacities, gaussians.opacities, rtol=0, atol=1e-7)
    torch.testing.assert_close(loaded.scales, gaussians.scales, rtol=1e-5, atol=1e-20)


def test_y_up_turns_the_scene(tmp_path: Path) -> None:
    gaussians = some_gaussians(degree=0)
    save_ply(tmp_path / "scene.ply", gaussians, up="y")
    means = load_ply(tmp_path / "scene.ply").means
    torch.testing.assert_close(means[:, 1], gaussians.means[:, 2])
    torch.testing.assert_close(means[:, 2], -gaussians.means[:, 1])
    with pytest.raises(ValueError, match="up: expected z or y"):
        save_ply(tmp_path / "scene.ply", gaussians, up="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "drop", "reason"),
    [
        ({"opacity": np.nan}, "", "opacity_logits must be finite .* 1 of 7 Gaussians, first number 3"),
        ({"x": np.inf}, "", "means must be finite"),
        ({"rot_0": 0, "rot_1": 0, "rot_2": 0, "rot_3": 0}, "", "quaternions must not be zero .* first number 3"),
        (None, "opacity", "properties .'opacity'. of a Gaussian are missing"),
        (None, "f_rest_8", "expected .* properties f_rest_.*, got 8"),
        (None, "f_rest_2", "'f_rest_2'"),
        (None, "scale", "'scale_0', 'scale_1', 'scale_2'"),
    ],
)
def test_wrong_contents_are_refused(tmp_path: Path, change: dict[str, float] | None, drop: str, reason: str) -> None:
    write_rows(tmp_path / "scene.ply", change, drop)
    with pytest.raises(ValueError, match=reason):
        read_ply(tmp_path / "scene.ply")


HEADER = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nend_header\n1\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"solid not a ply",
        bytes(range(256)),
        HEADER.format("binary_little_endian", 10**30).encode(),
        HEADER.format("ascii", 10**13).encode(),
        HEADER.format("ascii", -3).encode(),
        b"ply\nformat ascii 1.0\nelement vertex 0\n",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scene.ply").write_bytes(content)
    with pytest.raises(ValueError, match=r"scene\.ply is not a complete \.ply file: "):
        read_ply(tmp_path / "scene.ply")


def test_truncated_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    write_rows(path)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match="not a complete"):
        read_ply(path)
    rows = PlyData.read(io.BytesIO(content))["vertex"].data
    PlyData([PlyElement.describe(rows[:0], "vertex")]).write(path)
    with pytest.raises(ValueError, match="there are no Gaussians"):
        read_ply(path)
    PlyData([PlyElement.describe(rows, "face")]).write(path)
    with pytest.raises(ValueError, match="expected an element `vertex`"):
        read_ply(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    save_ply(path, some_gaussians())
    before = path.read_bytes()
    broken = some_gaussians()
    broken.means[2, 1] = torch.nan
    with pytest.raises(ValueError, match="means must be finite"):
        save_ply(path, broken)
    with pytest.raises(ValueError, match=r"batch shape \[1\]"):
        save_ply(path, Gaussians.stack([broken]))
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_ply(tmp_path / "folder", some_gaussians())
    assert {file.name for file in tmp_path.iterdir()} == {"scene.ply", "folder"}, "a temporary file was left behind"
