"""Training and prediction of the DeG VAE: what a step reads, what it trains, what it must not depend on."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gsforge.core.weights import save_tensors
from gsforge.methods.deg.config import EvaluationConfig
from gsforge.methods.deg.module import DeGVAE
from gsforge.training.checkpoints import initialise_from

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # steps are called without a trainer
STAGES = ["structure", "appearance"]
Batch = dict[str, Any]
Build = Callable[..., DeGVAE]


def step(model: DeGVAE, batch: Batch, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return model.training_step(batch, 0)


def awakened(model: DeGVAE) -> DeGVAE:
    """Give the layers that start at zero something to say, as training does."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# --- training


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_reaches_every_trainable_parameter(stage: str, build: Build, batch: Batch) -> None:
    model = awakened(build(stage))
    loss = step(model, batch)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_step_is_finite_for_every_parameter(stage: str, build: Build, batch: Batch) -> None:
    model = build(stage)
    step(model, batch).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("stage", STAGES)
def test_equal_seeds_give_the_same_loss_to_the_last_bit(stage: str, build: Build, batch: Batch) -> None:
    losses = [step(awakened(build(stage)), batch, seed) for seed in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_blocks_give_the_same_gradients_and_keep_less(stage: str, build: Build, batch: Batch) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    gradients = []
    for recomputed in (False, True):
        model = awakened(build(stage, network={"checkpoint_blocks": recomputed}))
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = step(model, batch)
        loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert kept[1] < 0.8 * kept[0]


def test_initial_structure_loss_is_near_that_of_a_uniform_density(build: Build, batch: Batch) -> None:
    model = build(loss={"structure": 1.0, "kl": 0.0})
    # 16 points in at most 16 of 512 leaves.
    assert math.log(512 / 16) - 1e-4 <= step(model, batch).item() <= math.log(512)


def test_the_loss_is_the_weighted_sum_of_its_terms(build: Build, batch: Batch) -> None:
    names = ["structure", "kl", "l1", "ssim", "volume", "opacity", "sphere"]
    silent = dict.fromkeys([*names, "lpips"], 0.0)
    terms = [step(build("appearance", loss=silent | {name: 1.0}), batch).item() for name in names]
    assert all(term > 0 for name, term in zip(names, terms, strict=True) if name not in ("kl", "sphere"))
    weights = [0.5, 0.3, 2.0, 0.7, 11.0, 0.9, 5.0]
    total = step(build("appearance", loss=dict(zip(names, weights, strict=True)) | {"lpips": 0.0}), batch)
    assert total.item() == pytest.approx(sum(w * term for w, term in zip(weights, terms, strict=True)), rel=1e-5)


def test_steps_lower_the_loss(build: Build, batch: Batch) -> None:
    model = build("appearance", loss={"structure": 0.1})
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(step(model, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_autocast_changes_the_loss_little(stage: str, build: Build, batch: Batch) -> None:
    exact = step(build(stage), batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = step(build(stage), batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0)


def test_reconstruction_works_under_bfloat16_autocast(build: Build, batch: Batch) -> None:
    exact = build("appearance").predict_step(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = build("appearance").predict_step(batch, 0)
    assert rounded.gaussians is not None
    assert all(images.dtype == torch.float32 for images in rounded.images.values())
    torch.testing.assert_close(rounded.metrics["psnr"], exact.metrics["psnr"], rtol=0, atol=1.0)


def test_the_optimizer_holds_what_is_trained_and_nothing_frozen(build: Build) -> None:
    model = build("appearance", optimizer=torch.optim.SGD)
    trained = [p for group in model.configure_optimizers().param_groups for p in group["params"]]
    frozen = {
        id(p)
        for extractor in ("semantic_features", "appearance_features")
        for p in getattr(model, extractor).parameters()
    }
    assert len(frozen) == 4
    assert not frozen & {id(p) for p in trained}
    assert len(trained) + len(frozen) == len(list(model.parameters()))


def test_the_schedule_advances_every_step(build: Build) -> None:
    model = build(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer))
    configured = model.configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]


# --- token counts


def tokens_of(model: DeGVAE, steps: range, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts = []
    for number in steps:
        monkeypatch.setattr(DeGVAE, "global_step", number)
        counts.append(model._tokens_of_step())
    return counts


def test_all_ranks_draw_the_same_token_count(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for rank in range(2):  # ranks differ in every generator, and a resumed attempt starts in the middle
        model = build("appearance", seed=5)
        random.seed(rank)
        torch.manual_seed(rank)
        draws.append(tokens_of(model, range(200), monkeypatch))
        assert tokens_of(model, range(150, 200), monkeypatch) == draws[rank][150:]
    assert draws[0] == draws[1]
    assert 60 < draws[0].count(4) < 140
    assert set(draws[0]) == {4, 6}
    assert tokens_of(build("appearance", seed=6), range(200), monkeypatch) != draws[0]


# --- what the encoder reads


def test_each_feature_set_reads_its_half_of_the_points_and_the_first_views(build: Build, batch: Batch) -> None:
    structure, appearance = awakened(build()), awakened(build("appearance"))
    changed = batch | {"points": batch["points"].clone(), "images": batch["images"].clone()}
    changed["points"][:, 24:] *= 0.5
    assert torch.equal(structure.encode(changed, 4)[0], structure.encode(batch, 4)[0])
    assert not torch.equal(appearance.encode(changed, 4)[0], appearance.encode(batch, 4)[0])
    changed = batch | {"images": batch["images"].clone()}
    changed["images"][:, 2:] = 0.3
    assert torch.equal(appearance.encode(changed, 4)[0], appearance.encode(batch, 4)[0])
    changed["images"][:, 1] = 0.3
    assert not torch.equal(appearance.encode(changed, 4)[0], appearance.encode(batch, 4)[0])


def test_depths_count_where_visibility_is_checked(build: Build, batch: Batch) -> None:
    changed = batch | {"depths": batch["depths"] * 0.98}
    for check, same in ((False, True), (True, False)):
        model = build(sampling={"check_visibility": check})
        assert torch.equal(model.encode(batch, 4)[0], model.encode(changed, 4)[0]) == same


def test_what_is_not_covered_has_no_colour_for_the_encoder(build: Build, batch: Batch) -> None:
    changed = batch | {"images": torch.where(batch["alphas"] > 0, batch["images"], 0.7)}
    assert not torch.equal(changed["images"], batch["images"])
    assert torch.equal(build().encode(changed, 4)[0], build().encode(batch, 4)[0])


# --- stages and checkpoints


def test_a_stage_adds_exactly_the_declared_weights(build: Build) -> None:
    structure, appearance = build().state_dict(), build("appearance").state_dict()
    assert structure.keys() <= appearance.keys()
    new = appearance.keys() - structure.keys()
    assert new == {name for name in appearance if name.startswith(DeGVAE.new_in_stage)}
    assert any(name.startswith("decoder.") for name in new)
    assert any(name.startswith("encoder.appearance") for name in new)


def test_a_structure_checkpoint_encodes_alike_in_the_appearance_stage(build: Build, batch: Batch) -> None:
    structure, appearance = awakened(build()), build("appearance")
    appearance.load_state_dict(structure.state_dict(), strict=False)
    for a, b in zip(appearance.encode(batch, 6), structure.encode(batch, 6), strict=True):
        assert torch.equal(a, b)


def test_frozen_extractors_are_in_no_checkpoint(build: Build) -> None:
    model = build("appearance")
    assert model.semantic_features.filters.weight.numel()
    assert not [name for name in model.state_dict() if "features" in name.split(".")[0]]
    model.load_state_dict(model.state_dict(), strict=True)


# --- prediction


@pytest.mark.parametrize("stage", STAGES)
def test_prediction_neither_depends_on_random_state_nor_changes_it(stage: str, build: Build, batch: Batch) -> None:
    model = awakened(build(stage))
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(model.predict_step(batch, 3))
        assert torch.equal(torch.get_rng_state(), before)
    first, second = results
    assert first.keys == ["one", "two"]
    for name, images in first.images.items():
        assert torch.equal(images, second.images[name]), name
    for name, values in first.metrics.items():
        assert torch.equal(values, second.metrics[name]), name


def test_prediction_of_the_structure_stage_is_a_density(build: Build, batch: Batch) -> None:
    result = build().predict_step(batch, 0)
    assert result.gaussians is None
    assert set(result.images) == {"ground truth", "density"}
    assert set(result.metrics) == {"chamfer", "chamfer_baseline"}


def test_prediction_of_the_appearance_stage_shows_the_views_held_back(build: Build, batch: Batch) -> None:
    result = build("appearance").predict_step(batch, 0)
    assert result.gaussians is not None
    assert (result.gaussians.batch_shape, result.gaussians.count) == ((2,), 8 * 4)
    truth = batch["images"][:, 2:] * batch["alphas"][:, 2:]
    torch.testing.assert_close(result.images["ground truth"], truth)
    for images in result.images.values():
        assert images.shape == truth.shape
        assert images.min() >= 0
        assert images.max() <= 1
    assert {"psnr", "psnr_baseline", "chamfer", "chamfer_baseline"} <= set(result.metrics)
    assert all(values.shape == (2,) and values.isfinite().all() for values in result.metrics.values())


# --- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"tokens": [4, 25]}}, "sampling.tokens: 25 query points cannot be chosen from .* 24; lower"),
        ({"sampling": {"target_points": 25}}, "sampling.target_points 25 is a subset of sampling.context_points 24"),
        ({"network": {"heads": 5}}, "network.heads: 5 does not divide network.width 24"),
        ({"network": {"initial_opacity": 1.0}}, "0 < initial_opacity < 1, got 4, 0.05 and 1.0"),
        ({"network": {"density_blocks": 0}}, "the numbers of blocks must be at least 1"),
        ({"sampling": {"tokens": []}}, "one or more tokens of at least 1"),
        ({"sampling": {"feature_views": 0}}, "feature_views of at least 1"),
        ({"stage": "appearance", "sampling": {"anchors": 1}}, "sampling.anchors: .* 2 or more, got 1"),
        ({"stage": "appearance", "appearance_features": None}, "stage 'appearance' needs appearance_features"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize("use", ["training_step", "predict_step"])
@pytest.mark.parametrize(
    ("member", "kept", "message"),
    [
        ("points", 47, "need data.points >= 48, got 47"),
        ("images", 2, "a sample has 2 views; raise data.views"),
    ],
)
def test_a_batch_with_too_little_is_refused(
    use: str, member: str, kept: int, message: str, build: Build, batch: Batch
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(build(), use)(batch | {member: batch[member][:, :kept]}, 0)


def test_a_test_decodes_to_other_budgets_and_takes_anchors_away(build: Build, batch: Batch) -> None:
    evaluation = EvaluationConfig(budgets=[12, 64], removed_anchors=5)
    plain, thorough = build("refinement"), build("refinement", evaluation=evaluation)
    for model in (plain, thorough):
        awakened(model)
    with torch.inference_mode():  # as Lightning tests
        expected, result = plain.test_step(batch, 0), thorough.test_step(batch, 0)
    added = {"psnr@12", "ssim@12", "psnr@64", "ssim@64", "removal_correlation", "removal_share"}
    assert set(result.metrics) - set(expected.metrics) == added
    assert set(result.images) - set(expected.images) == {"12 Gaussians", "64 Gaussians"}
    assert all(result.metrics[name].shape == (2,) and result.metrics[name].isfinite().all() for name in added)
    for name, values in expected.metrics.items():
        assert torch.equal(values, result.metrics[name])
    assert not torch.equal(result.metrics["psnr@12"], result.metrics["psnr@64"])
    assert set(thorough.validation_step(batch, 0).metrics) == set(expected.metrics)


def test_another_budget_can_be_set(build: Build, batch: Batch) -> None:
    model = build("appearance")
    counts = []
    for budget in (None, 12, 63):
        if budget:
            model.set_budget(budget)
        counts.append(model.predict_step(batch, 0).gaussians.count)
    assert counts == [8 * 4, 12, 64]  # whole anchors of four
    with pytest.raises(ValueError, match="a budget of 3 Gaussians is less than the 4 of one anchor"):
        model.set_budget(3)


def test_the_structure_stage_cannot_decode(build: Build) -> None:
    with pytest.raises(RuntimeError, match="decode with an 'appearance' checkpoint"):
        build().decode(torch.zeros(1, 4, 4), 8)


# --- weights


@pytest.mark.parametrize("stage", STAGES)
def test_weights_go_out_and_in_as_they_were_released(stage: str, build: Build, tmp_path: Path) -> None:
    original, other = awakened(build(stage)), build(stage)
    for name, tensors in original.released_files().items():
        save_tensors(tmp_path / name, tensors)
    initialise_from(other, tmp_path)
    networks = ("encoder.", "decoder.") if stage == "appearance" else ("encoder.",)
    loaded = other.state_dict()
    for name, tensor in original.state_dict().items():
        if name.startswith(networks):
            assert torch.equal(loaded[name], tensor), name
    next(tmp_path.glob("*encoder*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"no released weights at .*triposplat_vae_encoder_fp16.safetensors"):
        other.load_released_files(tmp_path)
