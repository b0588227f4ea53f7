"""Reading a package's source without importing it: files, modules, and who imports whom."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "src" / "cutaway"


@dataclass(frozen=True)
class Module:
    """One Python file of the package, parsed."""

    name: str  # dotted: cutaway.run.tape; a package's __init__ bears the package's name
    file: Path
    is_package: bool

    @cached_property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.file))

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def at(self, node: ast.AST) -> str:
        """Where a finding is, as an editor can open it."""
        return f"{self.file}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is the most precise module the name stands for, `name` what is taken from it."""

    target: str
    name: str | None
    where: str
    top_level: bool


def modules(package: Path = PACKAGE) -> dict[str, Module]:
    """All modules of a package folder, by dotted name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Module(name, file, is_package)
    return found


def imports(module: Module, known: dict[str, Module]) -> list[Import]:
    """Every real import of a module, also the lazy ones inside functions; `if TYPE_CHECKING:` blocks are no imports.

    `from cutaway.run import tape` points to the module cutaway.run.tape if there is one, else to the package
    cutaway.run. A relative import is resolved against the module's own package.
    """
    found: list[Import] = []
    _collect(module.tree, module, known, True, found)
    return found


def _collect(node: ast.AST, module: Module, known: dict[str, Module], top: bool, found: list[Import]) -> None:
    if isinstance(node, ast.If) and _asks_type_checking(node.test):
        for child in node.orelse:
            _collect(child, module, known, top, found)
        return
    if isinstance(node, ast.Import):
        found.extend(Import(alias.name, None, module.at(node), top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = _absolute(node, module)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            target, name = (inner, None) if inner in known else (source, alias.name)
            found.append(Import(target, name, module.at(node), top))
    elif isinstance(node, ast.Call) and _is_import_call(node) and isinstance(node.args[0], ast.Constant):
        found.append(Import(str(node.args[0].value), None, module.at(node), top))
    inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        _collect(child, module, known, inside, found)


def _asks_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_import_call(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"import_module", "__import__"} and bool(node.args)


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    if not module.is_package:
        parts = parts[:-1]
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, *([node.module] if node.module else [])])
