"""The ratchet: sizes and habits of the package, checked on its source. Raising a limit is a change of its own."""

from pathlib import Path
from textwrap import dedent

import pytest
from budgets import FILE, MEDIAN, TREE_CHECKS, long_files, median_lines, source_files
from source_tree import PACKAGE, modules

TOTAL = int((Path(__file__).parent / "total.txt").read_text())


@pytest.mark.parametrize("check", TREE_CHECKS)
def test_package_keeps(check: str) -> None:
    findings = TREE_CHECKS[check](modules())
    assert not findings, "\n".join(["", *findings])


def test_files_are_short() -> None:
    assert not long_files(PACKAGE)


def test_median_is_short() -> None:
    assert median_lines(modules()) <= MEDIAN


def test_total_stays_within_the_budget() -> None:
    total = sum(source_files(PACKAGE).values())
    print(f"{total} lines of {TOTAL}; median of a module {median_lines(modules()):g} lines")
    assert 0 < total <= TOTAL, f"{total} lines; the budget in tests/house/total.txt is {TOTAL}"


# The checks themselves: each must find what it is for, and stay silent on the clean counterpart.

BODY = "\n".join(f"    x{i} = {i}" for i in range(80))
METHODS = "\n".join(f"    def m{i}(self): ..." for i in range(26))
FIELDS = "\n".join(f"    f{i}: int" for i in range(13))
PARAMETERS = ", ".join(f"p{i}" for i in range(13))

GUILTY = {
    "long function": ("long_functions", f"def f():\n{BODY}\n"),
    "long method": ("long_functions", "class C:\n    def f(self):\n" + BODY.replace("    x", "        x") + "\n"),
    "parameters": ("wide_functions", f"def f({PARAMETERS}): ...\n"),
    "keyword parameters": ("wide_functions", f"async def f(*, {PARAMETERS}): ...\n"),
    "methods": ("crowded_classes", f"class C:\n{METHODS}\n"),
    "dataclass": ("wide_records", f"@dataclass(frozen=True)\nclass C:\n{FIELDS}\n"),
    "struct": ("wide_records", f"class C(msgspec.Struct, frozen=True):\n{FIELDS}\n"),
    "bare except": ("swallowed_exceptions", "try:\n    f()\nexcept:\n    pass\n"),
    "broad except": (
        "swallowed_exceptions",
        "for x in y:\n    try:\n        f()\n    except Exception:\n        continue\n",
    ),
    "broad tuple": ("swallowed_exceptions", "try:\n    f()\nexcept (KeyError, BaseException):\n    ...\n"),
    "suppress": ("swallowed_exceptions", "with contextlib.suppress(Exception):\n    f()\n"),
    "no annotation": ("unannotated", "def f(x) -> int: ...\n"),
    "no result": ("unannotated", "def f(x: int): ...\n"),
    "method": ("unannotated", "class C:\n    def f(self, *rest) -> None: ...\n"),
    "static method": ("unannotated", "class C:\n    @staticmethod\n    def f(x) -> None: ...\n"),
    "no docstring": ("undocumented", "def f() -> None: ...\n"),
    "class without docstring": ("undocumented", "class C:\n    x = 1\n"),
    "compares model_type": ("branches_on_model_names", "if config.model_type == 'gpt2': ...\n"),
    "finds an architecture": ("branches_on_model_names", "ok = 'GPT2' in config['architectures'][0]\n"),
    "gets model_type": ("branches_on_model_names", "if config.get('model_type') in TABLE: ...\n"),
    "compares a class": ("branches_on_model_names", "if 'GPT' in m.__class__.__name__: ...\n"),
    "compares type()": (
        "branches_on_model_names",
        "def f(m):\n    name = type(m).__name__\n    return name == 'GPT'\n",
    ),
    "compares each": ("branches_on_model_names", "any('GPT' in a for a in config.architectures)\n"),
    "another case": ("branches_on_model_names", "if (config.model_type or '').lower() == 'gpt2': ...\n"),
    "matches": ("branches_on_model_names", "match config.model_type:\n    case 'gpt2': ...\n"),
    "starts with": ("branches_on_model_names", "config.model_type.startswith('gpt')\n"),
}

INNOCENT = {
    "short function": ("long_functions", f"def f():\n{BODY[: BODY.rindex(chr(10))]}\n"),
    "twelve parameters": ("wide_functions", f"def f(self, {PARAMETERS[:-5]}): ...\n"),
    "constants": ("wide_records", "@dataclass\nclass C:\n" + FIELDS.replace("int", "ClassVar[int]") + "\n"),
    "plain class": ("wide_records", f"class C:\n{FIELDS}\n"),
    "narrow except": ("swallowed_exceptions", "try:\n    f()\nexcept KeyError:\n    pass\n"),
    "handled": ("swallowed_exceptions", "try:\n    f()\nexcept Exception as error:\n    raise X from error\n"),
    "narrow suppress": ("swallowed_exceptions", "with contextlib.suppress(FileNotFoundError):\n    f()\n"),
    "private": ("unannotated", "def _f(x): ...\nclass C:\n    def _g(self, x): ...\n"),
    "annotated": ("unannotated", "class C:\n    @classmethod\n    def f(cls, *x: int, **y: int) -> None: ...\n"),
    "no parameters": ("unannotated", "def f() -> None: ...\n"),
    "documented": ("undocumented", 'def f() -> None:\n    """Do."""\n'),
    "shows model_type": ("branches_on_model_names", "row = config.get('model_type')\nif row is None: ...\n"),
    "another function's name": (
        "branches_on_model_names",
        "def f(m):\n    n = type(m).__name__\ndef g(n):\n    return n == 'x'\n",
    ),
    "label in a text": ("branches_on_model_names", "path = f'~{type(m).__name__}'\nif path == '': ...\n"),
    "op's name": ("branches_on_model_names", "if op.name == 'softmax': ...\n"),
}


@pytest.mark.parametrize("case", GUILTY)
def test_check_finds(case: str, tmp_path: Path) -> None:
    check, source = GUILTY[case]
    assert len(TREE_CHECKS[check](modules(craft(tmp_path, {"a.py": source})))) == 1


@pytest.mark.parametrize("case", INNOCENT)
def test_check_is_silent(case: str, tmp_path: Path) -> None:
    check, source = INNOCENT[case]
    assert TREE_CHECKS[check](modules(craft(tmp_path, {"a.py": source}))) == []


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "from toy import b\n", "b.py": "import toy.a\n"},
        {"a.py": "from .b import x\n", "b.py": "def f():\n    from toy.a import y\n"},
        {"__init__.py": "", "room/__init__.py": "from toy.room.a import x\n", "room/a.py": "from toy.room import y\n"},
        {"a.py": "import toy.b\n", "b.py": "import toy.c\n", "c.py": "import toy.a\n"},
    ],
)
def test_cycles_are_found(files: dict[str, str], tmp_path: Path) -> None:
    assert len(TREE_CHECKS["import_cycles"](modules(craft(tmp_path, files)))) == 1


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "from toy import b\n", "b.py": "import os\n"},
        {"a.py": "if TYPE_CHECKING:\n    import toy.b\n", "b.py": "import toy.a\n"},
        {"a.py": "from toy import c\n", "b.py": "from toy import c\n", "c.py": "", "d.py": "from toy import a, b\n"},
        {"__init__.py": "def __getattr__(name):\n    from toy import a\n", "a.py": "from toy import __version__\n"},
        {"room/__init__.py": "from toy.room.a import x\n", "room/a.py": "from toy.room.b import y\n", "room/b.py": ""},
    ],
)
def test_no_cycle_is_invented(files: dict[str, str], tmp_path: Path) -> None:
    assert TREE_CHECKS["import_cycles"](modules(craft(tmp_path, files))) == []


@pytest.mark.parametrize("name", ["utils.py", "text_utils.py", "helpers.py", "common/__init__.py", "hook_manager.py"])
def test_empty_words_are_refused(name: str, tmp_path: Path) -> None:
    assert len(TREE_CHECKS["refused_names"](modules(craft(tmp_path, {name: ""})))) == 1


@pytest.mark.parametrize("name", ["run.py", "basis.py", "baseline.py", "record.py"])
def test_telling_words_are_allowed(name: str, tmp_path: Path) -> None:
    assert TREE_CHECKS["refused_names"](modules(craft(tmp_path, {name: ""}))) == []


def test_lengths_are_counted(tmp_path: Path) -> None:
    files = {"a.py": "x = 1\n" * (FILE + 1), "b.py": "x = 1\n" * 3, "page.html": "<p>\n" * 2, "weights.bin": "\n" * 900}
    package = craft(tmp_path, files)
    assert len(long_files(package)) == 1
    assert sum(source_files(package).values()) == FILE + 1 + 3 + 2
    assert median_lines(modules(package)) == (FILE + 1 + 3) / 2


def craft(folder: Path, files: dict[str, str]) -> Path:
    """A package `toy` with these files."""
    package = folder / "toy"
    for name, text in {"__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(dedent(text))
    return package
