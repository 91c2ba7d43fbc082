"""Sizes of the networks: the defaults are the published ones, and what cannot be built is refused."""

import pytest

from gsforge.methods.deg.config import NetworkConfig


def test_defaults_are_published() -> None:
    config = NetworkConfig()
    assert (config.width, config.heads, config.latent_channels) == (1024, 16, 16)
    assert (config.encoder_blocks, config.density_blocks, config.decoder_blocks) == (16, 4, 16)
    assert (config.octree_depth, config.gaussians_per_anchor, config.embedding_octaves) == (8, 32, 10)
    assert (config.expansion, config.initial_scale, config.minimum_scale) == (0.05, 0.004, 9e-4)
    assert (config.initial_opacity, config.initial_gate, config.initial_log_variance) == (0.1, 0, 0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 10, "heads": 4}, "network.heads: 4 does not divide network.width 10"),
        ({"octree_depth": 0}, "network.octree_depth: expected 1 to 20"),
        ({"octree_depth": 21}, "got 21"),
        ({"initial_scale": 9e-4}, "network.initial_scale 0.0009 must exceed network.minimum_scale"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**sizes)
