"""Training on a real SLURM: whatever happens to a job, its run ends as one to which nothing happened."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from cluster import Cluster
from conftest import Job, Submitter

from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory

STEPS = 10
PAIR = ("--nodes", "2", "--tasks-per-node", "1", "--trainer.strategy=ddp", "--checkpoint.every_n_train_steps=2")
SAFE, AT_RISK = "--exclude=node[1-3]", "--exclude=node[4-5]"


def callback(class_path: str, **options: object) -> str:
    return f"--trainer.callbacks+={json.dumps({'class_path': class_path, 'init_args': options})}"


def pause(folder: Path, *steps: int) -> str:
    return callback("pause.Pause", folder=str(folder), steps=list(steps))


def held(folder: Path, step: int) -> list[int]:
    """Process ids of the two ranks, once both are held at this step."""
    files = [folder / f"{step}.{rank}" for rank in range(2)]
    return [int(file.read_text()) for file in files] if all(file.exists() for file in files) else []


def final(run_dir: Path) -> dict[str, object]:
    """Weights, optimiser and schedule at the end of a run."""
    checkpoint = read_checkpoint(RunDirectory(run_dir).require_checkpoint())
    assert checkpoint["global_step"] == STEPS
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}


def assert_same_end(run_dir: Path, other: Path) -> None:
    torch.testing.assert_close(final(run_dir), final(other), rtol=0, atol=0)


def ends(job: Job) -> list[str]:
    """How the attempts ended."""
    return [line.split(" ", 2)[2] for line in job.attempts() if " started " not in line]


def meeting(job: Job) -> str:
    """Where the ranks of a job's attempts met."""
    (place,) = {line.rpartition(" ")[2] for line in job.text().splitlines() if "meeting at" in line}
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs; the records of held ranks are beside them."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def started(submit: Submitter, folder: Path) -> dict[str, Job]:
    """All jobs of this file, begun at once, for much of their time is waiting. The array's differ in their seeds."""

    def run(name: str, nodes: str, *words: object) -> Job:
        return submit(folder / name, "--run_dir", folder / name, *words, "--", nodes)[0]

    lines = (f"--run_dir {folder}/seed_{seed} --seed_everything {seed}\n" for seed in (7, 8))
    (folder / "scenes").write_text("".join(lines))
    scenes = submit(folder, *PAIR, "--array", folder / "scenes", "--", SAFE, arrayed=2)
    warned = (*PAIR, "--time", "3", "--lead", "45", pause(folder / "warned_held", 3))
    return {
        "seed_7": scenes[0],
        "seed_8": scenes[1],
        "warned": run("warned", SAFE, *warned),
        "unlucky": run("unlucky", AT_RISK, *PAIR, pause(folder / "unlucky_held", 3, 5, 7)),
        "failing": run("failing", SAFE, "--tasks-per-node", "1", callback("tiny.At", step=3, action="die")),
    }


def test_a_run_outlives_requeue_kill_and_the_loss_of_a_node(
    cluster: Cluster, started: dict[str, Job], folder: Path
) -> None:
    job, run_dir, records = started["unlucky"], folder / "unlucky", folder / "unlucky_held"

    def failures() -> list[str]:  # SLURM on a busy machine may stop a run once more than it was asked to
        return [end for end in ends(job) if end != "stopped and saved"]

    job.wait_for(lambda: held(records, 3))
    cluster.run("scontrol", "requeue", job.number)
    _, second_rank = job.wait_for(lambda: held(records, 5))
    assert "stopped and saved" in ends(job)
    assert failures() == []
    assert f"continuing {run_dir} at step 4" in job.text()

    os.kill(second_rank, signal.SIGKILL)
    job.wait_for(lambda: held(records, 7))
    assert failures() == ["failed with code 137"]

    lost = job.fields()["BatchHost"]
    cluster.cut_node(lost)
    assert job.end() == "COMPLETED 0", job.text()
    assert failures()[1:] == ["begins after one without an end", "done"]
    assert f"continuing {run_dir} at step 6" in job.text()
    assert job.fields()["BatchHost"] != lost
    started["seed_7"].end()
    assert_same_end(run_dir, folder / "seed_7")


def test_tasks_of_an_array_train_side_by_side(started: dict[str, Job], folder: Path) -> None:
    for seed in (7, 8):
        job = started[f"seed_{seed}"]
        assert job.end() == "COMPLETED 0", job.text()
        assert ends(job) == ["done"]
        assert f"finished at step {STEPS}: {folder}/seed_{seed}" in job.text()
        assert job.text().count("finished at step") == 1
        assert f"seed_everything: {seed}" in RunDirectory(folder / f"seed_{seed}").config().read_text()
    with pytest.raises(AssertionError):
        assert_same_end(folder / "seed_7", folder / "seed_8")


def test_jobs_at_the_same_time_share_nothing(started: dict[str, Job], folder: Path) -> None:
    jobs = {name: started[name] for name in ("seed_7", "seed_8", "warned")}
    for job in jobs.values():
        job.end()
    first, second, _ = fields = [job.fields() for job in jobs.values()]
    assert {job["NodeList"] for job in fields} == {"node[4-5]"}
    assert max(first["StartTime"], second["StartTime"]) < min(first["EndTime"], second["EndTime"])
    assert len({meeting(job) for job in jobs.values()}) == 3
    for name, job in jobs.items():
        assert not any(f"{folder}/{other}" in job.text() for other in set(jobs) - {name})


def test_the_warning_before_the_time_limit_costs_nothing(started: dict[str, Job], folder: Path) -> None:
    job = started["warned"]
    assert job.end() == "COMPLETED 0", job.text()
    *stops, last = ends(job)  # several on a slow machine
    assert (set(stops), last) == ({"stopped and saved"}, "done")
    assert "USR2: saving and stopping" in job.text()
    assert_same_end(folder / "warned", folder / "seed_7")


def test_the_same_error_twice_ends_the_job(started: dict[str, Job]) -> None:
    job = started["failing"]
    assert job.end() == "FAILED 70", job.text()
    repeated = "the same error at the same step as in the attempt before"
    assert ends(job) == ["failed with code 1", f"{repeated}; not requeued"]
    assert f"{repeated}. Another attempt cannot help" in job.text()
