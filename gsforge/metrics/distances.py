"""Fréchet and kernel distance between two sets of image features, accumulated over batches and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat

# Values of the kernel that are held at a time.
_BLOCK = 1 << 24


class SetDistances(Metric):
    """Fréchet and kernel distance between the features of generated and true images.

    All features are kept and gathered from all ranks, and each distance is a function of the two sets alone: order,
    batches and ranks change nothing. torchmetrics' own classes need more care. FrechetInceptionDistance takes
    eigenvalues of a product of covariances, which is slow where there are fewer images than channels;
    KernelInceptionDistance draws random subsets of a thousand images, and waits for ever where ranks have different
    numbers of batches.

    Args:
        channels: of the features.

    Source: Heusel et al., GANs trained by a two time-scale update rule, eq. 6; Binkowski et al., Demystifying MMD GANs,
    section 4.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    generated: list[Tensor]
    real: list[Tensor]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.add_state("generated", [], dist_reduce_fx="cat")
        self.add_state("real", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all features."""
        super().reset()
        # A rank without images takes part in the gathering, with a tensor of as many axes as the others'.
        for state in (self.generated, self.real):
            state.append(torch.zeros(0, self.channels, device=self.device))

    def update(self, generated: Tensor, real: Tensor) -> None:
        """Add features to the sets; they are kept as float32.

        Args:
            generated: [N, channels] features of generated images.
            real: [M, channels] features of true images.
        """
        self.generated.append(generated.float())
        self.real.append(real.float())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Compute the distances over all batches and ranks; every rank must call it.

        Returns:
            Fréchet and kernel distance, float64 scalars; NaN where a set has fewer than two members.
        """
        generated, real = dim_zero_cat(self.generated).double(), dim_zero_cat(self.real).double()
        if min(len(generated), len(real)) < 2:
            return generated.new_tensor(torch.nan), generated.new_tensor(torch.nan)
        return frechet_distance(generated, real), kernel_distance(generated, real)


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Fréchet distance of the two Gaussians with the means and covariances (n - 1) of the sets.

    With covariances S = R^T R, the trace of (S_a S_b)^1/2 is the sum of the singular values of R_a R_b^T. R comes from
    a QR decomposition of the features: covariances, of squared condition, are never formed.

    Args:
        a: [N, C] float64, N >= 2.
        b: [M, C] float64, M >= 2.

    Returns:
        Scalar, 0 for sets of equal moments.

    Source: Heusel et al., GANs trained by a two time-scale update rule, eq. 6.
    """
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    shift = (a.mean(0) - b.mean(0)).square().sum()
    spread = root_a.square().sum() + root_b.square().sum()
    return shift + spread - 2 * torch.linalg.svdvals(root_a @ root_b.T).sum()


def kernel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy with the kernel (x . y / C + 1)^3 over all pairs.

    It is unbiased, so it may be negative. What is published as KID is the mean of it over random subsets, and has the
    same expectation.

    Args:
        a: [N, C] float64, N >= 2.
        b: [M, C] float64, M >= 2.

    Returns:
        Scalar.

    Source: Binkowski et al., Demystifying MMD GANs, section 4; Gretton et al., A kernel two-sample test, eq. 3.
    """
    return _mean_within(a) + _mean_within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _covariance_root(features: Tensor) -> Tensor:
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R


def _mean_within(features: Tensor) -> Tensor:
    """Mean of the kernel over the pairs of different members."""
    count, channels = features.shape
    with_itself = (features.square().sum(1) / channels + 1) ** 3
    return (_kernel_sum(features, features) - with_itself.sum()) / (count * (count - 1))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    rows = max(1, _BLOCK // len(b))
    return torch.stack([poly_kernel(part, b).sum() for part in a.split(rows)]).sum()
