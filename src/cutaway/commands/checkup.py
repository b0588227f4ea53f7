"""`doctor`: what this machine has, and what is known to go wrong with it. `check`: whether a network is followed here.

For `doctor`, nothing that may be broken is imported: versions are read from metadata, torch's build from its files.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from .. import __version__
from ..report import terminal
from ..report.zoo_text import checked
from .looking import NOTHING, Model, Texts
from .verb import Argument, Result, verb

NEEDED = ("torch", "numpy", "safetensors", "msgspec", "rich", "typer", "jinja2", "jaxtyping")
OPTIONAL = ("transformers", "tokenizers", "torchvision", "torchaudio")
SAFE_TORCH, SAFE_TRANSFORMERS = (2, 10), (5, 3)
ROOM = 1 << 30  # bytes; below this a project of any size is at risk
IMPORT_LIMIT = 90  # seconds

Problem = dict[str, str]


@verb("doctor", show=terminal.doctor, chapter="First steps")
def doctor(folder: Annotated[str, Argument("Where projects are to be kept.")] = ".") -> Result:
    """Check the installation: versions, known faults, disk space and permissions."""
    packages = [{"name": name, "version": _version(name), "needed": name in NEEDED} for name in (*NEEDED, *OPTIONAL)]
    problems = [*_missing(), *_old_or_large(), *_torchvision(), *_disk(folder)]
    place = shutil.disk_usage(folder) if Path(folder).is_dir() else None
    return {
        "cutaway": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpu": _gpu(),
        "folder": str(Path(folder).absolute()),
        "disk_free": place.free if place else None,
        "packages": packages,
        "problems": problems,
        "healthy": not any(problem["severity"] == "error" for problem in problems),
    }


@verb("check", show=checked, chapter="Look", good=lambda result: bool(result["ok"]))
def check(model: Model, text: Texts = NOTHING) -> Result:
    """Compare a network with plain PyTorch: its recording, replay, gradients, edits, and sums over edges.

    Ends with exit status 1 when something disagrees or cannot be followed.
    """
    from ..attribution.checking import check_network
    from .subject import inputs_of, open_model, suited_threads

    net = open_model(model)
    with suited_threads(net):
        return check_network(net, inputs_of(net, text)).record()


def _problem(severity: str, text: str, cure: str) -> Problem:
    return {"severity": severity, "text": text, "cure": cure}


def _missing() -> list[Problem]:
    lacking = [name for name in NEEDED if _version(name) is None]
    return [_problem("error", f"{name} is not installed.", f"pip install {name}") for name in lacking]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(name: str) -> tuple[int, int] | None:
    """The first two numbers of a version."""
    match = re.match(r"(\d+)\.(\d+)", _version(name) or "")
    return (int(match[1]), int(match[2])) if match else None


def _gpu() -> bool:
    """Whether a CUDA device is there, as far as files can tell."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _old_or_large() -> list[Problem]:
    version = _version("torch")
    if version is None:
        return []
    found = []
    if (numbers := _numbers("torch")) and numbers < SAFE_TORCH:
        text = (
            f"torch {version} is older than 2.10: its loader of checkpoints can be made to run code (CVE-2026-24747)."
        )
        found.append(_problem("error", text, "pip install 'torch>=2.10'"))
    if (numbers := _numbers("transformers")) and numbers < SAFE_TRANSFORMERS:
        text = f"transformers {_version('transformers')} may run code from a config.json, unasked (CVE-2026-4372)."
        found.append(_problem("error", text, "pip install 'transformers>=5.3'"))
    if _cuda_build() and not _gpu():
        text = f"torch {version} is built for CUDA {_cuda_build()} and there is no CUDA device; it works, but is huge."
        found.append(_problem("note", text, "pip install torch --index-url https://download.pytorch.org/whl/cpu"))
    return found


def _cuda_build() -> str | None:
    """The CUDA version that torch was built for, read from its files without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        text = (Path(spec.submodule_search_locations[0]) / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*= *'([^']+)'", text, re.MULTILINE)
    return match[1] if match else None


def _torchvision() -> list[Problem]:
    """Whether torchvision imports, tried in a process of its own: where it fails, it takes transformers with it."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        command = [sys.executable, "-c", "import torchvision"]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_LIMIT)
    except subprocess.TimeoutExpired:
        return [
            _problem("note", f"import torchvision took more than {IMPORT_LIMIT} s.", "try again on an idle machine")
        ]
    if tried.returncode == 0:
        return []
    last = next(iter(tried.stderr.strip().splitlines()[-1:]), "no message")
    text = f"torchvision {_version('torchvision')} cannot be imported ({last}), and transformers may fail with it."
    if "torchvision::nms" in tried.stderr:
        text += " Its build does not match this torch; often it is a CUDA build beside a CPU torch."
    return [_problem("error", text, "pip uninstall torchvision, or install both from the same index")]


def _disk(folder: str) -> list[Problem]:
    place = Path(folder)
    if not place.is_dir():
        return [_problem("error", f"There is no folder {folder}.", "name an existing one with --folder")]
    found = []
    if not os.access(place, os.W_OK | os.X_OK):
        found.append(_problem("error", f"{place.absolute()} cannot be written to.", "keep projects elsewhere"))
    free = shutil.disk_usage(place).free
    if free < ROOM:
        text = f"Only {free / 1e9:.1f} GB are free at {place.absolute()}."
        found.append(_problem("error", text, "free some space, or keep projects elsewhere"))
    return found
