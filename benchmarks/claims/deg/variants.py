"""DeG VAEs that are trained by a plain loop, and two that differ from the published one."""

from typing import Any

import torch
from torch import Tensor, nn

from gsforge.core.random import SampleRandom
from gsforge.methods.deg.decoder import Expansion
from gsforge.methods.deg.density import DensitySamples
from gsforge.methods.deg.module import DeGVAE


class SteppedVAE(DeGVAE):
    """A VAE that is trained without a trainer: it is told its step, and what it logs goes nowhere."""

    step = 0

    @property
    def global_step(self) -> int:
        """Number of the step, which decides on the budget."""
        return self.step

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""


class ReinforceVAE(SteppedVAE):
    """The density learns from the loss of the whole draw, less the mean of the batch, instead of contributions.

    The batch holds draws of one object.
    """

    def decode(
        self, z_BMZ: Tensor, anchors: int, random: SampleRandom | None = None
    ) -> tuple[DensitySamples, Expansion]:
        """Draw anchors whose log-probability is kept for the loss, and hidden from contributions."""
        drawn, expansion = super().decode(z_BMZ, anchors, random)
        self._log_probability = drawn.log_probability
        return DensitySamples(drawn.points, drawn.log_probability.detach()), expansion

    def _image_terms(self, rendered: Tensor, target: Tensor) -> dict[str, Tensor]:
        error = (rendered - target).detach().abs().sum(1).mean((1, 2))
        losses = error.unflatten(0, (len(self._log_probability), -1)).mean(1)
        term = {"contribution": reinforce(losses, self._log_probability)}
        return super()._image_terms(rendered, target) | term


class LocalVAE(SteppedVAE):
    """Anchors are decoded alone: what becomes of one does not depend on its neighbours, nor on how many there are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.decoder is not None:
            for block in self.decoder.blocks:
                block.self_attention = _Nothing()


class _Nothing(nn.Module):
    def forward(self, h_BPD: Tensor) -> Tensor:
        return torch.zeros_like(h_BPD)


def reinforce(losses: Tensor, log_probability: Tensor) -> Tensor:
    """A scalar whose gradient is that of REINFORCE with the mean of the batch.

    Args:
        losses: [B] of the draws.
        log_probability: [B, P] of their anchors.

    Returns:
        Mean over draws of (loss - mean loss) sum_j log q(x_j).
    """
    return ((losses - losses.mean()).detach() * log_probability.sum(1)).mean()
