"""Distances between two sets of image features, accumulated over batches and ranks."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat

# Values of the kernel that are held at a time.
_BLOCK = 1 << 24


class FrechetDistance(FrechetInceptionDistance):
    """Fréchet distance of two Gaussians with the means and covariances of the sets.

    torchmetrics' own class, fed with features instead of images: its states are sums in float64, so any split over
    batches and ranks gives the same value.

    Args:
        channels: of the features.

    Source: Heusel et al., GANs trained by a two time-scale update rule, eq. 6.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(feature=_Features(channels))
        # Parts of a set may be missing on a rank; the type of the result is known from an update alone.
        self.update(torch.zeros(0, channels, dtype=torch.float64), real=True)

    def compute(self) -> Tensor:
        """Compute the distance of all features so far.

        Returns:
            Scalar, 0 for equal sets; NaN where a set has fewer than two members.
        """
        if min(int(self.real_features_num_samples), int(self.fake_features_num_samples)) < 2:
            return self.real_features_sum.new_tensor(torch.nan)
        return super().compute()


class KernelDistance(Metric):
    """Squared maximum mean discrepancy with the kernel (x . y / channels + 1)^3: unbiased, so it may be negative.

    It is taken over all pairs. torchmetrics' KernelInceptionDistance draws random subsets instead, of which the
    expectation is this value: it needs a thousand images by default, and two runs, or two rank counts, differ.

    Args:
        channels: of the features.

    Source: Binkowski et al., Demystifying MMD GANs, section 4; Gretton et al., A kernel two-sample test, eq. 3.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all features."""
        super().reset()
        # A rank without images takes part in the gathering, with a tensor of as many axes as the others'.
        for state in (self.real, self.generated):
            state.append(torch.zeros(0, self.channels, device=self.device))

    def update(self, features: Tensor, real: bool) -> None:
        """Add features to one of the sets.

        Args:
            features: [N, channels], kept as float32.
            real: whether they belong to the true images.
        """
        (self.real if real else self.generated).append(features.float())

    def compute(self) -> Tensor:
        """Compute the distance of all features so far, in float64.

        Returns:
            Scalar; NaN where a set has fewer than two members.
        """
        real, generated = dim_zero_cat(self.real).double(), dim_zero_cat(self.generated).double()
        if min(len(real), len(generated)) < 2:
            return real.new_tensor(torch.nan)
        across = _kernel_sum(real, generated) / (len(real) * len(generated))
        return _within(real) + _within(generated) - 2 * across


class SetDistances(nn.Module):
    """Fréchet and kernel distance of the same features.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frechet, self.kernel = FrechetDistance(channels), KernelDistance(channels)

    def update(self, generated: Tensor, real: Tensor) -> None:
        """Add features to the sets.

        Args:
            generated: [N, channels] features of generated images.
            real: [M, channels] features of true images.
        """
        for features, is_real in ((generated, False), (real, True)):
            self.frechet.update(features.double(), real=is_real)
            self.kernel.update(features, real=is_real)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Compute the distances over all batches and ranks; every rank must call it.

        Returns:
            Fréchet and kernel distance, scalars.
        """
        return self.frechet.compute(), self.kernel.compute()

    def reset(self) -> None:
        """Forget all features."""
        self.frechet.reset()
        self.kernel.reset()


class _Features(nn.Module):
    """The feature network of features: they are given as they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels

    def forward(self, features: Tensor) -> Tensor:
        return features


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    parts = [poly_kernel(rows, b).sum() for rows in a.split(max(1, _BLOCK // len(b)))]
    return torch.stack(parts).sum()


def _within(features: Tensor) -> Tensor:
    """Mean of the kernel over the pairs of different members."""
    count, channels = features.shape
    itself = (features.square().sum(1) / channels + 1) ** 3
    return (_kernel_sum(features, features) - itself.sum()) / (count * (count - 1))
