"""The latent that starts as a position."""

import torch

from gsforge.core.sampling import farthest_points
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.encoder import SetEncoder

SIZES = {"width": 48, "heads": 4, "latent_channels": 9, "encoder_blocks": 2, "embedding_octaves": 1.0}


def explained(position_init: bool) -> float:
    """Share of the variance of token positions that a linear map of the untrained latent explains."""
    torch.manual_seed(0)
    encoder = SetEncoder(NetworkConfig(**SIZES, position_init=position_init), 5, None).double()
    points = torch.rand(1, 512, 3, dtype=torch.float64)
    mean, _ = encoder(farthest_points(points, 512), (points, torch.randn(1, 512, 5, dtype=torch.float64)))
    from_latent = torch.cat([mean[0], torch.ones(512, 1)], dim=-1)

    positions = farthest_points(points, 512)[0]
    residual = positions - from_latent @ torch.linalg.lstsq(from_latent, positions).solution
    return 1 - (residual.square().sum() / (positions - positions.mean(0)).square().sum()).item()


def test_positions_can_be_read_from_the_untrained_latent() -> None:
    assert explained(position_init=True) > 0.97
    assert explained(position_init=True) > explained(position_init=False)


def test_latent_starts_with_unit_variance() -> None:
    torch.manual_seed(1)
    encoder = SetEncoder(NetworkConfig(**SIZES, position_init=True), 5, None)
    points = torch.rand(1, 1024, 3)
    mean, _ = encoder(farthest_points(points, 1024), (points, torch.zeros(1, 1024, 5)))
    assert mean.mean((0, 1)).abs().amax() < 0.6
    assert 0.5 < mean.std() < 2
