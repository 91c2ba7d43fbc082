"""Loss terms against torch.distributions and against loops over anchors."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as kl_of_distributions

from gsforge.core.gaussians import Gaussians
from gsforge.methods.deg.losses import kl_divergence, sphere_loss, transparency, volume


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_kl_is_that_of_two_normals_per_scalar() -> None:
    mean, log_variance = random(2, 5, 3), random(2, 5, 3, seed=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_of_distributions(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)
    assert kl_divergence(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)) == 0


def test_volume_and_transparency() -> None:
    gaussians = Gaussians(
        means=torch.zeros(1, 2, 3),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 4),
        scales=torch.tensor([[[0.1, 0.2, 0.5], [1.0, 0.3, 0.1]]]),
        opacities=torch.tensor([[0.2, 0.6]]),
        sh=torch.zeros(1, 2, 1, 3),
    )
    torch.testing.assert_close(volume(gaussians), torch.tensor(0.02))
    torch.testing.assert_close(transparency(gaussians), torch.tensor(0.6))


def sphere_by_loop(anchors: Tensor, offsets: Tensor) -> float:
    off_center, overlap = [], []
    for cloud, deltas in zip(anchors, offsets, strict=True):
        radii = [delta.square().sum(-1).mean().sqrt().item() for delta in deltas]
        for i, delta in enumerate(deltas):
            off_center.append(max(delta.mean(0).norm().item() - 0.5 * radii[i], 0.0))
            for j in range(len(cloud)):
                if i != j:
                    overlap.append(max(radii[i] - (cloud[i] - cloud[j]).norm().item(), 0.0))
    return sum(off_center) / len(off_center) + sum(overlap) / len(overlap)


def test_sphere_loss_is_its_definition() -> None:
    anchors, offsets = random(2, 6, 3), 0.9 * random(2, 6, 4, 3, seed=1)
    offsets[0, :3] += 1.0  # off centre
    assert sphere_by_loop(anchors, offsets) > 0.1
    torch.testing.assert_close(
        sphere_loss(anchors, offsets).item(), sphere_by_loop(anchors, offsets), rtol=1e-6, atol=0
    )


def test_sphere_loss_of_centred_and_separate_expansions_is_zero() -> None:
    anchors = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]])
    arms = torch.eye(3) * 0.9
    offsets = torch.cat([arms, -arms]).expand(1, 3, 6, 3)
    assert sphere_loss(anchors, offsets) == 0
    assert sphere_loss(anchors, 1.2 * offsets) > 0  # now they reach each other
    assert sphere_loss(anchors, (offsets + 0.6)) > 0  # now they are off centre


@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_sphere_loss_has_a_finite_gradient_where_an_expansion_is_a_point(distance: float) -> None:
    anchors = torch.tensor([[[0.0, 0, 0], [distance, 0, 0]]])
    offsets = torch.zeros(1, 2, 4, 3, requires_grad=True)
    sphere_loss(anchors, offsets).backward()
    assert offsets.grad is not None
    assert offsets.grad.isfinite().all()


def test_gradients() -> None:
    anchors = 0.5 * random(1, 4, 3)
    offsets = (0.4 * random(1, 4, 3, 3, seed=1) + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sphere_loss(anchors, x), (offsets,))
    mean, log_variance = random(1, 3, 2).requires_grad_(), random(1, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(kl_divergence, (mean, log_variance))
