"""One way through the house: imports go down, torch stays out of the lower rooms, the front page stays light."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from floors import FLOORS, TORCH_FREE, climbing_imports, room, torch_in_torch_free_rooms, unknown_rooms
from source_tree import PACKAGE, imports, modules


def test_every_room_has_a_floor() -> None:
    assert not unknown_rooms(modules())


def test_imports_go_down() -> None:
    findings = climbing_imports(modules())
    assert not findings, "\n".join(["", *findings])


def test_lower_rooms_name_no_torch() -> None:
    findings = torch_in_torch_free_rooms(modules())
    assert not findings, "\n".join(["", *findings])


@pytest.mark.parametrize("name", TORCH_FREE)
def test_lower_rooms_load_no_torch(name: str) -> None:
    inside = sorted(module for module in modules() if room(module) == name)
    if not inside:
        pytest.skip(f"there is no room {name} yet")
    assert loaded_by(inside) == []


def test_front_page_loads_no_torch() -> None:
    assert loaded_by(["cutaway"]) == []


def test_probe_sees_torch() -> None:
    assert loaded_by(["safetensors.torch"]) == ["torch"]


def loaded_by(names: list[str]) -> list[str]:
    """Which heavy packages a fresh interpreter holds after these imports."""
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "print(*[name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# The checks themselves, on small crafted houses.

GUILTY = {
    "up": {"graph/op.py": "from cutaway.run import tape\n", "run/tape.py": ""},
    "up, lazily": {"graph/op.py": "def f():\n    from cutaway.run.tape import x\n", "run/tape.py": ""},
    "up, relative": {"graph/op.py": "from ..run import tape\n", "run/tape.py": ""},
    "up, by name": {
        "graph/op.py": "import importlib\nimportlib.import_module('cutaway.run.tape')\n",
        "run/tape.py": "",
    },
    "sideways": {"graph/op.py": "import cutaway.weights.shapes\n", "weights/shapes.py": ""},
    "report on commands": {"report/page.py": "import cutaway.commands.verbs\n", "commands/verbs.py": ""},
    "front page": {"run/tape.py": "import cutaway\n"},
    "a name of the front page": {"run/tape.py": "from cutaway import record\n"},
    "project from run": {"run/tape.py": "import cutaway.project.store\n", "project/store.py": ""},
    "project from cli": {"cli/main.py": "def f():\n    import cutaway.project.store\n", "project/store.py": ""},
    "organisms on errors": {"organisms/toy.py": "from cutaway.errors import ModelError\n", "errors.py": ""},
    "else of TYPE_CHECKING": {
        "graph/op.py": "if TYPE_CHECKING:\n    x = 1\nelse:\n    import cutaway.run.tape\n",
        "run/tape.py": "",
    },
}

INNOCENT = {
    "down": {
        "run/tape.py": "from cutaway.graph.op import x\nfrom cutaway import errors\n",
        "graph/op.py": "",
        "errors.py": "",
    },
    "same room": {"run/tape.py": "from cutaway.run import calls\nfrom .calls import y\n", "run/calls.py": ""},
    "for types only": {"graph/op.py": "if TYPE_CHECKING:\n    from cutaway.run import tape\n", "run/tape.py": ""},
    "version": {"claims/claim.py": "from cutaway import __version__\n"},
    "front page, lazily": {"__init__.py": "def __getattr__(n):\n    import cutaway.cli\n", "cli/__init__.py": ""},
    "project from commands": {"commands/verbs.py": "import cutaway.project.store\n", "project/store.py": ""},
    "commands on report": {"commands/verbs.py": "import cutaway.report.page\n", "report/page.py": ""},
    "others": {"organisms/toy.py": "import torch\nfrom torch import nn\n", "run/tape.py": "import cutawayish\n"},
}


@pytest.mark.parametrize("case", GUILTY)
def test_climbing_is_found(case: str, tmp_path: Path) -> None:
    assert len(climbing_imports(modules(build(tmp_path, GUILTY[case])))) == 1


@pytest.mark.parametrize("case", INNOCENT)
def test_descending_is_allowed(case: str, tmp_path: Path) -> None:
    assert climbing_imports(modules(build(tmp_path, INNOCENT[case]))) == []


@pytest.mark.parametrize(
    "line",
    ["import torch", "from torch import nn", "def f():\n    import torch.nn", "from safetensors import torch as st"],
)
def test_torch_is_found(line: str, tmp_path: Path) -> None:
    assert len(torch_in_torch_free_rooms(modules(build(tmp_path, {"graph/op.py": line})))) == 1


@pytest.mark.parametrize("line", ["import torchlike", "if TYPE_CHECKING:\n    import torch", "import safetensors"])
def test_torch_is_not_imagined(line: str, tmp_path: Path) -> None:
    assert torch_in_torch_free_rooms(modules(build(tmp_path, {"graph/op.py": line, "run/t.py": "import torch"}))) == []


def test_room_without_floor_is_found(tmp_path: Path) -> None:
    assert len(unknown_rooms(modules(build(tmp_path, {"attic/box.py": "", "__main__.py": "", "site.py": ""})))) == 1


def test_imports_are_read(tmp_path: Path) -> None:
    files = {
        "a/__init__.py": "from . import b\nfrom .b import x\n",
        "a/b.py": "from .. import c\nimport os.path\n",
        "c.py": "",
    }
    tree = modules(build(tmp_path, files))
    assert [(i.target, i.name) for i in imports(tree["cutaway.a"], tree)] == [
        ("cutaway.a.b", None),
        ("cutaway.a.b", "x"),
    ]
    assert [i.target for i in imports(tree["cutaway.a.b"], tree)] == ["cutaway.c", "os.path"]


def test_the_table_is_whole() -> None:
    assert set(TORCH_FREE) <= set(FLOORS)


def build(folder: Path, files: dict[str, str]) -> Path:
    """A house `cutaway` with these files; every folder is a package."""
    house = folder / "cutaway"
    for name, text in {"__init__.py": "", **files}.items():
        path = house / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return house
