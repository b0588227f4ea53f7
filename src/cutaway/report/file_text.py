"""What `info` prints of a checkpoint."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent, more, size

SEVERITIES = {"high": "bold red", "medium": "yellow", "low": "dim"}
MODULES_SHOWN, NOTES_SHOWN, TEXT_SHOWN = 24, 12, 100
_WORRYING = {"damaged": "bold red", "not finite": "red", "constant": "yellow", "dead": "yellow", "outlier": "yellow"}
_SAID = (
    "producer", "weights", "general.architecture", "general.name", "tokenizer", "ops", "opset", "inputs", "outputs",
    "description",
)  # fmt: skip


def checkpoint(result: Data) -> RenderableType:
    """What is in the file, what is odd about it, and what would run if it were loaded the usual way."""
    head = Text.assemble(
        (result["path"], "bold cyan"),
        f"  {result['format']}, {size(result['size'])}, {result['parameters']:,} parameters"
        f" in {len(result['tensors']):,} tensor{'s'[: len(result['tensors']) != 1]}",
    )
    found: list[RenderableType] = [head, *_risks(result), *_modules(result)]
    notes = _notes(result)
    if notes:
        table, indented = grid("", "")
        for word, style, text in notes:
            table.add_row(Text(word, style=style), text)
        found += [heading("Notes", "" if result["examined"] else "values were not looked at; --deep does"), indented]
    elif not result["examined"]:
        found.append(heading("Values", "were not looked at, as there are more than 64 MB; --deep does"))
    return Group(*found)


def _risks(result: Data) -> list[RenderableType]:
    if not result["risks"]:
        return [heading("Risks", "none were found: nothing here would run")]
    table, indented = grid("", "")
    for risk in result["risks"][:NOTES_SHOWN]:
        table.add_row(Text(risk["severity"], style=SEVERITIES[risk["severity"]]), risk["text"])
    rest = len(result["risks"]) - NOTES_SHOWN
    heads = heading("Risks", "if it is loaded the usual way" + (f"; {rest} more with --json" if rest > 0 else ""))
    return [heads, indented]


def _modules(result: Data) -> list[RenderableType]:
    """The tree, with siblings that differ only in their number and are equal below drawn as one row."""
    rows: dict[tuple[str, int, int], list[str]] = {}
    for name, total in result["modules"].items():
        key = (re.sub(r"\d+", "#", name), total["tensors"], total["parameters"])
        rows.setdefault(key, []).append(name)
    ordered = sorted(rows.items(), key=lambda row: len(re.findall(r"[./]", row[0][0])))[:MODULES_SHOWN]
    kept = {key for key, _ in ordered}
    table, indented = grid("module", "tensors>", "parameters>", "bytes>")
    for key, names in rows.items():
        if key in kept:
            total = result["modules"][names[0]]
            label = Text("  " * len(re.findall(r"[./]", key[0])) + _label(key[0], names), style="bold")
            table.add_row(label, f"{total['tensors']:,}", f"{total['parameters']:,}", size(total["bytes"]))
    kinds = ", ".join(f"{name} {total['parameters']:,}" for name, total in result["dtypes"].items())
    left = len(rows) - len(kept)
    return [heading("Modules", kinds), indented, *([indent(_quiet(f"… and {left} more with --json"))] if left else [])]


def _label(pattern: str, names: list[str]) -> str:
    """The last part of a name; of several, what their numbers are."""
    last = re.split(r"[./]", names[0])[-1]
    if len(names) == 1:
        return last
    other = re.split(r"[./]", names[-1])[-1]
    between = " …" if len(names) > 2 else ","
    return f"{last}{between} {other}  ×{len(names)}" if other != last else f"{last}  ×{len(names)}"


def _quiet(text: str) -> Text:
    return Text(text, style="dim")


def _notes(result: Data) -> list[tuple[str, str, str]]:
    notes = [("tied", "yellow", more(names, 4)) for names in result["tied"][:8]]
    notes += [("equal", "yellow", more(names, 4)) for names in result.get("duplicates", [])[:8]]
    findings = result.get("findings", [])
    for kind in dict.fromkeys(finding["kind"] for finding in findings):
        of_kind = [finding for finding in findings if finding["kind"] == kind]
        for finding in of_kind[:3]:
            notes.append((kind, _WORRYING.get(kind, "dim"), f"{finding['tensor']}: {finding['text']}"))
        if len(of_kind) > 3:
            notes.append(("", "dim", more([finding["tensor"] for finding in of_kind[3:]], 3)))
    for kind, about in result["quantisation"].get("types", {}).items():
        count = f"{about['tensors']} tensor{'s'[: about['tensors'] != 1]}"
        notes.append(("quantised", "", f"{kind}: {count}, {about['bits']} bits a number"))
    notes += [("quantised", "", f"as {name}, by its names") for name in result["quantisation"].get("schemes", [])]
    said = {key: result["metadata"][key] for key in _SAID if result["metadata"].get(key)}
    notes += [(key.removeprefix("general."), "dim", _short(value)) for key, value in said.items()]
    notes += [("unread", "yellow", f"{name}: {why}") for name, why in list(result.get("unexamined", {}).items())[:4]]
    notes += [("sha256", "dim", f"{file['sha256']}  {file['path']}") for file in result["files"] if "sha256" in file]
    return notes


def _short(value: object) -> str:
    if isinstance(value, list):
        text = ", ".join(" ".join(map(str, item.values())) if isinstance(item, dict) else str(item) for item in value)
    else:
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + "…"
