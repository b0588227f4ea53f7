"""The house's budgets as functions: each takes parsed modules and returns its findings, one sentence each."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from source_tree import Module, imports

FILE, MEDIAN, FUNCTION, METHODS, PARAMETERS, FIELDS = 500, 200, 80, 25, 12, 12
REFUSED_WORDS = {"util", "utils", "helper", "manager", "wrapper", "bridge", "runner", "base", "common", "misc"}
SOURCE_SUFFIXES = {".py", ".html", ".j2", ".jinja", ".css", ".js"}  # hand-written text counts, wherever it hides
MODEL_NAMES = {"model_type", "architectures"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
Tree = dict[str, Module]


def source_files(package: Path) -> dict[Path, int]:
    """The lines of every hand-written file of the package."""
    return {
        file: len(file.read_text(encoding="utf-8").splitlines())
        for file in sorted(package.rglob("*"))
        if file.is_file() and file.suffix in SOURCE_SUFFIXES
    }


def median_lines(tree: Tree) -> float:
    """The median length of a module; an `__init__` that only re-exports would flatter it and is left out."""
    return median([module.lines for module in tree.values() if not module.is_package] or [0])


def long_files(package: Path) -> list[str]:
    sizes = source_files(package)
    return [f"{file} has {lines} lines, at most {FILE}" for file, lines in sizes.items() if lines > FILE]


def long_functions(tree: Tree) -> list[str]:
    findings = []
    for module, node in nodes(tree, FUNCTIONS):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION:
            findings.append(f"{module.at(node)}: {node.name} has {length} lines, at most {FUNCTION}")
    return findings


def wide_functions(tree: Tree) -> list[str]:
    findings = []
    for module, node in nodes(tree, FUNCTIONS):
        count = sum(argument.arg not in {"self", "cls"} for argument in parameters(node))
        if count > PARAMETERS:
            findings.append(f"{module.at(node)}: {node.name} has {count} parameters, at most {PARAMETERS}")
    return findings


def crowded_classes(tree: Tree) -> list[str]:
    findings = []
    for module, node in nodes(tree, ast.ClassDef):
        count = sum(isinstance(member, FUNCTIONS) for member in node.body)
        if count > METHODS:
            findings.append(f"{module.at(node)}: {node.name} has {count} methods, at most {METHODS}")
    return findings


def wide_records(tree: Tree) -> list[str]:
    findings = []
    for module, node in nodes(tree, ast.ClassDef):
        if not is_record(node):
            continue
        fields = [
            member
            for member in node.body
            if isinstance(member, ast.AnnAssign) and "ClassVar" not in ast.unparse(member.annotation)
        ]
        if len(fields) > FIELDS:
            findings.append(f"{module.at(node)}: {node.name} has {len(fields)} fields, at most {FIELDS}")
    return findings


def is_record(node: ast.ClassDef) -> bool:
    """Whether a class's annotations are its fields: dataclass, msgspec.Struct, NamedTuple, TypedDict."""
    marks = {last_name(decorator) for decorator in node.decorator_list} | {last_name(parent) for parent in node.bases}
    return bool(marks & {"dataclass", "Struct", "NamedTuple", "TypedDict"})


def import_cycles(tree: Tree) -> list[str]:
    """Cycles among modules, lazy imports counted. The front page's lazy imports (PEP 562) are no dependency of it."""
    edges: dict[str, set[str]] = {}
    for module in tree.values():
        front = "." not in module.name
        targets = {found.target for found in imports(module, tree) if found.top_level or not front}
        edges[module.name] = {target for target in targets if target in tree and target != module.name}
    return [" -> ".join(cycle) + " is an import cycle" for cycle in _cycles(edges)]


def _cycles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """One cycle for each back edge met by a depth-first walk."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        path.append(name)
        for target in sorted(edges[name]):
            if target in path:
                yield [*path[path.index(target) :], target]
            elif target not in done:
                yield from visit(target)
        path.pop()
        done.add(name)

    for name in sorted(edges):
        if name not in done:
            yield from visit(name)


def swallowed_exceptions(tree: Tree) -> list[str]:
    broad = {"Exception", "BaseException"}
    findings = []
    for module, node in nodes(tree, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        everything = any(kind is None or last_name(kind) in broad for kind in caught)
        if everything and all(_does_nothing(statement) for statement in node.body):
            findings.append(f"{module.at(node)}: an exception of any kind is swallowed; catch the one that is meant")
    for module, node in nodes(tree, ast.Call):
        if last_name(node.func) == "suppress" and any(last_name(kind) in broad for kind in node.args):
            findings.append(f"{module.at(node)}: suppress() of any exception; name the one that is meant")
    return findings


def _does_nothing(statement: ast.stmt) -> bool:
    quiet = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return quiet or isinstance(statement, ast.Pass | ast.Continue)


def unannotated(tree: Tree) -> list[str]:
    """Public functions and public methods of public classes with a parameter or a result that has no type."""
    findings = []
    for module, owner, node in public_functions(tree):
        static = any(last_name(decorator) == "staticmethod" for decorator in node.decorator_list)
        own = parameters(node)[1:] if owner and not static else parameters(node)  # without self or cls
        bare = [argument.arg for argument in own if argument.annotation is None]
        if node.returns is None:
            bare.append("its result")
        if bare:
            findings.append(f"{module.at(node)}: {node.name} does not annotate {', '.join(bare)}")
    return findings


def undocumented(tree: Tree) -> list[str]:
    """Public module-level functions and classes without a docstring."""
    findings = []
    for module in tree.values():
        for node in module.tree.body:
            named = isinstance(node, FUNCTIONS | ast.ClassDef) and not node.name.startswith("_")
            if named and not ast.get_docstring(node) and not _is_overload(node):
                findings.append(f"{module.at(node)}: {node.name} has no docstring")
    return findings


def _is_overload(node: ast.AST) -> bool:
    return any(last_name(decorator) == "overload" for decorator in getattr(node, "decorator_list", []))


def refused_names(tree: Tree) -> list[str]:
    findings = []
    for module in tree.values():
        words = re.split(r"[._]", module.name)
        refused = sorted(word for word in words if word in REFUSED_WORDS or word.removesuffix("s") in REFUSED_WORDS)
        if refused:
            findings.append(f"{module.file}: the name says nothing ({', '.join(refused)}); say what the module does")
    return findings


def branches_on_model_names(tree: Tree) -> list[str]:
    """Comparisons by model_type, architectures or a class's name, also through a variable; `is None` is free."""
    findings = []
    for module in tree.values():
        for scope in [module.tree, *(node for node in ast.walk(module.tree) if isinstance(node, FUNCTIONS))]:
            carriers = {
                target.id
                for node in _own_nodes(scope)
                for target, value in _bindings(node)
                if isinstance(target, ast.Name) and _names_a_model(value, set())
            }
            for node in _own_nodes(scope):
                if any(_names_a_model(subject, carriers) for subject in _subjects(node)):
                    findings.append(f"{module.at(node)}: a branch on a model's name or class; recognise it by dataflow")
    return findings


def _bindings(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Which target takes its value (or its elements) from which expression."""
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, ast.For | ast.comprehension):
        return [(node.target, node.iter)]
    return [(node.target, node.value)] if isinstance(node, ast.NamedExpr) else []


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the functions inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, FUNCTIONS):
            yield from _own_nodes(child)


def _subjects(node: ast.AST) -> list[ast.expr]:
    """The expressions on whose value a node decides."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return [] if any(isinstance(side, ast.Constant) and side.value is None for side in sides) else sides
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in {"startswith", "endswith"}:
            return [node.func.value]
        if node.func.attr in {"match", "search", "fullmatch"}:
            return list(node.args)
    return []


def _names_a_model(node: ast.AST, carriers: set[str]) -> bool:
    """Whether an expression is a model's name: the name itself, an element of it, or it in another case."""
    if isinstance(node, ast.Name):
        return node.id in carriers or node.id in MODEL_NAMES
    if isinstance(node, ast.NamedExpr):
        return _names_a_model(node.value, carriers)
    if isinstance(node, ast.BoolOp):
        return any(_names_a_model(side, carriers) for side in node.values)
    if isinstance(node, ast.Attribute):
        return node.attr in MODEL_NAMES or (node.attr in {"__name__", "__qualname__"} and _is_class(node.value))
    if isinstance(node, ast.Subscript):
        key = isinstance(node.slice, ast.Constant) and node.slice.value in MODEL_NAMES
        return key or _names_a_model(node.value, carriers)
    if isinstance(node, ast.Call):
        asked = last_name(node.func) in {"get", "getattr"} and any(
            isinstance(word, ast.Constant) and word.value in MODEL_NAMES for word in node.args
        )
        changed = isinstance(node.func, ast.Attribute) and node.func.attr in {"lower", "upper", "casefold", "strip"}
        return asked or (changed and _names_a_model(node.func.value, carriers))
    return False


def _is_class(node: ast.expr) -> bool:
    one = isinstance(node, ast.Call) and last_name(node.func) == "type"
    return one or (isinstance(node, ast.Attribute) and node.attr == "__class__")


def nodes(tree: Tree, kind: type | object) -> Iterator[tuple[Module, ast.AST]]:
    """Every node of a kind, with its module."""
    for module in tree.values():
        for node in ast.walk(module.tree):
            if isinstance(node, kind):
                yield module, node


def public_functions(tree: Tree) -> Iterator[tuple[Module, ast.ClassDef | None, ast.FunctionDef]]:
    """Public functions at module level, and public methods of public classes there, with the class."""
    for module in tree.values():
        for node in module.tree.body:
            owner = node if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else None
            for member in owner.body if owner else [node]:
                if isinstance(member, FUNCTIONS) and not member.name.startswith("_"):
                    yield module, owner, member


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    words = node.args
    stars = [star for star in (words.vararg, words.kwarg) if star]
    return [*words.posonlyargs, *words.args, *words.kwonlyargs, *stars]


def last_name(node: ast.AST | None) -> str:
    """`c` of a.b.c, of a.b.c(...) and of a.b.c[...]; empty for anything else."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


TREE_CHECKS: dict[str, Callable[[Tree], list[str]]] = {
    check.__name__: check
    for check in (
        long_functions,
        wide_functions,
        crowded_classes,
        wide_records,
        import_cycles,
        swallowed_exceptions,
        unannotated,
        undocumented,
        refused_names,
        branches_on_model_names,
    )
}
