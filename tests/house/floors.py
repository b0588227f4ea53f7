"""Which room may import which: the floors of docs/architecture.md as a table, and the checks that read it."""

from source_tree import Module, imports

FLOORS = {
    "errors": 1,
    "site": 2,
    "basis": 2,
    "formats": 2,
    "weights": 3,
    "drawing": 3,
    "graph": 3,
    "organisms": 3,
    "project": 3,
    "run": 4,
    "lift": 5,
    "attribution": 6,
    "reading": 6,
    "rewrite": 6,
    "features": 6,
    "optvis": 6,
    "circuits": 7,
    "claims": 8,
    "match": 9,
    "decompile": 9,
    "report": 10,
    "commands": 10,
    "cli": 11,
    "workbench": 11,
}
# A command hands its result to the report to be shown; the report knows no commands.
SIDEWAYS = {("commands", "report")}
ONLY_IMPORTED_BY = {"project": {"commands"}}
ALONE = {"organisms"}
TORCH_FREE = ("errors", "site", "formats", "drawing", "graph", "project")
LOADS_TORCH = ("torch", "transformers", "torchvision", "safetensors.torch")
FRONT_MAY_GIVE = {"__version__"}  # what a room may take from the package's front page
Tree = dict[str, Module]


def room(name: str) -> str:
    """The room of a dotted module name; empty for the package's front page."""
    return name.partition(".")[2].partition(".")[0]


def unknown_rooms(tree: Tree) -> list[str]:
    """Rooms that stand on no floor yet (`__main__` is a door of the cli, no room)."""
    rooms = {room(name) for name in tree} - {"", "__main__"}
    return [f"{name} is on no floor: give it one in tests/house/floors.py" for name in sorted(rooms - set(FLOORS))]


def climbing_imports(tree: Tree) -> list[str]:
    """Imports, lazy ones too, that do not point to a lower floor or into the same room."""
    findings = []
    for module, target, name, where in _own_imports(tree):
        here, there = room(module), room(target)
        if here in {"", "__main__", there}:
            continue
        if not there:
            if name not in FRONT_MAY_GIVE:
                findings.append(f"{where}: {here} imports the front page; name the room that holds it")
        elif here in ALONE:
            findings.append(f"{where}: {here} imports {there}; it imports nothing of ours")
        elif here not in ONLY_IMPORTED_BY.get(there, {here}):
            findings.append(f"{where}: {here} imports {there}; only {', '.join(ONLY_IMPORTED_BY[there])} may")
        elif FLOORS.get(there, 99) >= FLOORS.get(here, 0) and (here, there) not in SIDEWAYS:
            findings.append(f"{where}: {here} imports {there}, which is not on a lower floor")
    return findings


def torch_in_torch_free_rooms(tree: Tree) -> list[str]:
    """Imports of torch, or of what loads it, in the rooms that must do without, also inside functions."""
    findings = []
    for module in tree.values():
        if room(module.name) not in TORCH_FREE:
            continue
        for found in imports(module, tree):
            full = f"{found.target}.{found.name}" if found.name else found.target
            if any(full == name or full.startswith(f"{name}.") for name in LOADS_TORCH):
                findings.append(f"{found.where}: {room(module.name)} imports {full}; this room is free of torch")
    return findings


def _own_imports(tree: Tree) -> list[tuple[str, str, str | None, str]]:
    package = next(iter(tree)).partition(".")[0]
    return [
        (module.name, found.target, found.name, found.where)
        for module in tree.values()
        for found in imports(module, tree)
        if found.target.partition(".")[0] == package
    ]
