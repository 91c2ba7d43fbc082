"""The claims of DeG with small sizes: what must hold exactly holds, and what they measure can be wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg import contribution, disc, draws, estimators_1d, sampler
from benchmarks.claims.deg.estimators import ESTIMATORS, Training, train, worth
from benchmarks.claims.deg.line import CELLS, Local, Refitted, Samples, alphas, draw_samples, line_image, weights
from benchmarks.claims.deg.removal import random_scene
from benchmarks.claims.report import Result


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def quick(claim: Claim, tmp_path: Path) -> Result:
    assert command_line(claim, ["--quick", "--seeds", "3", "--out", str(tmp_path)]) == 0
    name = claim.name
    result = Result.load(tmp_path / f"{name}.json")
    assert result.quick
    assert result.seeds == [0, 1, 2]
    assert len(result.rules) == len(claim.rules)
    assert "<polyline" in (tmp_path / f"{name}.svg").read_text()
    assert f"![{name}]({name}.svg)" in (tmp_path / f"{name}.md").read_text()
    return result


def largest(result: Result, words: str) -> float:
    found = [max(number.values) for name, number in result.numbers.items() if words in name]
    assert found, f"no number is named {words}"
    return max(found)


# --- contribution


def test_contributions_are_those_of_removal(tmp_path: Path) -> None:
    result = quick(contribution.CLAIM, tmp_path)
    assert largest(result, "worst error") < 1e-9
    assert largest(result, "without background, black") < 1e-9
    assert largest(result, "without background, white") > 0.1
    assert [rule.holds for rule in result.rules[:3]] == [True] * 3
    assert {"l1, cosine: Spearman, first step", "l2, cosine: harmful by exact, last step"} <= set(result.numbers)


def test_fits_fall_and_their_rates_too() -> None:
    recipe = disc.RECIPES[disc.PUBLISHED]
    assert [recipe.factor(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.505, 0.01])
    assert replace(recipe, cosine=False).factor(0.7) == 1
    fits = disc.fit(60, "l2", recipe, (1, 12), seed=0)
    # The exact contributions to L2 of Gaussians that help are negative and grow with the opacity.
    before, after = (disc.contributions(gaussians, "l2", "exact").sum() for gaussians in fits)
    assert after < before < 0


def test_backgrounds_show_between_the_gaussians_that_are_taken_away() -> None:
    scene = random_scene(40, 14, seed=0)
    left = 1 - scene.draw().alpha
    assert 0.1 < left.mean() < 0.6
    on_white = scene.drawn("cpu", (1.0, 1.0, 1.0)).draw()
    torch.testing.assert_close(on_white.rgb, scene.draw().rgb + left)


# --- sampler


def test_splits_are_exact_and_the_loss_is_the_divergence(tmp_path: Path) -> None:
    result = quick(sampler.CLAIM, tmp_path)
    assert largest(result, "split: largest |sum N_k - n|") == 0
    assert largest(result, "split: largest |N_k - n pi_k|") < 1
    assert largest(result, "relative error of the loss") < 1e-5
    assert largest(result, "variance ratio") < 1
    assert min(min(number.values) for name, number in result.numbers.items() if "p-value" in name) > 1e-3


def test_other_probabilities_than_those_drawn_from_are_noticed() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        density, z = draws.random_density(2)
        tree = draws.child_probabilities(density, z)
        wrong = [level.flip(-1) for level in tree]
        right, found = (draws.draw_errors(density, z, known, 16, 1000) for known in (tree, wrong))
    assert right[draws.UNBIASED] > 1e-3 > found[draws.UNBIASED]
    assert found[draws.FARTHEST] > 1.1
    assert found[draws.LOG_Q] > 0.1


# --- estimators


def test_all_estimators_are_compared(tmp_path: Path) -> None:
    result = quick(estimators_1d.CLAIM, tmp_path)
    for decoder in ("local", "refitted"):
        for budget in (16, 32, 64):
            for name in ESTIMATORS:
                assert 3 < result.numbers[f"{decoder}, P = {budget}: {name}, dB"].mean < 40
    gain = "local, P = 32, 16 stripes: published over uniform, dB"
    quality = [result.numbers[f"local, P = 32: {name}, dB"].mean for name in ("published", "uniform")]
    assert result.numbers[gain].mean == pytest.approx(quality[0] - quality[1])


def test_worth_is_what_taking_a_sample_away_changes() -> None:
    torch.manual_seed(0)
    samples, target = draw_samples(torch.randn(1, CELLS), 6, 3), line_image(16)
    sizes, colors = 2 + 3 * torch.rand(3, 6), torch.rand(3, 6)
    opacities = (0.2 + 0.7 * torch.rand(3, 6)).requires_grad_()
    alpha = alphas(samples, sizes, opacities)

    def loss(alpha: torch.Tensor) -> torch.Tensor:
        return ((weights(alpha) * colors[..., None]).sum(1) - target).abs().sum(1)

    found = worth(alpha, colors, target)
    torch.testing.assert_close(found.loss, loss(alpha))
    for number in range(6):
        without = torch.where(torch.arange(6)[:, None] == number, 0, alpha)
        torch.testing.assert_close(found.exact[:, number], loss(alpha) - loss(without), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(loss(alpha).sum(), opacities)
    torch.testing.assert_close(found.first_order, opacities * slope, rtol=1e-4, atol=1e-4)


def test_samples_follow_their_density_and_are_exact_in_number() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, CELLS)
    samples = draw_samples(logits, 64, 500)
    assert samples.positions.shape == samples.cells.shape == (1000, 64)
    for row, density in zip(samples.cells.chunk(2), logits.softmax(-1), strict=True):
        counts = torch.stack([one.bincount(minlength=CELLS) for one in row])
        assert ((counts - 64 * density).abs() < 1 + 1e-4).all()
        torch.testing.assert_close(counts.float().mean(0), 64 * density, rtol=0, atol=0.12)
    assert (samples.positions.floor() - samples.cells == 12).all()


def test_refitted_colours_are_the_best_ones() -> None:
    torch.manual_seed(0)
    target, decoder = line_image(16), Refitted(line_image(16))
    samples = draw_samples(torch.zeros(1, CELLS), 32, 2)
    attributes = decoder(samples)
    shown = weights(alphas(samples, attributes.sizes, attributes.opacities))

    def error(colors: torch.Tensor) -> torch.Tensor:
        return ((shown * colors[..., None]).sum(1) - target).square().sum()

    for _ in range(20):
        assert error(attributes.colors) < error(attributes.colors + 0.05 * torch.randn(2, 32))


def test_neighbours_set_the_refitted_size() -> None:
    samples = Samples(torch.tensor([[40.0, 20.0, 30.0]]), torch.zeros(1, 3, dtype=torch.long))
    # Halfway to both neighbours, or the ends of the object at 12 and 140, halved once more.
    assert Refitted(line_image(16))(samples).sizes.tolist() == [[27.5, 4.5, 5.0]]


def test_exact_worth_moves_samples_to_where_detail_is() -> None:
    torch.manual_seed(0)
    decoder = Local(2, CELLS / 32 / 2)
    quality = train(decoder, line_image(16), 32, ("uniform", "published"), Training(steps=120))
    assert quality["published"] > quality["uniform"] + 1
