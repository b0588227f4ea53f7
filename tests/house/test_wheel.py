"""What is shipped: the wheel holds the whole package, its data too, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_tree import CHECKOUT, PACKAGE


@pytest.mark.slow
def test_wheel_is_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    source = {
        str(file.relative_to(PACKAGE.parent))
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert held == source
    assert "cutaway/py.typed" in held
    assert licences
