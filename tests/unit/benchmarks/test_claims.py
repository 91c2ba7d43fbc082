"""The frame of the claims: statistics against scipy, verdicts, what is written, the table, the plot."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.claims import table
from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.plot import Line, Panel, ticks, to_svg
from benchmarks.claims.report import Result
from benchmarks.claims.rules import Condition, Numbers, Rule, every_above, every_below, mean_above, mean_below
from benchmarks.claims.seeds import SeedFile
from benchmarks.claims.statistics import mean_interval, smallest_p_value, spearman

SVG = "{http://www.w3.org/2000/svg}"


def measure(seed: int, quick: bool) -> dict[str, float]:
    return {"height": 2.0 + 0.1 * seed - quick, "width": 1e-3 * (seed + 1)}


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    line = Line("heights < all", ((1, numbers["height"]), (10, numbers["width"])))
    return [Panel("sizes", "step", "m", (line,), (1.5,))]


def claim(*rules: Rule) -> Claim:
    return Claim(
        "deg", "toy", "Heights are large.", "nowhere", "heights | widths", rules, measure=measure, draw=draw, seeds=4
    )


HIGH = Rule("heights", ("height",), mean_above(1.5))
FLAT = Rule("heights and widths", ("height", "width"), every_below(1.0))


def written(*rules: Rule, out: Path, arguments: Sequence[str] = ()) -> tuple[int, Result, list[str]]:
    code = command_line(claim(*rules), ["--out", str(out), *arguments])
    return code, Result.load(out / "toy.json"), (out / "toy.md").read_text().splitlines()


# --- seeds


def test_an_interrupted_measurement_goes_on_after_its_last_seed(tmp_path: Path) -> None:
    asked = []

    def third_fails(seed: int) -> dict[str, float]:
        asked.append(seed)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"height": 0.1 * seed}

    path = tmp_path / "out" / "toy.seeds.json"
    with pytest.raises(KeyboardInterrupt):
        list(SeedFile(path, {"commit": "a"}).measure(range(4), third_fails))
    again = SeedFile(path, {"commit": "a"})
    found = [(seed, numbers) for seed, numbers, _ in again.measure(range(4), third_fails)]
    assert found == [(seed, {"height": 0.1 * seed}) for seed in range(4)]
    assert asked == [0, 1, 2, 2, 3]
    again.remove()
    assert not path.exists()


@pytest.mark.parametrize(("before", "now"), [({"commit": "a"}, {"commit": "b"}), (None, None)])
def test_seeds_of_other_or_unknown_code_are_measured_again(before: Any, now: Any, tmp_path: Path) -> None:
    for number, conditions in enumerate((before, now)):
        found = SeedFile(tmp_path / "seeds.json", conditions).measure([0], lambda _, number=number: {"height": number})
        assert [numbers["height"] for _, numbers, _ in found] == [number]


# --- statistics


def test_intervals_are_those_of_scipy() -> None:
    values = [1.0, 2.5, 2.0, 4.0, -1.0]
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(1.7)
    assert found.values == values
    same = mean_interval([3.0, 3.0, 3.0])
    assert (same.low, same.high) == (3.0, 3.0)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_numbers_that_have_no_interval_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more finite numbers"):
        mean_interval(values)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    intervals = [mean_interval(generator.normal(3, 2, 4).tolist()) for _ in range(600)]
    assert np.mean([found.low < 3 < found.high for found in intervals]) == pytest.approx(0.95, abs=0.03)


def test_spearman_sees_order_alone() -> None:
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 10, 100, 99])) == pytest.approx(0.8)


def test_wrong_means_have_small_p_values_and_right_ones_seldom() -> None:
    generator = np.random.default_rng(0)
    rates = np.array([0.02, 0.5, 3.0, 1e-7])  # the last is left out
    found = [smallest_p_value(generator.poisson(rates, (12_000, 4)).astype(float), rates) for _ in range(150)]
    assert np.mean(np.array(found) < 0.1) < 0.15
    draws = generator.poisson(rates, (12_000, 4)).astype(float)
    assert smallest_p_value(draws, rates * [1.4, 1, 1, 1]) < 1e-3
    with pytest.raises(ValueError, match="take more draws"):
        smallest_p_value(draws[:50], rates)


# --- verdicts


@pytest.mark.parametrize(
    ("condition", "passes", "fails"),
    [
        (mean_above(1.0), [1.2, 1.25, 1.3], [1.0, 1.5, 1.1]),  # the mean of the second is above, its interval is not
        (mean_below(1.0), [0.7, 0.75, 0.8], [1.0, 0.5, 0.9]),
        (every_above(1.0), [1.1, 5.0, 1.3], [1.2, 1.0, 1.3]),
        (every_below(1.0), [0.1, -5.0, 0.9], [0.1, 1.0, 0.3]),
    ],
    ids=lambda value: value.text if isinstance(value, Condition) else None,
)
def test_conditions(condition: Condition, passes: list[float], fails: list[float]) -> None:
    rule = Rule("this", ("x", "y"), condition)
    good, bad = mean_interval(passes), mean_interval(fails)
    assert rule.judge({"x": good, "y": good}).holds
    judged = rule.judge({"x": good, "y": bad})
    assert not judged.holds
    assert judged.measured.startswith("y: ")  # the one that fails comes first
    assert judged.rule == f"this: {condition.text}"


def test_all_rules_have_to_hold(tmp_path: Path) -> None:
    code, result, _ = written(HIGH, out=tmp_path)
    assert (code, result.verdict) == (0, "PASS")
    code, result, page = written(HIGH, FLAT, out=tmp_path)
    assert (code, result.verdict) == (1, "FAIL")
    assert [rule.holds for rule in result.rules] == [True, False]
    assert page[0] == "# toy: FAIL"


def test_quick_sizes_prove_nothing_and_never_fail(tmp_path: Path) -> None:
    code, result, _ = written(FLAT, out=tmp_path, arguments=["--quick"])
    assert (code, result.verdict) == (0, "FAIL (quick sizes)")
    assert result.numbers["height"].mean == pytest.approx(1.15)


# --- what is written


def test_everything_needed_to_repeat_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result, page = written(HIGH, out=tmp_path, arguments=["--seeds", "3"])
    assert result.command == f"python -m benchmarks.claims.deg.toy --out {tmp_path} --seeds 3"
    assert result.seeds == [0, 1, 2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result.date)
    assert torch.__version__.startswith(result.versions["torch"].split("+")[0])
    assert result.numbers["height"].values == [2.0, 2.1, 2.2]
    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["verdict"] == "PASS"
    text = "\n".join(page)
    for words in ("Heights are large.", "Source: nowhere", result.command, result.date, "![toy](toy.svg)", "2.2"):
        assert words in text
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "toy: PASS"
    # What is claimed is said before it is measured.
    assert printed.index(HIGH.sentence) < printed.index("seed 0")


def test_what_people_wrote_stays_until_the_verdict_changes(tmp_path: Path) -> None:
    _, _, page = written(HIGH, out=tmp_path)
    assert "**What was learned:** it holds as stated." in page
    edited = "**What was learned:** taller than thought."
    (tmp_path / "toy.md").write_text("\n".join(page).replace("**What was learned:** it holds as stated.", edited))
    assert edited in written(HIGH, out=tmp_path)[2]
    _, _, page = written(FLAT, out=tmp_path)
    assert edited not in page
    assert any(line.startswith("**What was learned:** it does not hold: heights and widths") for line in page)


@pytest.mark.parametrize("seeds", ["2", "-1", "many"])
def test_seeds_must_be_enough(seeds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line(claim(HIGH), ["--seeds", seeds, "--out", str(tmp_path)])
    assert f"expected 3 or more seeds, got {seeds}" in capsys.readouterr().err


# --- the table


def test_the_table_has_a_row_for_each_claim_and_keeps_those_that_failed(tmp_path: Path) -> None:
    for rules, name in (((HIGH,), "tall"), ((HIGH, FLAT), "flat")):
        command_line(replace(claim(*rules), name=name), ["--out", str(tmp_path)])
    assert table.main([str(tmp_path)]) == 0
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert "1 of 2 pass." in lines[2]
    rows = {line.split("]")[0].removeprefix("| ["): line for line in lines if line.startswith("| [")}
    assert set(rows) == {"tall", "flat"}
    columns = [cell.strip() for cell in re.split(r"(?<!\\)\|", rows["flat"])[1:-1]]
    assert columns[0] == "[flat](flat.md): Heights are large."
    assert columns[1] == f"{HIGH.sentence}<br>{FLAT.sentence}"
    assert columns[3] == "FAIL"
    assert columns[4] == f"`python -m benchmarks.claims.deg.flat --out {tmp_path}`"
    assert " PASS " in rows["tall"]


def test_a_folder_without_results_and_a_file_that_is_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        table.main([str(tmp_path)])
    assert "expected .json files of claims, found none" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"verdict": "PASS", "rules": [], "numbers": {}}')
    with pytest.raises(ValueError, match=r"other\.json: expected the result of a claim"):
        table.main([str(tmp_path)])


# --- the plot


def test_a_plot_shows_means_intervals_and_names() -> None:
    points = tuple((x, mean_interval([y - 1, y, y + 1])) for x, y in ((1, 5.0), (10, 7.0), (100, 6.0)))
    root = ElementTree.fromstring(to_svg([Panel("a < b", "steps", "dB", (Line("one & only", points),), (6.0,))] * 2))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts.count("a < b") == texts.count("one & only") == 2
    assert {"1", "10", "100", "steps", "dB"} <= set(texts)
    (line, _) = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
    across, down = zip(*places, strict=True)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1])  # logarithmic
    assert down[0] > down[2] > down[1]
    whiskers = [line for line in root.iter(f"{SVG}line") if line.get("stroke-width") == "2"]
    assert len(whiskers) == 6
    assert float(whiskers[0].attrib["y1"]) > down[0] > float(whiskers[0].attrib["y2"])


def test_too_many_lines_are_refused() -> None:
    lines = tuple(Line(str(number), ((1, mean_interval([1, 2])),)) for number in range(8))
    with pytest.raises(ValueError, match=r"at most 7 lines in a panel, got more in \['crowd'\]"):
        to_svg([Panel("crowd", "x", "y", lines)])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-0.0611, 0.999), (8.2, 22.9), (3.0, 3.0), (0.0, 0.0), (-5e-9, 2e-9)]
)
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    step = found[1] - found[0]
    assert round(step / 10 ** np.floor(np.log10(step)), 6) in (1, 2, 5, 10)
