"""The set encoder: a function of sets, in farthest-point order, that a second feature set joins without a jolt."""

import pytest
import torch
from torch import Tensor

from gsforge.core.sampling import farthest_points
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.encoder import SetEncoder, sample_posterior

CONFIG = NetworkConfig(width=24, heads=2, encoder_blocks=2, latent_channels=4, initial_log_variance=-2.0)
Set = tuple[Tensor, Tensor]


def build(appearance_channels: int | None = None) -> SetEncoder:
    torch.manual_seed(0)
    return SetEncoder(CONFIG, 5, appearance_channels)


def encode(encoder: SetEncoder, tokens: int, semantic: Set, appearance: Set | None = None) -> tuple[Tensor, Tensor]:
    return encoder(farthest_points(semantic[0], tokens), semantic, appearance)


def feature_set(count: int, channels: int, seed: int) -> Set:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 3, generator=generator), torch.randn(2, count, channels, generator=generator)


def reordered(points_and_features: Set, order: Tensor) -> Set:
    points, features = points_and_features
    return points[:, order], features[:, order]


@pytest.fixture
def semantic() -> Set:
    return feature_set(30, 5, seed=1)


@pytest.fixture
def appearance() -> Set:
    return feature_set(20, 3, seed=2)


@pytest.fixture
def awake() -> SetEncoder:
    """An encoder whose appearance layers and variance head have learned something."""
    encoder = build(3)
    for layer in encoder.appearance_layers:
        layer.attention.to_out.reset_parameters()
    encoder.to_log_variance.reset_parameters()
    return encoder


def test_initial_log_variance_is_the_configured_one(semantic: Set) -> None:
    mean, log_variance = encode(build(), 6, semantic)
    assert mean.shape == log_variance.shape == (2, 6, 4)
    assert torch.equal(log_variance, torch.full((2, 6, 4), -2.0))
    assert mean.std() > 0.01


def test_order_of_the_points_does_not_matter_after_the_first(awake: SetEncoder, semantic: Set, appearance: Set) -> None:
    # Point 0 starts the farthest-point sampling; the others may come in any order.
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(29, generator=torch.Generator())])
    expected = encode(awake, 6, semantic, appearance)
    actual = encode(awake, 6, reordered(semantic, order), appearance)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_order_of_the_appearance_set_does_not_matter(awake: SetEncoder, semantic: Set, appearance: Set) -> None:
    expected = encode(awake, 6, semantic, appearance)
    actual = encode(awake, 6, semantic, reordered(appearance, torch.arange(19, -1, -1)))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_blocks_are_equivariant_to_the_order_of_the_queries(awake: SetEncoder, semantic: Set, appearance: Set) -> None:
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(3))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    contexts = awake.semantic_set(*semantic), awake.appearance_set(*appearance)
    block, layer = awake.blocks[0], awake.appearance_layers[0]
    straight = block(x, contexts[0], layer, contexts[1])
    torch.testing.assert_close(block(x[:, order], contexts[0], layer, contexts[1]), straight[:, order])


def test_tokens_belong_to_their_queries(semantic: Set) -> None:
    # With every attention and perceptron silent a token is the embedding of its query point alone.
    encoder = build()
    for name, parameter in encoder.blocks.named_parameters():
        if name.endswith(("to_out.weight", "to_out.bias", "perceptron.2.weight", "perceptron.2.bias")):
            torch.nn.init.zeros_(parameter)
    queries = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(4))
    expected = encoder.to_mean(encoder.final_norm(encoder.query_embedding(queries)))
    torch.testing.assert_close(encoder(queries, semantic)[0], expected)


def test_the_appearance_branch_starts_as_the_identity(semantic: Set, appearance: Set) -> None:
    alone, joined = build(), build(3)
    missing, unexpected = joined.load_state_dict(alone.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all(name.startswith("appearance") for name in missing)
    for a, b in zip(encode(joined, 6, semantic, appearance), encode(alone, 6, semantic), strict=True):
        assert torch.equal(a, b)


def test_a_woken_appearance_branch_is_seen(awake: SetEncoder, semantic: Set, appearance: Set) -> None:
    points, features = appearance
    change = encode(awake, 6, semantic, (points, features + 1))[0] - encode(awake, 6, semantic, appearance)[0]
    assert change.abs().max() > 1e-3


def test_posterior_samples_have_its_mean_and_variance() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([1.5, -2.0]), torch.tensor([-3.0, 1.0])
    z = sample_posterior(mean.expand(1, 20000, 2), log_variance.expand(1, 20000, 2))[0]
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(z.var(0), log_variance.exp(), rtol=0.05, atol=0)


def test_posterior_samples_carry_the_gradient_of_the_reparametrisation() -> None:
    mean = torch.zeros(1, 3, 2, requires_grad=True)
    log_variance = torch.full((1, 3, 2), -1.0, requires_grad=True)
    z = sample_posterior(mean, log_variance)
    by_mean, by_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
    torch.testing.assert_close(by_mean, torch.ones(1, 3, 2))
    torch.testing.assert_close(by_log_variance, 0.5 * z.detach())
