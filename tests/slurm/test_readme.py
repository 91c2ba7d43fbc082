"""The commands of slurm/README.md on a real cluster, in a user's order, with fewer objects and steps."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, environment, free_ports

README = (ROOT / "slurm" / "README.md").read_text()
SMALLER = {
    r"gsforge data toy .*": r"\g<0> --points 2048 --views 8 --size 32",
    r"max_steps 200 --trainer.val_check_interval 100": "max_steps 40 --trainer.val_check_interval 40",
    r"sleep 20": "sleep 1",
}
DONE = "until grep -qsE ' done| not requeued' {}; do sleep 1; done"
# What a reader waits for before a command.
WAITS = {
    "tail ": "until grep -qs 'step 10/' runs/first/slurm/1.log; do sleep 1; done",
    "cat ": DONE.format("runs/first/slurm/1.attempts"),
    "slurm/local/cluster.py status": DONE.format("first-2.attempts"),
    "slurm/local/cluster.py down": "until [[ -z $(squeue --noheader) ]]; do sleep 1; done",
}
CLUSTER = "slurm/local/cluster.py"
STEPS = (f"{CLUSTER} up", "gsforge data", "tail ", "cat ", "sbatch --nodes", f"{CLUSTER} status", f"{CLUSTER} down")
NEEDS = ("make setup", "source .venv", "slurm/local/install")  # done already where tests run


def block(start: str) -> list[str]:
    """Commands of the shell block in which one starts so."""
    blocks = [text.splitlines() for text in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)]
    (found,) = [lines for lines in blocks if any(line.startswith(start) for line in lines)]
    return [line for line in found if not line.startswith(NEEDS)]


@pytest.mark.slow
def test_from_the_clone_to_a_requeued_job(tmp_path: Path) -> None:
    for name in ("configs", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    root = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    changes = SMALLER | {
        r"cluster\.py (\w+)": rf"cluster.py \1 --root {root} --port {free_ports(4)}",
        "/tmp/gsforge-slurm": root,
    }
    lines = ["set -e", f"trap 'slurm/local/cluster.py down --root {root}' EXIT"]
    for line in (line for step in STEPS for line in block(step)):
        lines += [wait for start, wait in WAITS.items() if line.startswith(start)]
        for old, new in changes.items():
            line = re.sub(old, new, line)
        lines.append(line)
    command = ["timeout", "300", "bash", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    log = (tmp_path / "runs" / "first" / "slurm" / "1.log").read_text()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log}"
    attempts = (tmp_path / "runs" / "first" / "slurm" / "1.attempts").read_text().splitlines()
    assert [line.split(" ", 3)[3].split(" on ")[0] for line in attempts] == [
        "started",
        "stopped and saved",
        "started",
        "done",
    ]
    assert "continuing runs/first at step" in log
    assert "node1 idle" in done.stdout
    assert (tmp_path / "runs" / "second" / "checkpoints" / "last.ckpt").exists()
    shutil.rmtree(root)  # kept where something failed: the daemons' logs are in it
