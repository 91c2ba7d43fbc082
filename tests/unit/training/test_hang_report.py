"""Which rank is named when a run hangs."""

from pathlib import Path

from gsforge.training.hang_report import HangReport, Position


def reports(folder: Path, positions: list[Position | None]) -> HangReport:
    """What the first rank sees when the others have said where they stand."""
    for rank, position in enumerate(positions):
        if position is not None:
            HangReport(folder, rank, len(positions)).notify(position, collectives=9 if rank != 1 else 8, hung=True)
    return HangReport(folder, 0, len(positions))


AHEAD, BEHIND = Position(5, "optimiser", 2, 40), Position(5, "forward", 2, 38)


def test_the_one_furthest_behind_is_named(tmp_path: Path) -> None:
    verdict = reports(tmp_path, [AHEAD, AHEAD, BEHIND, AHEAD]).verdict()
    assert verdict.startswith("Slowest: rank 2 on ")
    assert verdict.endswith(", at forward, step 5, batch 2")
    assert (
        "ranks 0, 3 on"
        in reports(tmp_path, [Position(4, "saving", 0, 50), AHEAD, AHEAD, Position(4, "saving", 0, 50)]).verdict()
    )


def test_those_that_say_nothing_are_named_first(tmp_path: Path) -> None:
    assert "No word from rank 1: gone" in reports(tmp_path, [AHEAD, None, BEHIND]).verdict()
    (tmp_path / "progress-0.json").write_text("{torn")
    assert "No word from ranks 0, 1: gone" in HangReport(tmp_path, 2, 3).verdict()


def test_of_those_at_the_same_place_it_is_the_one_that_the_others_wait_for(tmp_path: Path) -> None:
    report = reports(tmp_path, [AHEAD, AHEAD])
    assert "Slowest: rank 1" in report.verdict()
    report.notify(AHEAD, collectives=8, hung=True)
    assert "All 2 ranks stand at optimiser, step 5, batch 2: compare their stacks" in report.verdict()
    assert "Slowest: rank 0" in reports(tmp_path / "alone", [BEHIND]).verdict()


def test_what_an_earlier_attempt_said_is_forgotten(tmp_path: Path) -> None:
    report = reports(tmp_path, [BEHIND])
    report.write_stacks(BEHIND, 3.0)
    assert "test_what_an_earlier_attempt_said_is_forgotten" in (tmp_path / "rank-0.txt").read_text()
    report.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0.txt"]
