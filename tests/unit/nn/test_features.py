"""Feature extractors against analytic images and published layouts; projection against an analytic scene."""

import itertools
import math

import huggingface_hub.constants
import pytest
import torch
from torch import nn

from gsforge.core.cameras import Cameras, cameras_around, look_at, sphere_hammersley
from gsforge.nn.features import (
    DiffusersVAEFeatures,
    FeatureExtractor,
    FilterBankFeatures,
    TimmFeatures,
    project_features,
)


def ramp_image(size: int, slope_x: float, slope_y: float) -> torch.Tensor:
    axis = torch.arange(size, dtype=torch.float64)
    return (slope_y * axis[:, None] + slope_x * axis).expand(1, 3, size, size)


def test_filter_bank_measures_slopes_and_curvature_exactly() -> None:
    bank = FilterBankFeatures(scales=[1.5], orientations=4)
    inner = slice(16, 24)
    maps = bank(ramp_image(40, 0.003, 0.004))[0, :, inner, inner]
    assert maps.shape[0] == bank.channels == 11
    # Colours are centred at grey and divided by 0.25, derivatives divided by 0.1.
    torch.testing.assert_close(maps[0] * 0.25 + 0.5, ramp_image(40, 0.003, 0.004)[0, 0, inner, inner])
    torch.testing.assert_close(maps[3] * 0.1, torch.full_like(maps[3], 1.5 * 0.005))
    for channel, angle in enumerate([0, 45, 90, 135]):
        slope = abs(0.003 * math.cos(math.radians(angle)) + 0.004 * math.sin(math.radians(angle)))
        torch.testing.assert_close(maps[4 + channel] * 0.1, torch.full_like(maps[0], 1.5 * slope), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(maps[8:], torch.zeros_like(maps[8:]))
    axis = torch.arange(40, dtype=torch.float64)
    bowl = (0.5e-3 * axis**2 + 0.25e-3 * axis[:, None] ** 2).expand(1, 3, 40, 40)
    laplacian = bank(bowl)[0, 8:, inner, inner] * 0.1
    torch.testing.assert_close(laplacian, torch.full_like(laplacian, 1.5**2 * 1.5e-3))


def test_filter_bank_stride_keeps_the_extent() -> None:
    bank = FilterBankFeatures(scales=[1.0, 8.0], orientations=2, stride=8)
    maps = bank(torch.rand(2, 3, 32, 48))
    assert maps.shape == (2, 18, 4, 6)
    with pytest.raises(ValueError, match="multiples of the stride 8"):
        bank(torch.rand(1, 3, 30, 48))
    with pytest.raises(ValueError, match=r"expected shape \[N, 3, H, W\]"):
        bank(torch.rand(2, 4, 3, 32, 32))
    with pytest.raises(ValueError, match="scales > 0"):
        FilterBankFeatures(scales=[0.0])


class Holder(nn.Module):
    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = nn.Linear(2, 1)


def test_timm_features_are_the_normed_patch_tokens_in_place(tiny_vit: tuple[str, nn.Module]) -> None:
    folder, model = tiny_vit
    extractor = TimmFeatures(folder, image_size=64)
    images = torch.rand(2, 3, 64, 64)
    maps = extractor(images)
    assert maps.shape == (2, 48, 4, 4)
    assert extractor.channels == 48
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = model.forward_features((images - mean[:, None, None]) / std[:, None, None])
    assert model.num_prefix_tokens == 5
    torch.testing.assert_close(maps, tokens[:, 5:].mT.unflatten(-1, (4, 4)))
    assert extractor(torch.rand(1, 3, 100, 100)).shape == (1, 48, 4, 4)


def test_extractors_are_frozen_and_stay_out_of_checkpoints(tiny_vit: tuple[str, nn.Module]) -> None:
    holder = Holder(TimmFeatures(tiny_vit[0], image_size=32))
    holder.train()
    assert not any(module.training for module in holder.extractor.modules())
    assert not any(parameter.requires_grad for parameter in holder.extractor.parameters())
    assert set(holder.state_dict()) == {"head.weight", "head.bias"}
    before = holder.extractor.network.patch_embed.proj.weight.clone()
    holder.load_state_dict({"head.weight": torch.ones(1, 2), "head.bias": torch.ones(1)})
    assert torch.equal(holder.head.weight, torch.ones(1, 2))
    assert torch.equal(holder.extractor.network.patch_embed.proj.weight, before)
    assert not holder.extractor(torch.rand(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_timm_features_read_a_weights_file_in_both_layouts(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    name = "vit_small_patch16_dinov3.lvd1689m"
    model = timm.create_model(name, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    published = {
        key.replace("gamma_1", "ls1.gamma")
        .replace("gamma_2", "ls2.gamma")
        .replace("reg_token", "storage_tokens"): value
        for key, value in model.state_dict().items()
    }
    published["mask_token"] = torch.zeros(1, 384)
    published["rope_embed.periods"] = torch.zeros(16)
    torch.save(published, tmp_path / "published.pth")
    images = torch.rand(1, 3, 32, 32)
    from_timm = TimmFeatures(name, 32, weights=tmp_path / "timm.safetensors")
    from_published = TimmFeatures(name, 32, weights=tmp_path / "published.pth")
    torch.testing.assert_close(from_timm(images), from_published(images), rtol=0, atol=0)
    torch.testing.assert_close(from_timm.network.norm.weight, model.norm.weight)


def test_timm_errors_say_what_to_do(tiny_vit: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"vit_small_patch16_dinov3\.lvd1689m.*weights="):
        TimmFeatures("vit_small_patch16_dinov3.lvd1689m", 64)
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        TimmFeatures("vit_small_patch16_dinov3.lvd1689m", 64, weights="/nowhere/model.safetensors")
    with pytest.raises(ValueError, match="multiple of the 16 px patches"):
        TimmFeatures(tiny_vit[0], image_size=72)


def test_huge_plus_layout_is_the_published_one() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("vit_huge_plus_patch16_dinov3.lvd1689m", num_classes=0).state_dict()
    # ViT-H+/16 of DINOv3: width 1280, 32 blocks, SwiGLU of 5120, 4 registers, 840 million parameters.
    assert state["patch_embed.proj.weight"].shape == (1280, 3, 16, 16)
    assert state["reg_token"].shape == (1, 4, 1280)
    assert state["blocks.31.attn.qkv.weight"].shape == (3840, 1280)
    assert {"blocks.31.mlp.fc1_g.weight", "blocks.31.mlp.fc1_x.weight"} <= set(state)
    assert state["blocks.0.mlp.fc1_g.weight"].shape == (5120, 1280)
    assert "blocks.32.norm1.weight" not in state
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(840e6, rel=0.01)


VAE_SHAPE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}


def test_flux2_features_normalise_patches_and_unpatchify(tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKLFlux2(latent_channels=6, **VAE_SHAPE).eval()
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    model.save_pretrained(tmp_path / "vae")
    extractor = DiffusersVAEFeatures(str(tmp_path), image_size=64)
    images = torch.rand(2, 3, 64, 64)
    maps = extractor(images)
    assert maps.shape == (2, 6, 8, 8)
    assert extractor.channels == 6
    with torch.no_grad():
        expected = model.encode(2 * images - 1).latent_dist.mean
    # Diffusers' Flux2Pipeline packs latent channel c at (2i + dy, 2j + dx) into patch channel 4c + 2dy + dx.
    std = (model.bn.running_var + model.config.batch_norm_eps).sqrt()
    for dy, dx in itertools.product(range(2), range(2)):
        mean, scale = model.bn.running_mean[2 * dy + dx :: 4], std[2 * dy + dx :: 4]
        expected[..., dy::2, dx::2] = (expected[..., dy::2, dx::2] - mean[:, None, None]) / scale[:, None, None]
    torch.testing.assert_close(maps, expected)
    assert maps.abs().mean() > 0.1


def test_kl_features_shift_and_scale(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.5, shift_factor=0.1, **blocks, **VAE_SHAPE)
    model.eval().save_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32)
    maps = DiffusersVAEFeatures(str(tmp_path), subfolder=None, image_size=32)(images)
    with torch.no_grad():
        expected = (model.encode(2 * images - 1).latent_dist.mean - 0.1) * 0.5
    torch.testing.assert_close(maps, expected)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"black-forest-labs/FLUX\.2-dev.*give the local copy"):
        DiffusersVAEFeatures()


def position_maps(cameras: Cameras, size: int) -> torch.Tensor:
    """Maps whose channels are the pixel coordinates of the map's own texel centres, and the index of the view."""
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) * (cameras.width / size)
    views = torch.arange(cameras.count, dtype=torch.float64)[:, None, None].expand(-1, size, size)
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    maps = torch.stack([grid_x.expand_as(views), grid_y.expand_as(views), views], dim=1)
    return maps[None]


@pytest.mark.parametrize("map_size", [16, 64])
def test_projection_reads_the_projected_pixel_at_any_map_size(map_size: int) -> None:
    cameras = cameras_around(sphere_hammersley(5).double(), radius=2.0, fov=0.8, size=64).map(lambda m: m[None])
    points = torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6 - 0.3
    pixels, _ = cameras.project(points)
    features = project_features(position_maps(cameras, map_size), cameras, points)
    torch.testing.assert_close(features[..., :2], pixels.mean(1))
    torch.testing.assert_close(features[..., 2], torch.full_like(features[..., 2], 2.0))


def two_sided_scene() -> tuple[Cameras, torch.Tensor, torch.Tensor]:
    """A square plate |x|, |z| < 0.5 at y = 0 between a camera in front (view 0) and one behind it (view 1)."""
    eyes = torch.tensor([[0.0, -2.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 50.0, 32], [0, 0, 1]], dtype=torch.float64).expand(2, 3, 3)
    cameras = Cameras(look_at(eyes)[None], intrinsics[None], 64, 64)
    axis = (torch.arange(64, dtype=torch.float64) + 0.5 - 32) * 2 / 50
    plate = (axis.abs()[:, None] < 0.5) & (axis.abs() < 0.5)
    depths = torch.where(plate, 2.0, 0.0).double().expand(1, 2, 1, 64, 64)
    return cameras, depths, position_maps(cameras, 64)


def test_projection_averages_over_the_views_that_see_a_point() -> None:
    cameras, depths, maps = two_sided_scene()
    points = torch.tensor(
        [
            [0.1, 0.0, 0.2],  # on the plate: both cameras see it
            [0.1, -0.3, 0.2],  # in front of the plate, where the depth maps show the plate: seen by none
            [0.9, 0.0, 0.0],  # inside both images where nothing was hit: seen by none
        ],
        dtype=torch.float64,
    )[None]
    assert project_features(maps, cameras, points, depths)[0, :, 2].tolist() == [0.5, 0.5, 0.5]
    only_back = depths.clone()
    only_back[:, 0] = 1.0  # something else hides the plate from view 0
    assert project_features(maps, cameras, points, only_back)[0, 0, 2] == 1.0
    assert project_features(maps, cameras, points)[0, 0, 2] == 0.5


def test_projection_ignores_views_that_miss_the_point() -> None:
    cameras, _, maps = two_sided_scene()
    points = torch.tensor([[[0.0, -1.9, 0.5], [0.0, 0.0, 50.0], [0.0, -2.0, 0.0]]], dtype=torch.float64)
    features = project_features(maps, cameras, points)
    assert features[0, 0, 2] == 1.0  # too close to camera 0 to be inside its image
    assert torch.equal(features[0, 1], torch.zeros(3, dtype=torch.float64))  # above both images
    assert torch.isfinite(features).all()  # a point at the centre of a camera


def test_features_keep_their_precision_under_autocast(tiny_vit: tuple[str, nn.Module]) -> None:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bank, network = FilterBankFeatures(scales=[1.0, 4.0]), TimmFeatures(tiny_vit[0], image_size=32)
    exact = bank(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank(images), exact)
        assert network(images).dtype == torch.float32
