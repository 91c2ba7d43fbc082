"""Training of the flow model and generation with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gsforge.core.object_crop import crop_to_object
from gsforge.core.weights import save_weights
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.decoder import AttributeDecoder
from gsforge.methods.deg.density import OctreeDensity
from gsforge.methods.deg.flow import DeGFlow
from gsforge.methods.deg.flow_config import FlowNetworkConfig, FlowSamplingConfig, FlowTrainingConfig
from gsforge.methods.deg.latent_decoder import LatentDecoder
from gsforge.methods.deg.module import DeGVAE
from gsforge.metrics.generation import GenerationMetricsConfig
from gsforge.nn.features import FilterBankFeatures
from gsforge.nn.tokens import PatchTokens
from tests.unit.methods.deg.conftest import SIZES

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # steps are called without a trainer
Batch = dict[str, Any]


def flow(vae: Path | None = None, **changes: Any) -> DeGFlow:
    torch.manual_seed(0)
    network = {"width": 48, "heads": 2, "blocks": 1, "refiner_blocks": 1, "latent_channels": 4}
    return DeGFlow(
        PatchTokens(FilterBankFeatures([1.0], stride=8), octaves=1),
        PatchTokens(FilterBankFeatures([2.0], stride=8), octaves=2),
        vae=None if vae is None else str(vae),
        network=FlowNetworkConfig(**(network | changes.pop("network", {}))),
        training=FlowTrainingConfig(**({"tokens": 6, "image_size": 16} | changes.pop("training", {}))),
        sampling=FlowSamplingConfig(**({"steps": 3, "anchors": 8} | changes.pop("sampling", {}))),
        **changes,
    )


def awakened(model: DeGFlow) -> DeGFlow:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def latents() -> Batch:
    """Two objects: latents, images and cameras that have nothing in common."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    cameras = torch.tensor([[0.9, 0.1, 0.4, 0.5, 0.6], [0.8, -0.3, 0.5, 0.4, 0.7]])
    return {
        "key": ["one", "two"],
        "latent": torch.randn(2, 6, 4, generator=generator),
        "camera": cameras,
        "image": images,
        "position": torch.arange(2),
        "views": torch.rand(2, 3, 3, 16, 16, generator=generator),
        "view_cameras": torch.stack([cameras, cameras.flip(0), cameras * torch.tensor([-1, -1, 1, 1, 1.0])], 1),
    }


@pytest.fixture
def vae(build: Callable[..., DeGVAE], tmp_path: Path) -> Path:
    """Exported weights of a VAE."""
    model = build("appearance")
    save_weights(tmp_path / "vae", model.state_dict(), {"options": {"network": SIZES}})
    return tmp_path / "vae"


def step(model: DeGFlow, batch: Batch, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return model.training_step(batch, 0)


# --- training


def test_a_step_reaches_every_parameter(latents: Batch) -> None:
    model = awakened(flow())
    step(model, latents).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_untrained_the_loss_is_that_of_predicting_nothing(latents: Batch) -> None:
    losses = torch.stack([step(flow(training={"camera_weight": 0.0}), latents, seed) for seed in range(40)])
    expected = 1 + latents["latent"].square().mean()  # noise and data are independent
    assert losses.mean().item() == pytest.approx(expected.item(), rel=0.1)


def test_the_camera_has_a_weight_of_its_own(latents: Batch) -> None:
    losses = [step(awakened(flow(training={"camera_weight": weight})), latents).item() for weight in (0.0, 1.0, 3.0)]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    without = step(awakened(flow(network={"camera_token": False}, training={"camera_weight": 5.0})), latents)
    assert without.isfinite()


def test_normalised_latents_have_any_scale(latents: Batch) -> None:
    """Training sees latents of deviation 1, and what is generated has the scale of the data."""
    mean, deviation = torch.tensor([1.0, -2.0, 0.0, 5.0]), torch.tensor([0.1, 3.0, 1.0, 20.0])
    plain, scaled = awakened(flow()), awakened(flow(training={"normalize_latents": True}))
    scaled.latent_mean.copy_(mean)
    scaled.latent_deviation.copy_(deviation)
    other = latents | {"latent": latents["latent"] * deviation + mean}
    torch.testing.assert_close(step(plain, latents), step(scaled, other))
    drawn = []
    for model in (plain, scaled):
        torch.manual_seed(3)
        drawn.append(model.sample(latents["image"]).latent)
    torch.testing.assert_close(drawn[0] * deviation + mean, drawn[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="released layout has no place for the scale of normalised latents"):
        scaled.released_files()


def test_hidden_images_change_nothing(latents: Batch) -> None:
    other = latents | {"image": latents["image"].flip(-1)}
    nearly_always = awakened(flow(training={"condition_dropout": 1 - 1e-9}))
    assert torch.equal(step(nearly_always, latents), step(nearly_always, other))
    never = awakened(flow(training={"condition_dropout": 0.0}))
    assert not torch.equal(step(never, latents), step(never, other))


def test_what_is_learned_by_heart_is_generated(latents: Batch) -> None:
    model = flow(network={"blocks": 2}, training={"condition_dropout": 0.0}, sampling={"steps": 10, "guidance": 1.0})
    optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-3)
    for seed in range(250):
        optimizer.zero_grad()
        step(model, latents, seed).backward()
        optimizer.step()
    torch.manual_seed(0)
    generated = model.sample(latents["image"])
    error = (generated.latent[:, None] - latents["latent"][None]).square().mean((2, 3))
    assert (error.diagonal() < 0.3 * error.flip(1).diagonal()).all(), error
    assert generated.camera is not None
    camera_error = (generated.camera[:, None] - latents["camera"][None]).norm(dim=-1)
    assert camera_error.diagonal().max() < 0.5


def test_latents_of_another_size_are_refused(latents: Batch) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, 5, 4\] .* got \[2, 6, 4\]; set data.tokens and these alike"):
        flow(training={"tokens": 5}).training_step(latents, 0)


def test_images_of_another_size_are_refused(latents: Batch) -> None:
    with pytest.raises(ValueError, match=r"expected 16 x 16 px .* got \[2, 3, 8, 16\]; set data.condition_size"):
        flow().training_step(latents | {"image": latents["image"][:, :, :8]}, 0)


def test_token_extractors_must_agree(latents: Batch) -> None:
    model = flow()
    model.appearance_tokens = PatchTokens(FilterBankFeatures([2.0], stride=4), octaves=2)
    with pytest.raises(ValueError, match="semantic_tokens give 4 tokens of an image and appearance_tokens 16"):
        model.training_step(latents, 0)


# --- generation


def test_guidance_of_one_asks_once_and_heun_twice(latents: Batch) -> None:
    asked = {}
    for name, sampling in {
        "guided": {"guidance": 2.0}, "unguided": {"guidance": 1.0}, "heun": {"guidance": 1.0, "solver": "heun"}
    }.items():  # fmt: skip
        model, calls = flow(sampling=sampling), []
        model.network.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.sample(latents["image"])
        asked[name] = len(calls)
    assert asked == {"guided": 6, "unguided": 3, "heun": 5}


def test_guidance_moves_away_from_what_comes_without_image(latents: Batch) -> None:
    def generate(guidance: float, image: Tensor) -> Tensor:
        torch.manual_seed(2)
        return awakened(flow(sampling={"guidance": guidance, "steps": 1})).sample(image).latent

    without, plain = generate(0.0, latents["image"]), generate(1.0, latents["image"])
    torch.testing.assert_close(generate(3.0, latents["image"]), 3 * plain - 2 * without, rtol=1e-4, atol=1e-4)
    assert torch.equal(without, generate(0.0, latents["image"].flip(-1)))


def test_prediction_shows_objects_and_depends_on_the_batch_alone(vae: Path, latents: Batch) -> None:
    model = awakened(flow(vae))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    result = model.predict_step(latents, 3)
    assert torch.equal(torch.get_rng_state(), before)
    again = model.predict_step(latents, 3)
    assert torch.equal(result.images["render"], again.images["render"])
    assert not torch.equal(result.images["render"], model.predict_step(latents, 4).images["render"])
    assert result.gaussians is not None
    assert result.gaussians.count == 8 * SIZES["gaussians_per_anchor"]
    assert result.images["input image"].shape == (2, 1, 3, 16, 16)
    assert result.images["render"].shape == result.images["true latent"].shape == (2, 3, 3, 16, 16)
    assert torch.equal(result.images["ground truth"], latents["views"])
    expected = {"psnr", "psnr_baseline", "psnr_true_latent", "ssim", "ssim_baseline", "camera_error"}
    assert expected | {"velocity_error", "velocity_error_t50"} <= set(result.metrics)
    assert all(values.shape == (2,) and values.isfinite().all() for values in result.metrics.values())


def test_objects_are_held_to_their_views_and_to_those_of_another(vae: Path, latents: Batch) -> None:
    """Where the views are pictures of what is generated, nothing is left to gain, but for the baseline."""
    model = awakened(flow(vae))
    views = model.predict_step(latents, 3).images["render"]
    metrics = model.predict_step(latents | {"views": views}, 3).metrics
    assert (metrics["psnr"] > 100).all()
    assert (metrics["psnr_baseline"] < 60).all()
    assert (
        "psnr_baseline" not in model.predict_step({name: value[:1] for name, value in latents.items()}, 3).metrics
    )  # nothing to compare with


def test_a_picture_becomes_an_object(vae: Path) -> None:
    model = awakened(flow(vae))
    picture = torch.rand(4, 30, 40)
    picture[3, :, :12] = 0
    torch.manual_seed(0)
    gaussians, seen = model.generate(picture)
    assert gaussians.batch_shape == ()
    assert gaussians.count == 8 * SIZES["gaussians_per_anchor"]
    assert seen.shape == (2, 3, 16, 16)
    torch.testing.assert_close(seen[0], crop_to_object(picture, 16))
    without_camera = awakened(flow(vae, network={"camera_token": False}))
    assert without_camera.generate(picture)[1].shape == (2, 3, 16, 16)


def test_without_a_vae_there_are_latents_alone(latents: Batch) -> None:
    result = flow().predict_step(latents, 0)
    assert result.gaussians is None
    assert "psnr" not in result.metrics
    with pytest.raises(ValueError, match="Gaussians need the weights of the VAE"):
        flow().decode(latents["latent"])


def test_another_budget_can_be_set(vae: Path, latents: Batch) -> None:
    model = flow(vae)
    model.set_budget(64)
    assert model.decode(latents["latent"]).count == 64
    with pytest.raises(ValueError, match="a budget of 3 Gaussians is less than the 4 of one anchor"):
        model.set_budget(3)


# --- the VAE


def test_the_decoder_is_that_of_the_vae_and_in_no_checkpoint(
    vae: Path, build: Callable[..., DeGVAE], latents: Batch
) -> None:
    model, original = flow(vae), build("appearance")
    torch.manual_seed(0)
    decoded = model.decode(latents["latent"])
    torch.manual_seed(0)
    with torch.no_grad():
        _, (expected, _) = original.decode(latents["latent"], 8)
    assert torch.equal(decoded.means, expected.means)
    assert not any(name.startswith("vae") for name in model.state_dict())
    assert not any(parameter.requires_grad for parameter in model.vae.parameters())


def test_released_weights_are_found_by_their_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        sizes = NetworkConfig()
        density, decoder = OctreeDensity(sizes), AttributeDecoder(sizes)
    assert density.depth == 8
    assert decoder.per_anchor == 32
    save_file({"octree.strange": torch.zeros(1)}, tmp_path / "triposplat_vae_decoder_fp16.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the networks: gs\..* is missing"):
        LatentDecoder(tmp_path)


def test_weights_that_cannot_decode_are_refused(build: Callable[..., DeGVAE], tmp_path: Path, latents: Batch) -> None:
    save_weights(tmp_path / "structure", build().state_dict(), {"options": {"network": SIZES}})
    with pytest.raises(ValueError, match="has no decoder: export a run of the appearance or the refinement stage"):
        LatentDecoder(tmp_path / "structure")
    save_weights(tmp_path / "other", {}, {"options": {}})
    with pytest.raises(ValueError, match="expected the weights of a DeG VAE, its card has no network"):
        LatentDecoder(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="gsforge export RUN --weights"):
        LatentDecoder(tmp_path / "nothing")


def test_channels_of_vae_and_network_must_agree(vae: Path) -> None:
    with pytest.raises(ValueError, match=r"network.latent_channels is 5, but the VAE in .* has 4"):
        flow(vae, network={"latent_channels": 5})


def test_a_test_says_which_metrics_it_could_not_measure(
    vae: Path, latents: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = awakened(flow(vae, metrics=GenerationMetricsConfig(inception=str(tmp_path / "nowhere.pth"))))
    model.on_test_start()
    with torch.inference_mode():
        result = model.test_step(latents, 0)
    model.on_test_epoch_end()
    assert set(model.unavailable_metrics) == {"fd_inception", "kd_inception"}
    assert str(tmp_path / "nowhere.pth") in model.unavailable_metrics["fd_inception"]
    assert model.set_metrics == {}
    assert "psnr" in result.metrics
