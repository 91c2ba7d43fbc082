"""What the compact files share: scenes that are refused, warnings of what is lost, turned harmonics."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn.functional import normalize

from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import rotate_sh, sh_to_rgb
from gsforge.core.splat import save_splat
from gsforge.core.spz import save_spz

Save = Callable[[Path, Gaussians], None]


def some_gaussians(count: int = 5, degree: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=0.1 * torch.rand(count, 3, generator=generator) + 1e-3,
        opacities=torch.rand(count, generator=generator),
        sh=0.1 * torch.randn(count, (degree + 1) ** 2, 3, generator=generator),
    )


@pytest.mark.parametrize(("save", "name"), [(save_splat, "scene.splat"), (save_spz, "scene.spz")])
def test_a_refused_scene_keeps_the_old_file(tmp_path: Path, save: Save, name: str) -> None:
    path, scene = tmp_path / name, some_gaussians()
    save(path, scene)
    before = path.read_bytes()
    for attribute in ("means", "quats", "scales", "opacities", "sh"):
        broken = some_gaussians()
        getattr(broken, attribute)[3:] = torch.nan
        with pytest.raises(ValueError, match=f"{attribute} must be finite .* 2 of 5 Gaussians, first number 3"):
            save(path, broken)
    broken = Gaussians(scene.means, scene.quats * 0, scene.scales, scene.opacities, scene.sh)
    with pytest.raises(ValueError, match=r"quats must be other than zero .* 5 of 5"):
        save(path, broken)
    with pytest.raises(ValueError, match=r"holds one scene, .* batch shape \[2\]: index them"):
        save(path, Gaussians.stack([scene, scene]))
    with pytest.raises(ValueError, match="there are no Gaussians"):
        save(path, scene.map(lambda tensor: tensor[:0]))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name], "a temporary file was left behind"


@pytest.mark.parametrize(("save", "kept"), [(save_splat, 0), (save_spz, 3)])
def test_harmonics_that_are_left_out_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, save: Save, kept: int
) -> None:
    scene = some_gaussians(degree=4)
    save(tmp_path / "full", scene)
    assert f"of degree {kept + 1} to 4 are left out, the file holds degree {kept}" in caplog.text
    caplog.clear()
    save(tmp_path / "less", Gaussians(**{**vars(scene), "sh": scene.sh[:, : (kept + 1) ** 2]}))
    assert caplog.text == ""
    assert (tmp_path / "full").read_bytes() == (tmp_path / "less").read_bytes()


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_turned_harmonics_show_along_a_turned_direction_what_they_showed(degree: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rotation = torch.from_numpy(Rotation.random(random_state=2).as_matrix())
    sh = 0.1 * torch.randn(4, (degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    turned = sh_to_rgb(rotate_sh(sh, rotation), directions @ rotation.T)
    torch.testing.assert_close(turned, sh_to_rgb(sh, directions))
