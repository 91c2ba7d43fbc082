"""NVIDIA GPUs: driver, what torch sees of them, and NCCL."""

import os
import shutil
import subprocess
from pathlib import Path

from gsforge.cli.checks.finding import Finding
from gsforge.cli.checks.wanted import Wanted

_QUERY = ["--query-gpu=driver_version,name,memory.total,compute_cap", "--format=csv,noheader"]
_BUSY = 0.1  # share of memory that others may have taken


def gpus(wanted: Wanted) -> list[Finding]:
    """Driver, and each GPU with its memory and compute capability.

    Args:
        wanted: whether a training needs GPUs, and how many.

    Returns:
        Driver, then one finding for each GPU, or why torch sees none.
    """
    import torch

    driver, listed = _driver()
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        findings = [Finding("driver", "ok", driver or "torch reaches it; there is no nvidia-smi")]
        findings += [_gpu(number) for number in range(count)]
        if wanted.gpu and wanted.devices > count:
            fix = "lower trainer.devices, or ask for more GPUs"
            findings.append(Finding("GPUs", "problem", f"{count}, the configuration needs {wanted.devices}", fix))
        return findings
    if not listed and not any(Path("/dev").glob("nvidia[0-9]*")):
        if not wanted.gpu:
            return [Finding("GPUs", "ok", f"none{f' ({driver})' if driver else ''}; training runs on the CPU")]
        fix = "run on a GPU node (srun --gres=gpu:1 gsforge doctor), or take configs/trainer/cpu.yaml"
        return [Finding("GPUs", "problem", driver or "none, and no driver", fix)]
    return [_unseen(driver, len(listed), torch.version.cuda)]


def nccl(wanted: Wanted) -> Finding:
    """Version of NCCL, which carries gradients between GPUs.

    Args:
        wanted: whether a training needs GPUs.

    Returns:
        The finding.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        if wanted.gpu:
            return Finding("NCCL", "problem", "not in this torch", "install a torch built with CUDA and NCCL")
        return Finding("NCCL", "ok", "not in this torch; CPUs use gloo")
    found = ".".join(map(str, torch.cuda.nccl.version()))
    settings = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("NCCL_")]
    return Finding("NCCL", "ok", ", ".join([found, *settings]))


def sees_gpu() -> bool:
    """Whether torch can use a GPU here.

    Returns:
        True if it can.
    """
    import torch

    return torch.cuda.is_available()


def _driver() -> tuple[str, list[str]]:
    """What nvidia-smi says in one line, and its GPUs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", []
    done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        return f"nvidia-smi fails: {(done.stderr or done.stdout).strip().splitlines()[-1:]}", []
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return (f"driver {lines[0].split(',')[0]}" if lines else "nvidia-smi lists no GPU"), lines


def _gpu(number: int) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    capability = f"{properties.major}.{properties.minor}"
    found = f"{properties.name}, {total / 1e9:.0f} GB, compute capability {capability}"
    if not has_kernels(torch.cuda.get_arch_list(), properties.major, properties.minor):
        fix = "install a torch that was built for this GPU"
        built = ", ".join(torch.cuda.get_arch_list())
        return Finding(f"GPU {number}", "problem", f"{found}; torch was built for {built}", fix)
    if total - free > _BUSY * total:
        fix = "nvidia-smi shows whose processes they are"
        return Finding(f"GPU {number}", "warning", f"{found}, {(total - free) / 1e9:.1f} GB of it taken", fix)
    return Finding(f"GPU {number}", "ok", found)


def has_kernels(built: list[str], major: int, minor: int) -> bool:
    """Whether kernels run on a GPU: machine code does within its generation, PTX on later ones too.

    Args:
        built: what they were built for, such as `sm_90` (machine code) and `compute_90` (PTX).
        major: compute capability of the GPU, before the point.
        minor: and after it.

    Returns:
        True if one of them does.
    """
    for name in built:
        kind, _, text = name.partition("_")
        number = int("".join(digit for digit in text if digit.isdigit()) or 0)
        if number <= 10 * major + minor and (number // 10 == major or kind == "compute"):
            return True
    return False


def _unseen(driver: str, count: int, cuda: str | None) -> Finding:
    """A GPU that torch cannot use."""
    there = f"{count} GPUs, {driver}" if count else "an NVIDIA device without a working driver"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cuda is None:
        return Finding("GPUs", "problem", f"{there}, but torch was built for the CPU alone", "install torch with CUDA")
    if visible is not None and visible.strip() in ("", "-1"):
        fix = "unset CUDA_VISIBLE_DEVICES"
        return Finding("GPUs", "problem", f"{there}, hidden by CUDA_VISIBLE_DEVICES={visible!r}", fix)
    fix = "update the driver, or install a torch built with an older CUDA"
    return Finding("GPUs", "problem", f"{there}, but torch (CUDA {cuda}) cannot use it", fix)
