"""Python, packages, compiler, and kernels that are compiled once for each machine."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gsforge.cli.checks.finding import Finding
from gsforge.cli.checks.wanted import Wanted


def python_version() -> Finding:
    """Whether Python is one that gsforge supports."""
    found, needed = platform.python_version(), metadata("gsforge")["Requires-Python"]
    if SpecifierSet(needed).contains(found, prereleases=True):
        return Finding("Python", "ok", f"{found} ({needed} is needed)")
    return Finding("Python", "problem", f"{found}", f"make an environment with Python {needed}")


def packages() -> Finding:
    """Whether what gsforge requires is installed, in versions that it works with."""
    requirements = [Requirement(text) for text in requires("gsforge") or []]
    needed = [entry for entry in requirements if entry.marker is None or entry.marker.evaluate({"extra": ""})]
    wrong = [text for entry in needed if (text := _unmet(entry))]
    if wrong:
        return Finding("packages", "problem", "; ".join(wrong), "pip install -c constraints.txt gsforge")
    return Finding("packages", "ok", f"all {len(needed)} that are needed")


def torch_build() -> Finding:
    """Which torch it is, and whether torchvision fits it."""
    import torch

    build = f"built with CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
    found = f"torch {torch.__version__}, {build}"
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        reason = f"{found}, but torchvision {_installed('torchvision')} does not load: {error}"
        return Finding("torch", "problem", reason, "install the torchvision that was made for this torch")
    return Finding("torch", "ok", f"{found}; torchvision {torchvision.__version__}")


def compiler(wanted: Wanted) -> Finding:
    """Whether there is a C++ compiler, for networks that are compiled and for CUDA kernels."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is not None:
        return Finding("C++ compiler", "ok", found)
    fix = "install one (apt install g++, or module load gcc), or set network.compile_blocks: false"
    return Finding("C++ compiler", "problem" if wanted.compiles else "warning", f"no {' or '.join(names)}", fix)


def cpu_kernels() -> Finding:
    """Whether the renderer for CPUs is compiled for this machine."""
    from gsforge.render.cpu.differentiate import differentiate_tiles
    from gsforge.render.cpu.draw import draw_tiles

    missing = [kernel.__name__ for kernel in (draw_tiles, differentiate_tiles) if not _is_cached(kernel)]
    if missing:
        fix = "python -m gsforge.render.cpu, once, before many processes would each do it"
        return Finding("CPU renderer", "warning", f"not compiled yet: {', '.join(missing)}", fix)
    return Finding("CPU renderer", "ok", "compiled for this machine")


def gsplat_build(gpu: bool) -> Finding:
    """Whether the CUDA kernels of gsplat are compiled, or can be; importing it would start that.

    Args:
        gpu: whether torch sees a GPU.

    Returns:
        The finding.
    """
    name, spec = "gsplat", importlib.util.find_spec("gsplat")
    if spec is None:
        if gpu:
            return Finding(name, "problem", "not installed", "pip install 'gsforge[cuda]'")
        return Finding(name, "ok", "not installed; without a GPU nothing needs it")
    found = f"gsplat {_installed('gsplat')}"
    if built := _kernels_of_gsplat([Path(path) for path in spec.submodule_search_locations or []]):
        return Finding(name, "ok", f"{found}, its kernels are in {built}")
    if not gpu:
        return Finding(name, "ok", f"{found}, kernels not compiled; without a GPU nothing needs them")
    lacking = [tool for tool in ("nvcc", "ninja") if not _tool(tool)]
    if lacking:
        fix = "install the CUDA toolkit of torch's CUDA version and ninja, or a wheel of gsplat with kernels"
        found = f"{found}, kernels not compiled, and there is no {' and no '.join(lacking)}"
        return Finding(name, "problem", found, fix)
    fix = "compile them on one GPU node before the job, some minutes: python -c 'import gsplat.cuda._backend'"
    return Finding(name, "warning", f"{found}, kernels not compiled", fix)


def _unmet(entry: Requirement) -> str | None:
    found = _installed(entry.name)
    if found is None:
        return f"{entry.name} is not installed"
    if not entry.specifier.contains(found, prereleases=True):
        return f"{entry.name} is {found}, {entry.specifier} is needed"
    return None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_cached(kernel: object) -> bool:
    """Whether numba's cache on disk has a kernel for this processor; asking the kernel itself would compile it."""
    entries = kernel._cache._cache_file._load_index()  # type: ignore[attr-defined]
    processor = kernel.targetctx.codegen().magic_tuple()  # type: ignore[attr-defined]
    return any(key[1] == processor for key in entries)


def _tool(name: str) -> str | None:
    """Program on the path, or nvcc where CUDA_HOME says."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which(name) or (shutil.which(name, path=f"{home}/bin") if name == "nvcc" else None)


def _kernels_of_gsplat(package: list[Path]) -> Path | None:
    """Library that came with gsplat, or that torch compiled and keeps."""
    shipped = [path for folder in package for path in folder.glob("csrc*.so")]
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root:
        kept = [Path(root) / "gsplat_cuda" / "gsplat_cuda.so"]
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        kept = list((cache / "torch_extensions").glob("*/gsplat_cuda/gsplat_cuda.so"))
    return next((path for path in [*shipped, *kept] if path.is_file()), None)
