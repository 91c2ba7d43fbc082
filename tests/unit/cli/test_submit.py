"""`gsforge submit`: the sbatch command, without a cluster; tests/slurm submit real jobs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gsforge.cli import main, submit

ROOT = Path(__file__).resolve().parents[3]
# What a shell passes to sbatch, one word a line, after the variables that it sees.
SHOW = 'sbatch() { echo "$GSFORGE_MAX_CRASHES $GSFORGE_ARRAY"; printf "%s\\n" "$@"; }\n'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("run_dir: runs/a b\ntrainer: {max_steps: 3}\n")
    (tmp_path / "cpu.yaml").write_text("trainer: {accelerator: cpu}\n")
    return "a.yaml"


def dry_run(capsys: pytest.CaptureFixture, *words: str) -> list[str]:
    """The words that reach sbatch when the printed text is pasted into a shell."""
    assert main(["submit", "--dry-run", *words]) == 0
    text = capsys.readouterr().out
    done = subprocess.run(["bash", "-c", SHOW + text], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_printed_text_is_the_command(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    setting = json.dumps({"class_path": "x.Y", "init_args": {"name": "it's"}})
    files = ["--config", config, "--config", "cpu.yaml"]
    asked = ["--nodes", "4", "--gpus-per-node", "8", "--time", "4:00:00", "--partition", "gpu", "--account", "lab"]
    words = dry_run(
        capsys, *files, *asked, "--max-crashes", "5", "--trainer.max_steps", "7", f"--trainer.callbacks+={setting}"
    )
    assert words == [
        "5 ",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gres=gpu:8",
        "--time=4:00:00",
        "--signal=USR2@300",
        "--partition=gpu",
        "--account=lab",
        "--job-name=a b",
        "--output=runs/a b/slurm/%j.log",
        str(submit.SCRIPT),
        *files,
        "--trainer.max_steps",
        "7",
        f"--trainer.callbacks+={setting}",
        "--trainer.devices=8",
        "--trainer.num_nodes=4",
    ]
    assert (tmp_path / "runs" / "a b" / "slurm").is_dir()


def test_further_words_are_for_sbatch_and_cpu_ranks_ask_for_no_gpu(config: str, capsys: pytest.CaptureFixture) -> None:
    words = dry_run(capsys, "--config", config, "--tasks-per-node", "2", "--", "--exclude=node3", "--qos", "low")
    assert words[:3] == ["3 ", "--nodes=1", "--ntasks-per-node=2"]
    assert words[words.index(str(submit.SCRIPT)) - 3 :][:3] == ["--exclude=node3", "--qos", "low"]
    assert not any("gres" in word for word in words)


@pytest.mark.parametrize(
    ("words", "run_dir"),
    [
        (["--config", "b.yaml"], "runs/b"),
        (["--config", "cpu.yaml"], "runs/a b"),
        (["--run_dir", "runs/c", "--config", "b.yaml"], "runs/c"),
        (["--run_dir=runs/c", "--run_dir=runs/d"], "runs/d"),
    ],
)
def test_logs_are_in_the_run_directory_that_fit_uses(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], run_dir: str
) -> None:
    (tmp_path / "b.yaml").write_text("run_dir: runs/b\n")
    assert f"--output={run_dir}/slurm/%j.log" in dry_run(capsys, "--config", config, "--tasks-per-node=1", *words)


def test_an_array_has_a_task_for_each_line(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "scenes").write_text("--run_dir runs/garden --data.train data/garden\n--run_dir 'runs/my room'\n")
    costs(tmp_path / "runs" / "my room", stall=1, write=60, step=3)
    words = dry_run(capsys, "--config", config, "--tasks-per-node", "1", "--array", "scenes")
    assert words[0] == f"3 {tmp_path / 'scenes'}"
    expected = {"--array=1-2", "--job-name=scenes", f"--output={tmp_path}/runs/slurm/%A_%a.log", "--signal=USR2@300"}
    assert expected <= set(words)


def costs(run_dir: Path, **seconds: float) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "save_cost.json").write_text(json.dumps(seconds))


@pytest.mark.parametrize(("write", "lead"), [(0.5, 120), (200.2, 613)])
def test_the_warning_comes_early_enough_for_a_save(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture, write: float, lead: int
) -> None:
    costs(tmp_path / "runs" / "a b", stall=0.1, write=write, step=4)
    asked = ["--config", config, "--tasks-per-node", "1"]
    assert f"--signal=USR2@{lead}" in dry_run(capsys, *asked)
    assert "--signal=USR2@60" in dry_run(capsys, *asked, "--lead", "60")


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("6:30", 390), ("4:00:00", 14400), ("2-12", 216000), ("1-0:30", 88200), ("1-2:03:04", 93784)],
)
def test_time_limits_are_read_as_sbatch_does(limit: str, seconds: int) -> None:
    assert submit.seconds_of(limit) == seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--time", "5"], "--time 5 is no longer than the 300 s"),
        (["--time", "1:2:3:4"], "expected a time limit such as 4:00:00"),
        (["--time", "soon"], "got 'soon'"),
        (["--trainer.devices=2"], "leave out --trainer.devices=2"),
        (["--config", "none.yaml"], "--config none.yaml: No such file"),
        (["--config", "bad.yaml"], "--config bad.yaml is no YAML"),
        (["--array", "none"], "--array none: [Errno 2]"),
        (["--array", "empty"], "expected a line of arguments for each task"),
        (["--array", "twice"], "every line needs a --run_dir of its own"),
        (["--array", "ranks"], "leave out --trainer.num_nodes=2"),
        (["--run_dir", "damaged"], "save_cost.json: expected the seconds of stall, write and step"),
    ],
)
def test_errors_are_one_line(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("{")
    (tmp_path / "empty").write_text("--run_dir a\n\n")
    (tmp_path / "twice").write_text("--run_dir a\n--run_dir a\n")
    (tmp_path / "ranks").write_text("--run_dir a --trainer.num_nodes=2\n")
    costs(tmp_path / "damaged", stall=1)
    assert main(["submit", "--dry-run", "--config", config, "--tasks-per-node", "1", *words]) == 1
    assert message in capsys.readouterr().err.splitlines()[0]


def test_a_run_needs_a_folder_and_a_job_its_script(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = ["submit", "--dry-run", "--tasks-per-node", "1", "--config"]
    assert main([*asked, "cpu.yaml"]) == 1
    assert "no run_dir in the configuration" in capsys.readouterr().err
    monkeypatch.setattr(submit, "SCRIPT", tmp_path / "train.sbatch")
    assert main([*asked, config]) == 1
    assert "install gsforge from there with pip install -e ." in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--nodes", "0"], ["--gpus-per-node", "2"]])
def test_wrong_options_are_refused(config: str, capsys: pytest.CaptureFixture, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["submit", "--config", config, "--tasks-per-node", "1", *words])
    assert "error: argument" in capsys.readouterr().err


def test_without_slurm_it_says_what_to_do(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", "--config", config, "--tasks-per-node", "1"]) == 1
    assert "sbatch and gsforge not found" in capsys.readouterr().err


def test_nothing_heavy_is_imported(config: str) -> None:
    code = (
        "import sys; from gsforge.cli import main; "
        f"main(['submit', '--dry-run', '--config', {config!r}, '--tasks-per-node', '1']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_gsforge_fit_takes_what_the_readme_submits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "slurm" / "README.md").read_text()
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    subprocess.run(["bash", "-c", *re.findall(r"^printf .*$", blocks, flags=re.MULTILINE)], check=True)
    commands = re.findall(r"^(?:GSFORGE_.*)?gsforge (submit .*)$", blocks, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        words = dry_run(capsys, *(word for word in shlex.split(command)[1:] if word != "--dry-run"))
        fit = words[words.index(str(submit.SCRIPT)) + 1 :]
        lines = Path("sweep.txt").read_text().splitlines() if "--array" in command else [""]
        for line in lines:
            with pytest.raises(SystemExit) as ended:
                main(["fit", *fit, *shlex.split(line), "--print_config"])
            assert ended.value.code == 0, command
        capsys.readouterr()
