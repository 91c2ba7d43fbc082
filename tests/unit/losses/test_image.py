"""Image losses against direct formulas, float64 gradients and torchmetrics' LPIPS."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models.vgg import cfgs, make_layers

from gsforge.losses.image import PerceptualLoss, l1, ssim


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(shape, generator=generator, dtype=torch.float64),
        torch.rand(shape, generator=generator, dtype=torch.float64),
    )


def ssim_by_definition(x: Tensor, y: Tensor) -> Tensor:
    """Mean over pixels and channels of SSIM, windows written out pixel by pixel; x and y [3, H, W]."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    padded_x, padded_y = (nn.functional.pad(image[None], (5, 5, 5, 5), mode="reflect")[0] for image in (x, y))
    values = []
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            a, b = (image[:, row : row + 11, column : column + 11] for image in (padded_x, padded_y))
            mean_a, mean_b = ((window * image).sum((1, 2)) for image in (a, b))
            var_a, var_b = ((window * (i - m[:, None, None]) ** 2).sum((1, 2)) for i, m in ((a, mean_a), (b, mean_b)))
            covariance = (window * (a - mean_a[:, None, None]) * (b - mean_b[:, None, None])).sum((1, 2))
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            values.append(luminance * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4))
    return torch.stack(values).mean()


def test_ssim_is_its_definition() -> None:
    x, y = pair(2, 2, 3, 8, 9)
    values = ssim(x, y)
    assert values.shape == (2, 2)
    torch.testing.assert_close(values[1, 0], ssim_by_definition(x[1, 0], y[1, 0]))
    torch.testing.assert_close(ssim(x, x), torch.ones(2, 2, dtype=torch.float64))


def test_ssim_and_l1_have_exact_gradients() -> None:
    x, y = pair(1, 3, 6, 7)
    assert torch.autograd.gradcheck(lambda image: ssim(image, y), x.requires_grad_())
    assert torch.autograd.gradcheck(lambda image: l1(image, y), x)


def test_l1_is_the_mean_and_shapes_are_checked() -> None:
    images = torch.zeros(1, 1, 3, 6, 6)
    images[0, 0, 1] = 0.3
    torch.testing.assert_close(l1(images, torch.zeros_like(images)), torch.tensor(0.1))
    with pytest.raises(ValueError, match="one shape"):
        l1(images, images[0])
    with pytest.raises(ValueError, match="6 px or more"):
        ssim(torch.zeros(1, 3, 5, 8), torch.zeros(1, 3, 5, 8))


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    layers = make_layers(cfgs["D"], batch_norm=False)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(2)}, path)
    return path


def test_lpips_agrees_with_torchmetrics(vgg_file: Path) -> None:
    with torch.device("meta"):
        peer = _LPIPS(pretrained=False, net="vgg", pnet_rand=True)
    peer.to_empty(device="cpu")
    state = torch.load(vgg_file, weights_only=True)
    ends = iter([4, 9, 16, 23, 30])
    end, slice_number = next(ends), 1
    for index in range(30):
        if index == end:
            end, slice_number = next(ends), slice_number + 1
        layer = getattr(peer.net, f"slice{slice_number}").get_submodule(str(index))
        if isinstance(layer, nn.Conv2d):
            layer.load_state_dict(
                {"weight": state[f"features.{index}.weight"], "bias": state[f"features.{index}.bias"]}
            )
    peer.scaling_layer.shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    peer.scaling_layer.scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    loss = PerceptualLoss(vgg_file)
    for level, linear in enumerate(peer.lins):
        linear.model[1].weight = nn.Parameter(loss.get_buffer(f"weight{level}"))
    x, y = (image.float() for image in pair(2, 3, 32, 32))
    torch.testing.assert_close(loss(x, y), peer(x, y, normalize=True).flatten(), rtol=1e-4, atol=1e-6)
    assert torch.equal(loss(x, x), torch.zeros(2))


def test_missing_or_wrong_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=r"hub/checkpoints/vgg16.*Download https://.*vgg16.*vgg_weights"):
        PerceptualLoss()
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"expected torchvision's vgg16.*conv\.weight"):
        PerceptualLoss(tmp_path / "other.safetensors")


def test_ssim_is_exact_under_autocast() -> None:
    x, y = (images.float() for images in pair(1, 3, 16, 16))
    exact = ssim(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(x, y), exact)
