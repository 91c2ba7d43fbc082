"""Image and point metrics against analytic values and scipy."""

import math

import pytest
import torch
from scipy.spatial import cKDTree

from gsforge.metrics.image import constant_images, image_metrics, psnr, ssim
from gsforge.metrics.points import chamfer_distance


def test_psnr_is_the_mean_over_views_of_each_object() -> None:
    targets = torch.full((2, 2, 3, 8, 8), 0.5, dtype=torch.float64)
    images = targets.clone()
    images[0, 0] += 0.1  # 20 dB
    images[0, 1] += 0.01  # 40 dB
    images[1] += 0.001  # 60 dB
    torch.testing.assert_close(psnr(images, targets), torch.tensor([30.0, 60.0], dtype=torch.float64))
    assert math.isinf(psnr(targets, targets)[0])
    assert ssim(targets, targets).tolist() == [1.0, 1.0]


def test_baseline_is_the_best_constant_image() -> None:
    targets = torch.zeros(1, 1, 3, 8, 8, dtype=torch.float64)
    targets[..., :4] = 0.8
    constant = constant_images(targets)
    torch.testing.assert_close(constant, torch.full_like(targets, 0.4))
    metrics = image_metrics(targets + 0.1, targets)
    torch.testing.assert_close(metrics["psnr"], torch.tensor([20.0], dtype=torch.float64))
    torch.testing.assert_close(metrics["psnr_baseline"], torch.tensor([-20 * math.log10(0.4)], dtype=torch.float64))
    for other in (0.35, 0.45):
        assert psnr(torch.full_like(targets, other), targets) < metrics["psnr_baseline"]
    assert metrics["ssim"] > metrics["ssim_baseline"]


def test_images_out_of_range_are_clamped_and_shapes_checked() -> None:
    targets = torch.ones(1, 1, 3, 8, 8)
    assert math.isinf(image_metrics(targets + 0.5, targets)["psnr"])
    with pytest.raises(ValueError, match="one shape"):
        image_metrics(targets, targets[0])


def test_chamfer_agrees_with_a_kd_tree() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 500, 3, generator=generator, dtype=torch.float64)
    b = torch.rand(2, 300, 3, generator=generator, dtype=torch.float64)
    values = chamfer_distance(a, b, chunk=128)
    for scene in range(2):
        to_b = cKDTree(b[scene]).query(a[scene])[0].mean()
        to_a = cKDTree(a[scene]).query(b[scene])[0].mean()
        assert values[scene].item() == pytest.approx((to_b + to_a) / 2, rel=1e-12)
    torch.testing.assert_close(values, chamfer_distance(b, a))


def test_chamfer_is_a_length() -> None:
    a = torch.zeros(1, 1, 3)
    b = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]])
    # From a: 1. From b: 5 and 1, mean 3. Mean of the two directions: 2.
    assert chamfer_distance(a, b).item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="points in both sets"):
        chamfer_distance(a, b[:, :0])
    with pytest.raises(ValueError, match=r"expected \[B, N, 3\]"):
        chamfer_distance(a[0], b[0])


def test_image_metrics_are_exact_under_autocast() -> None:
    targets = torch.rand(1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = image_metrics(targets * 0.9, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = image_metrics(targets * 0.9, targets)
    assert all(torch.equal(rounded[name], exact[name]) for name in exact)
