"""When train.sbatch brings a job back, and when it does not: a shell script ends as told, SLURM is real."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import HERE, Job, Submitter

FEW = ("--nodes", "2", "--tasks-per-node", "1", "--max-crashes", "2")
STARTED = "started on node[4-5]"
RULES = {
    # With two failures in a row allowed: a clean stop begins a new count.
    "1 75 71 143 0": (
        "COMPLETED 0",
        [
            "failed with code 1",
            "stopped and saved",
            "failed with code 71",
            "failed with code 143",
            "done",
        ],
    ),
    "1 1 1": ("FAILED 1", ["failed with code 1"] * 3 + ["3 attempts in a row failed; not requeued"]),
    "2": ("FAILED 2", ["the command or its configuration is wrong; not requeued"]),
    "1 70": (
        "FAILED 70",
        ["failed with code 1", "the same error at the same step as in the attempt before; not requeued"],
    ),
    "127": ("FAILED 127", ["the program was not found; not requeued"]),
    "130": ("FAILED 130", ["stopped by Ctrl-C; not requeued"]),
}


def launch(submit: Submitter, folder: Path, codes: str, *words: str, arrayed: int = 0) -> list[Job]:
    """A job on the last two nodes."""
    program = f"bash {HERE / 'ends.sh'}"
    words = (*FEW, *words, "--", "--exclude=node[1-3]", "--oversubscribe")
    if not arrayed:
        words = ("--run_dir", str(folder), *words)
    return submit(folder, *words, arrayed=arrayed, CODES=codes, GSFORGE_LAUNCHER=program)


@pytest.fixture(scope="module", autouse=True)
def jobs(submit: Submitter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """One for each rule, all at the same time, and while the first tests run."""
    folder = tmp_path_factory.mktemp("rules")
    return {codes: launch(submit, folder / codes.replace(" ", "_"), codes)[0] for codes in RULES}


def test_a_cancelled_job_saves_and_stays_away(submit: Submitter, cluster: Cluster, tmp_path: Path) -> None:
    (job,) = launch(submit, tmp_path / "run", "stop 0")
    job.wait_for(lambda: job.text().count("meets at") == 2)
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED 75"
    assert "rank 0 stops" in job.text()
    assert "rank 1 stops" in job.text()
    assert [line.split(" ", 2)[2] for line in job.attempts()] == [STARTED, "stopped and saved"]


def test_a_signal_before_a_rank_can_listen_leaves_none_waiting(
    submit: Submitter, cluster: Cluster, tmp_path: Path
) -> None:
    (job,) = launch(submit, tmp_path / "run", "early 0")
    job.wait_for(lambda: job.text().count("meets at") == 2)
    cluster.run("scancel", "--signal=USR2", job.number)
    assert job.end() == "COMPLETED 0"
    assert [line.split(" ", 2)[2] for line in job.attempts()] == [STARTED, "stopped and saved", STARTED, "done"]


def test_each_task_of_an_array_has_its_line_and_its_attempts(submit: Submitter, tmp_path: Path) -> None:
    setting = json.dumps({"a": [1, 2]})
    lines = [f"--run_dir {tmp_path}/one", f"--run_dir '{tmp_path}/number two' --key '{setting}'"]
    (tmp_path / "scenes").write_text("\n".join(lines) + "\n")
    jobs = launch(submit, tmp_path, "75 0", "--array", str(tmp_path / "scenes"), arrayed=2)
    assert [job.end() for job in jobs] == ["COMPLETED 0", "COMPLETED 0"]
    for job, own in zip(
        jobs, (f"--run_dir {tmp_path}/one", f"--run_dir {tmp_path}/number two --key {setting}"), strict=True
    ):
        assert [line.split(" ", 2)[2] for line in job.attempts()] == [STARTED, "stopped and saved", STARTED, "done"]
        started = [line for line in job.text().splitlines() if "meets at" in line]
        assert len(started) == 4
        assert all(f" in group scenes-{job.number.split('_')[0]} " in line for line in started)
        assert all(line.endswith(f"--trainer.devices=1 --trainer.num_nodes=2 {own}") for line in started)


@pytest.mark.parametrize("codes", RULES)
def test_the_exit_code_decides(jobs: dict[str, Job], codes: str) -> None:
    job = jobs[codes]
    state, ends = RULES[codes]
    assert job.end() == state
    told = [line.split(" ", 2)[2] for line in job.attempts()]
    assert [line for line in told if line != STARTED] == ends
    assert told.count(STARTED) == len(codes.split())
    if state.startswith("FAILED"):
        assert "train.sbatch: " + ends[-1].removesuffix("; not requeued") in job.text()
    assert job.text().count("rank 1 ends after the first") == codes.split().count("75")
    assert job.fields()["Restarts"] == str(len(codes.split()) - 1)


def test_jobs_meet_at_places_of_their_own(jobs: dict[str, Job]) -> None:
    for job in jobs.values():
        job.end()
    meetings = [
        {line.split("meets at ")[1].split()[0] for line in job.text().splitlines() if "meets at" in line}
        for job in jobs.values()
    ]
    assert all(len(places) == 1 for places in meetings)
    assert len(set.union(*meetings)) == len(jobs)


def test_a_more_urgent_job_takes_the_nodes_and_gives_them_back(
    submit: Submitter, cluster: Cluster, tmp_path: Path
) -> None:
    (job,) = launch(submit, tmp_path / "run", "stop 0", "--partition", "work")
    job.wait_for(lambda: job.text().count("meets at") == 2)
    urgent = ("--partition=urgent", "--nodes=2", "--exclude=node[1-3]", "--exclusive", "--output=/dev/null")
    cluster.run("sbatch", *urgent, "--wrap", "true")
    assert job.end() == "COMPLETED 0"
    ends = [line.split(" ", 2)[2] for line in job.attempts()]
    assert ends == [STARTED, "stopped and saved", STARTED, "done"]
