"""Each check of `gsforge doctor` finds what is wrong where something is really wrong."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gsforge.cli import main
from gsforge.cli.checks import gpu, host, network, software, storage, tracking
from gsforge.cli.checks.finding import Finding, run_checks
from gsforge.cli.checks.wanted import Wanted, read_wanted

CONFIGS = Path(__file__).parents[3] / "configs"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")


def program(folder: Path, name: str, text: str = "", code: int = 0) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    path.chmod(0o755)


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are found; nothing is compiled or installed beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no_cuda"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def limit() -> Iterator[Callable[[int, int], None]]:
    """Lower a limit of this process until the test ends."""
    before = {}

    def lower(which: int, value: int) -> None:
        before[which] = resource.getrlimit(which)
        resource.setrlimit(which, (value, before[which][1]))

    yield lower
    for which, values in before.items():
        resource.setrlimit(which, values)


# --- the command


def test_a_sound_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run_dir", str(tmp_path / "new" / "run")]) == 0
    shown = capsys.readouterr().out
    for name in ("Python", "torch", "NCCL", "CPU renderer", "file locks", "OMP_NUM_THREADS", "W&B"):
        assert name in shown
    assert "problems: 0" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_problem_ends_with_code_1_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run_dir", "/proc/run"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "cannot write to /proc" in shown
    assert "problems: 2" in shown  # no room either


def test_a_check_that_fails_is_a_problem_and_the_others_run() -> None:
    def broken() -> Finding:
        raise PermissionError(13, "no entry")

    findings = run_checks([("first", broken), ("second", lambda: [Finding("a", "ok", ""), Finding("b", "ok", "")])])
    assert [finding.name for finding in findings] == ["first", "a", "b"]
    assert findings[0].status == "problem"
    assert "PermissionError: [Errno 13] no entry" in findings[0].found


def test_configurations_say_what_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "mine.yaml"
    changed.write_text(
        "trainer: {devices: 4, num_nodes: 2, logger: [{class_path: lightning.pytorch.loggers.WandbLogger}]}\n"
        "model: {init_args: {network: {compile_blocks: true}}}\n"
    )
    files = [CONFIGS / "deg" / "flow_toy.yaml", CONFIGS / "trainer" / "gpu.yaml", changed]
    wanted = read_wanted(files)
    assert wanted == Wanted(Path("runs/deg_flow_toy"), 1, True, 4, 2, True, True, configured=True)
    assert read_wanted(files[:1], tmp_path) == Wanted(tmp_path, workers=1, configured=True)
    changed.write_text("trainer: [")
    assert main(["doctor", "--config", str(changed)]) == 1
    assert "not a YAML file" in capsys.readouterr().err


# --- software


def test_a_package_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.packages().status == "ok"
    old = tmp_path / "numba-0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numba\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = software.packages()
    assert (finding.status, finding.found) == ("problem", "numba is 0.1, >=0.68 is needed")


def test_a_torchvision_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    finding = software.torch_build()
    assert finding.status == "problem"
    assert "torchvision" in finding.found


def test_a_missing_compiler(bare_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.compiler(Wanted()).status == "warning"
    assert software.compiler(Wanted(compiles=True)).status == "problem"
    program(bare_path, "clang++")
    assert software.compiler(Wanted(compiles=True)) == Finding("C++ compiler", "ok", str(bare_path / "clang++"))
    monkeypatch.setenv("CXX", "icpx")
    assert software.compiler(Wanted()).found == "no icpx"


def test_kernels_of_gsplat_that_are_missing_buildable_or_there(bare_path: Path, tmp_path: Path) -> None:
    assert software.gsplat_build(gpu=False).status == "ok"
    finding = software.gsplat_build(gpu=True)
    assert finding.status == "problem"
    assert "no nvcc and no ninja" in finding.found
    program(bare_path, "ninja")
    cuda = tmp_path / "no_cuda" / "bin"
    cuda.mkdir(parents=True)
    program(cuda, "nvcc")
    assert software.gsplat_build(gpu=True).status == "warning"
    built = tmp_path / "extensions" / "gsplat_cuda" / "gsplat_cuda.so"
    built.parent.mkdir(parents=True)
    built.touch()
    assert software.gsplat_build(gpu=True).status == "ok"


def test_kernels_for_the_cpu_that_are_not_compiled(tmp_path: Path) -> None:
    text = "from gsforge.cli.checks.software import cpu_kernels; print(cpu_kernels())"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    assert "status='warning'" in done.stdout
    assert "draw_tiles, differentiate_tiles" in done.stdout


# --- GPUs


@without_gpu
def test_no_gpu(bare_path: Path) -> None:
    assert [finding.status for finding in gpu.gpus(Wanted())] == ["ok"]
    assert [finding.status for finding in gpu.gpus(Wanted(gpu=True))] == ["problem"]


@without_gpu
def test_a_gpu_that_torch_cannot_use(bare_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare_path, "nvidia-smi", "535.1, NVIDIA H100, 81559 MiB, 9.0")
    (finding,) = gpu.gpus(Wanted())
    assert finding.status == "problem"
    assert "1 GPUs, driver 535.1" in finding.found
    if torch.version.cuda:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        assert gpu.gpus(Wanted())[0].fix == "unset CUDA_VISIBLE_DEVICES"


@without_gpu
def test_a_driver_that_does_not_answer(bare_path: Path) -> None:
    program(bare_path, "nvidia-smi", "Driver/library version mismatch", code=18)
    assert "version mismatch" in gpu.gpus(Wanted(gpu=True))[0].found


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    driver, first, *_ = gpu.gpus(Wanted(gpu=True))
    assert (driver.status, first.name) == ("ok", "GPU 0")
    assert "compute capability" in first.found
    assert gpu.gpus(Wanted(gpu=True, devices=1000))[-1].status == "problem"


def test_machine_code_runs_within_a_generation_and_ptx_on_later_ones() -> None:
    assert gpu.has_kernels(["sm_80", "sm_90a"], 9, 0)
    assert gpu.has_kernels(["sm_86"], 8, 9)
    assert gpu.has_kernels(["sm_90", "compute_90"], 12, 0)
    assert not gpu.has_kernels(["sm_90"], 12, 0)
    assert not gpu.has_kernels(["sm_89"], 8, 6)


# --- storage


def test_a_disk_without_room() -> None:
    assert storage.free_space(Wanted(Path("/proc"))).status == "problem"


def test_a_file_that_cannot_be_written_whole(tmp_path: Path, limit: Callable[[int, int], None]) -> None:
    limit(resource.RLIMIT_FSIZE, 1 << 20)
    (finding,) = storage.saving(Wanted(tmp_path))
    assert finding.status == "problem"
    assert "File too large" in finding.found
    assert list(tmp_path.iterdir()) == []


MOUNTS = """/dev/sda1 / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
scratch {folder} {kind} rw 0 0
"""


@pytest.mark.parametrize(
    ("kind", "nodes", "status"),
    [("xfs", 1, "ok"), ("xfs", 2, "problem"), ("lustre", 64, "ok"), ("nfs4", 2, "ok"), ("tmpfs", 1, "warning")],
)
def test_the_filesystem_of_a_run(kind: str, nodes: int, status: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(folder=tmp_path, kind=kind))
    finding = storage.filesystem(Wanted(tmp_path / "run", nodes=nodes), mounts)
    assert finding.status == status
    assert finding.found.startswith(f"{kind} at {tmp_path}")


def test_a_filesystem_in_memory() -> None:
    assert storage.filesystem(Wanted(Path("/dev/shm/run"))).status == "warning"


# --- limits


def test_more_processes_than_cores() -> None:
    assert host.cores(Wanted()).status == "ok"
    assert host.cores(Wanted(workers=10_000)).status == "warning"


def test_shared_memory(tmp_path: Path) -> None:
    assert host.shared_memory(Wanted()).status == "ok"
    finding = host.shared_memory(Wanted(workers=100_000))
    assert finding.status == "warning"
    assert "100000 workers may need" in finding.found
    assert host.shared_memory(Wanted(workers=2), tmp_path / "none").status == "problem"


def test_few_open_files(limit: Callable[[int, int], None]) -> None:
    limit(resource.RLIMIT_NOFILE, 512)
    finding = host.open_files()
    assert (finding.status, finding.fix[:10]) == ("warning", "ulimit -n ")


@pytest.mark.parametrize(
    ("value", "devices", "status"), [("1", 1, "ok"), (None, 8, "ok"), ("100000", 2, "warning"), ("many", 1, "problem")]
)
def test_threads(value: str | None, devices: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert host.threads(Wanted(devices=devices)).status == status


# --- W&B


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a netrc file that is not there, for a user who never logged in."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path


def test_wandb_without_an_account(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.wandb(Wanted()).status == "ok"
    finding = tracking.wandb(Wanted(wandb=True))
    assert (finding.status, finding.fix) == ("warning", "wandb login, or export WANDB_MODE=offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.wandb(Wanted(wandb=True)).status == "ok"


def test_wandb_keys_are_found_and_never_shown(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_account.write_text("machine api.wandb.ai\n  login user\n  password tops3cret\n")
    from_file = tracking.wandb(Wanted(wandb=True))
    monkeypatch.setenv("WANDB_API_KEY", "tops3cret")
    from_variable = tracking.wandb(Wanted(wandb=True))
    for finding in (from_file, from_variable):
        assert finding.status == "ok"
        assert "tops3cret" not in str(finding)
    assert str(no_account) in from_file.found
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert tracking.wandb(Wanted(wandb=True)).status == "warning"  # the key is of another server


def test_wandb_that_is_not_installed(no_account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert tracking.wandb(Wanted()).status == "ok"
    assert tracking.wandb(Wanted(wandb=True)).status == "problem"


# --- network


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_of_this_machine_meet() -> None:
    finding = network.loopback()
    assert finding.status == "ok", finding
    assert "GB/s" in finding.found


def test_a_network_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchcard0")
    finding = network.loopback(timeout=5)
    assert finding.status == "problem"
    assert "GLOO_SOCKET_IFNAME" in finding.fix


def test_a_rank_whose_partner_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not network.launched()
    values = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert network.launched()
    finding = network.between_ranks(timeout=2)
    assert finding.status == "problem"
    assert "2 ranks do not meet at 127.0.0.1" in finding.found


def test_ranks_that_a_launcher_started(tmp_path: Path) -> None:
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "99999",
    }
    text = "import sys; from gsforge.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", text, "doctor", "--network", "--run_dir", str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = (rank.communicate(timeout=120)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "gloo over 2 ranks" in first or "nccl over 2 ranks" in first
    assert second.startswith(f"rank 1 on {socket.gethostname()}: warning: ")
    assert "Python" not in second
