"""Token extractors: numbers of tokens that match, positions, special tokens, and freshness of samples."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, pixel_unshuffle

from gsforge.nn.features import DiffusersVAEFeatures, FilterBankFeatures, TimmFeatures
from gsforge.nn.tokens import PatchTokens, TimmTokens, TokenExtractor, VAETokens


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_patches_carry_their_features_and_where_they_lie() -> None:
    extractor = PatchTokens(FilterBankFeatures([1.0], stride=8), octaves=2)
    tokens = extractor(images())
    assert tokens.shape == (2, 16, extractor.channels)
    maps = extractor.features(images())
    row, column = 2, 1
    token = tokens[1, 4 * row + column]
    torch.testing.assert_close(token[: maps.shape[1]], maps[1, :, row, column])
    angles = [place * frequency * math.pi for place in ((row + 0.5) / 4, (column + 0.5) / 4) for frequency in (1, 2)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert token[maps.shape[1] :].tolist() == pytest.approx(expected, abs=1e-5)


def test_vision_transformers_give_special_tokens_first_each_normalised(tiny_vit: tuple[str, nn.Module]) -> None:
    folder, model = tiny_vit
    features = TimmFeatures(folder, image_size=64)
    tokens = TimmTokens(features)(images(size=64))
    assert tokens.shape == (2, 5 + 16, 48)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 21), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(2, 21), rtol=1e-3, atol=0)
    patches = layer_norm(features(images(size=64)).flatten(2).mT, (48,))
    torch.testing.assert_close(tokens[:, 5:], patches)
    with torch.no_grad():
        special = model.forward_features((images(size=64) - features.mean) / features.std)[:, :5]
    torch.testing.assert_close(tokens[:, :5], layer_norm(special, (48,)))


@pytest.fixture
def vae(tmp_path) -> DiffusersVAEFeatures:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    diffusers.AutoencoderKLFlux2(latent_channels=6, **sizes).save_pretrained(tmp_path / "vae")
    return DiffusersVAEFeatures(str(tmp_path), image_size=32)


def test_vae_tokens_are_patches_of_a_sample_behind_zeros(vae: DiffusersVAEFeatures) -> None:
    extractor = VAETokens(vae, special_tokens=5)
    torch.manual_seed(3)
    tokens = extractor(images())
    assert tokens.shape == (2, 5 + 4, extractor.channels)
    assert not tokens[:, :5].any()
    torch.manual_seed(3)
    latent = vae.latent(images(), sample=True)
    torch.testing.assert_close(tokens[:, 5:], pixel_unshuffle(latent, 2).flatten(2).mT)
    assert not torch.equal(extractor(images()), tokens)  # drawn anew
    assert torch.equal(vae(images()), vae.latent(images(), sample=False))


def test_wrong_images_and_the_bare_interface_are_refused() -> None:
    extractor = PatchTokens(FilterBankFeatures([1.0]))
    with pytest.raises(ValueError, match=r"expected shape \[B, 3, S, S\], got \[2, 3, 8, 9\]"):
        extractor(torch.zeros(2, 3, 8, 9))
    with pytest.raises(TypeError, match="is an interface"):
        TokenExtractor()(images())
