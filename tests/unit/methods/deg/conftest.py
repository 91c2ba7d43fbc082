"""A DeG VAE of a few thousand parameters, and a batch of two objects whose views were drawn by the renderer."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsforge.core.cameras import cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.methods.deg.config import LossWeights, NetworkConfig, SamplingConfig
from gsforge.methods.deg.module import DeGVAE
from gsforge.nn.features import FeatureExtractor
from gsforge.render import rasterize

SIZES: dict[str, Any] = {
    "width": 24, "heads": 2, "latent_channels": 4, "encoder_blocks": 1, "density_blocks": 1, "decoder_blocks": 1,
    "octree_depth": 3, "gaussians_per_anchor": 4, "embedding_octaves": 3.0, "initial_scale": 0.05,
}  # fmt: skip
SAMPLING: dict[str, Any] = {
    "context_points": 24, "target_points": 16, "tokens": [4, 6], "anchors": 8, "feature_views": 2,
}  # fmt: skip


class RandomConvolution(FeatureExtractor):
    """Fixed random filters: an extractor that has weights."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.channels = channels
        self.filters = nn.Conv2d(3, channels, 3, padding=1).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.filters.weight, generator=generator)
        nn.init.zeros_(self.filters.bias)

    def _extract(self, images: Tensor) -> Tensor:
        return self.filters(images)


@pytest.fixture(scope="session")
def build() -> Callable[..., DeGVAE]:
    """Makes the module of a stage; `network`, `sampling` and `loss` are changes of the small sizes."""
    return _build


def _build(stage: str = "structure", **changes: Any) -> DeGVAE:
    torch.manual_seed(0)
    return DeGVAE(
        semantic_features=RandomConvolution(5, seed=1),
        appearance_features=changes.pop("appearance_features", RandomConvolution(3, seed=2)),
        stage=stage,
        network=NetworkConfig(**(SIZES | changes.pop("network", {}))),
        sampling=SamplingConfig(**(SAMPLING | changes.pop("sampling", {}))),
        loss=LossWeights(**({"lpips": 0.0} | changes.pop("loss", {}))),
        **changes,
    )


@pytest.fixture
def batch() -> dict[str, Any]:
    """Two clouds of coloured Gaussians with 4 views of 12 px and 48 surface points each."""
    generator = torch.Generator().manual_seed(5)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    points = 0.6 * uniform(2, 48, 3) - 0.3
    colors = uniform(2, 48, 3)
    cameras = cameras_around(sphere_hammersley(4, (0.2, 0.4)), 2.0, math.radians(40), 12)
    cameras = cameras.map(lambda matrix: matrix.expand(2, *matrix.shape))
    quats = torch.tensor([1.0, 0, 0, 0]).expand(2, 48, 4)
    gaussians = Gaussians(
        points, quats, torch.full((2, 48, 3), 0.05), torch.full((2, 48), 0.9), (colors - 0.5)[:, :, None] / 0.282
    )
    seen = rasterize(gaussians, cameras, backend="reference")
    return {
        "key": ["one", "two"],
        "points": points,
        "images": (seen.rgb / seen.alpha.clamp_min(1e-3)).clamp(0, 1),
        "alphas": seen.alpha,
        "depths": torch.where(seen.alpha > 0.5, 2.0, 0.0),
        "world_to_camera": cameras.world_to_camera,
        "intrinsics": cameras.intrinsics,
        "position": torch.arange(2),
    }
