"""What every test shares: no network, one thread, helpers beside a test importable, shapes checked when asked for.

`CUTAWAY_SHAPES=1` (or `make test SHAPES=1`) makes beartype and jaxtyping check the annotations of every module that
names shapes, while the tests run and never elsewhere.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ.setdefault("OMP_NUM_THREADS", "1")  # reproducible sums, and no fight over the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "cutaway"

# Tests are imported by path (two folders may hold a test_record.py); helpers beside them are still found by name.
for folder in sorted({file.parent for file in TESTS.rglob("*.py")}):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def shaped_modules() -> list[str]:
    """The dotted names of the package's modules that import jaxtyping."""
    names = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if "jaxtyping" in file.read_text(encoding="utf-8"):
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


if os.environ.get("CUTAWAY_SHAPES") == "1":
    from jaxtyping import install_import_hook

    install_import_hook(shaped_modules(), "beartype.beartype")


@pytest.fixture(autouse=True)
def distributions_validate() -> Iterator[None]:
    """torch.compile turns validation of distributions off for the whole process, which changes what a forward calls."""
    yield
    if "torch.distributions" in sys.modules:
        sys.modules["torch.distributions"].Distribution.set_default_validate_args(__debug__)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test data; a test that needs it is skipped, with the reason, where it is absent."""
    named = os.environ.get("CUTAWAY_DATA")
    folder = Path(named) if named else TESTS.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (name the folder with CUTAWAY_DATA)")
    return folder
