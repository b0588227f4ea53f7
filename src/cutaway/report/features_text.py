"""What `features …` prints: an index, its latents, the page of one, and labels with their tests."""

from __future__ import annotations

import re
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, bar, figure, grid, heading, indent

_SHADES = ("", "on grey15", "on rgb(20,45,75)", "on rgb(25,70,120)", "bold on rgb(35,96,159)")
_SIDES = {"promoted": "promotes", "suppressed": "suppresses", "read": "reads"}
WORDS, SHORT = 8, 60


def _about(result: Data) -> Text:
    line = Text.assemble((f"{result['latents']:,} latents", "bold cyan"), f" of {', '.join(result['sites'])}")
    line.append(f" in {result['network']}" if result["network"] else "")
    return line.append(
        f"  {result['dictionary']}; {counted(result['rows'], 'row')} of {counted(result['examples'], 'example')}", "dim"
    )


def indexed(result: Data) -> RenderableType:
    """An index that was made."""
    told = f"{result['entries']:,} entries, {result['l0']:.1f} a row; {counted(result['never'], 'latent')} never "
    told += "fires" if result["never"] == 1 else "fire"
    lines: list[RenderableType] = [_about(result), heading("Indexed", f"in {result['seconds']:.1f} s")]
    lines += [indent(Text(told)), indent(Text(result["out"], style="bold"))]
    return Group(*lines, *([indent(Text(result["note"], style="yellow"))] if result["note"] else []))


def listed(result: Data) -> RenderableType:
    """Latents as a table."""
    by = f"on {result['token']!r}" if result["token"] else f"by {result['sort']}"
    by = f"on example {result['example']}" if result["example"] >= 0 and not result["token"] else by
    rows = result["latent_rows"]
    special = "share" if rows and "share" in rows[0] else "of_max" if rows and "of_max" in rows[0] else ""
    names = {"share": ("of its occurrences>", "elsewhere>"), "of_max": ("of its max>",), "": ()}[special]
    table, indented = grid("latent>", "fires>", "max>", *names, "F1>", "label, or what it promotes")
    for row in rows:
        more = [f"{row['share']:.0%}", f"{row['elsewhere']:.2%}"] if special == "share" else []
        more = [f"{row['of_max']:.0%}"] if special == "of_max" else more
        said = Text(_visible(row["label"])) if row["label"] else _words(row["promotes"], "dim")
        f1 = "" if row["f1"] is None else f"{row['f1']:.2f}"
        table.add_row(str(row["latent"]), f"{row['density']:.2%}", f"{row['max']:.2f}", *more, f1, said)
    shown = indented if rows else indent(Text("none", style="yellow"))
    return Group(_about(result), heading("Latents", f"{len(rows)} {by}"), shown)


def page(result: Data) -> RenderableType:
    """A latent's page."""
    about = result["about"]
    where = f" of {about['sites']} in {about['network'] or 'a network'}"
    interval = f"(95 % {about['low']:.3%} to {about['high']:.3%})"
    told = (
        f"fires on {about['fired']:,} of {counted(about['rows'], 'row')}: {about['density']:.3%} {interval}; at most "
    )
    told += f"{about['max']:.3f}, {about['mean']:.3f} where it fires"
    parts: list[RenderableType] = [
        Text.assemble((f"latent {result['latent']}", "bold cyan"), where), Text(told, style="dim"),
    ]  # fmt: skip
    if result["label"]:
        parts += [heading("Label", _scored(result["label"]["score"])), indent(Text(_visible(result["label"]["text"])))]
    if result["top"]:
        parts += [heading("Strongest"), _examples(result["top"], about)]
    for low, high, count, shown in result["intervals"]:
        if shown:
            drawn = f"{counted(count, 'row')}, {len(shown)} of them drawn"
            parts += [heading(f"{figure(low)} to {figure(high)}", drawn), _examples(shown, about)]
    table, indented = grid("", "")
    for side, name in _SIDES.items():
        if entries := result["words"].get(side):
            table.add_row(Text(name, style="dim"), _words([word for word, _ in entries[:WORDS]], ""))
    if result["tokens"]:
        line = Text()
        for row in result["tokens"][:WORDS]:
            line.append(_visible(row["token"]), "bold").append(f" {row['fired']:,} of {row['of']:,}  ", "dim")
        table.add_row(Text("fires on", style="dim"), line)
    for key, name in (("nearest", "nearest"), ("together", "fires with")):
        if result[key]:
            table.add_row(
                Text(name, style="dim"), Text("  ".join(f"{one} ({value:.2f})" for one, value in result[key]))
            )
    parts += [heading("Words and neighbours"), indented] if table.row_count else []
    for tried in result["tried"]:
        tokens = tried["tokens"] or [str(place) for place in range(len(tried["activations"]))]
        shown = {"tokens": tokens, "activations": tried["activations"], "at": -1}
        parts += [heading("On an input of one's own", f"at most {max(tried['activations'], default=0.0):.3f}"),
                  indent(_tokens(shown, about["max"] or 1.0, about["gap"]))]  # fmt: skip
    note = f"page in {1000 * result['seconds']:.0f} ms" + (f"; drawn into {result['plot']}" if result["plot"] else "")
    return Group(*parts, indent(Text(note, style="dim")))


def labelled(result: Data) -> RenderableType:
    """Labels and their tests."""
    parts: list[RenderableType] = [_about(result)]
    for row in sorted(result["labels"], key=lambda row: -row["score"]["f1"]):
        parts += [heading(f"latent {row['latent']}", _scored(row["score"])), indent(Text(_visible(row["text"])))]
        controls = "; ".join(f"{name} {value:.2f}" for name, value in row["controls"].items())
        told = f"fires above {row['threshold']:.3g}; {row['score']['examples']:,} held-out examples"
        parts.append(indent(Text(f"{told}. F1 of controls: {controls}", style="dim")))
        if hunted := row.get("hunted"):
            parts += _hunted(hunted, row, result["gap"])
        if causal := row.get("causal"):
            parts.append(indent(_causal(causal)))
    if result["labels"]:
        scores = [row["score"]["f1"] for row in result["labels"]]
        told = f"median F1 {median(scores):.2f} of {counted(len(scores), 'label')}, kept in the index"
        parts.append(heading("All", told))
    for latent, why in list(result["refused"].items())[:10]:
        parts.append(indent(Text(f"latent {latent}: no label; {why}", style="yellow")))
    return Group(*parts)


def _hunted(hunted: Data, row: Data, gap: str) -> list[RenderableType]:
    low, high = hunted["precision_interval"]
    told = f"counter-examples: after {hunted['changes']} changes it still fires on {hunted['precision']:.0%} of rows "
    told += (
        f"where the rule holds ({low:.0%} to {high:.0%}; changed at random {hunted['precision_at_random']:.0%}), and "
    )
    line = Text(f"{told}on {hunted['missed']:.0%} of others")
    found: list[RenderableType] = [indent(line)]
    for one in hunted["examples"][:2]:
        shown = {"tokens": one["tokens"], "activations": [0.0] * len(one["tokens"]), "at": len(one["tokens"]) - 1}
        held = "rule holds" if one["rule"] else "rule does not"
        found.append(indent(Text.assemble((f"{held}, {one['activation']:.2f}  ", "dim"), _tokens(shown, 1.0, gap)), 4))
    before = row["how"].get("F1 on counter-examples before")
    if before is not None:
        after = row["how"]["F1 on counter-examples"]
        told = f"learned again: F1 on other counter-examples {after:.2f}, before {before:.2f}"
        found.append(indent(Text(told, style="dim")))
    return found


def _causal(causal: Data) -> Text:
    if "refused" in causal:
        return Text(f"causal test: {causal['refused']}", style="yellow")
    low, high = causal["interval"]
    words, others = " ".join(map(repr, causal["promoted"])), causal["controls"]
    told = f"taken out, {words} lose {causal['inside']:.3f} nats where the label holds and {causal['outside']:.3f} "
    told += f"elsewhere: {causal['contrast']:+.3f} ({low:+.3f} to {high:+.3f}); of {len(others)} other latents at most "
    told += f"{max(others, default=0.0):+.3f}, p = {causal['p']:.3f}"
    return Text(told, style="green" if low > 0 and causal["p"] <= 0.05 else "yellow")


def _scored(score: Data) -> str:
    low, high = score["precision_interval"]
    least, most = score["recall_interval"]
    return (f"F1 {score['f1']:.2f}; precision {score['precision']:.2f} ({low:.2f} to {high:.2f}), "
            f"recall {score['recall']:.2f} ({least:.2f} to {most:.2f})")  # fmt: skip


def _examples(examples: list[Data], about: Data) -> RenderableType:
    table, indented = grid("", "")
    most = about["max"]
    for shown in examples:
        said: Any = _tokens(shown, most or 1.0, about["gap"])
        if not shown["tokens"]:
            kind = f", {shown['kind']}" if shown["kind"] else ""
            place = f" at {' × '.join(map(str, shown['position']))}" if shown["position"] else ""
            said = Text(f"example {shown['example']}{kind}{place}")
        table.add_row(bar(shown["activation"] / (most or 1.0), 8) if not shown["tokens"] else Text(
            f"{shown['activation']:.2f}", style="dim"), said)  # fmt: skip
    return indented


def _tokens(shown: Data, most: float, gap: str) -> Text:
    """Tokens shaded by activation, with what the tokenizer puts between them; the row's own is underlined."""
    line = Text(overflow="fold")
    values = shown["activations"] if len(shown["activations"]) == len(shown["tokens"]) else [0.0] * len(shown["tokens"])
    for place, (token, value) in enumerate(zip(shown["tokens"], values, strict=True)):
        level = 0 if value <= 0 else min(1 + int(3.999 * min(value / most, 1.0)), 4)
        style = f"{_SHADES[level]}{' underline' if place == shown['at'] else ''}".strip()
        said = _visible(token, keep_space=True)
        line.append(f"«{said}»" if place == shown["at"] else said, style or None)
        line.append(gap)
    return line


def counted(count: int, name: str) -> str:
    """How many of something."""
    return f"{count:,} {name}{'s' * (count != 1)}"


def _words(words: list[str], style: str) -> Text:
    return Text("  ".join(_visible(word) for word in words), style=style, overflow="fold")


def _visible(text: str, keep_space: bool = False) -> str:
    """A text with nothing that a terminal would act on; leading spaces of words are shown unless `keep_space`."""
    text = re.sub("<0x0[Aa]>", "\n", text)
    shown = "".join(mark if mark.isprintable() else "↵" if mark == "\n" else f"\\x{ord(mark):02x}" for mark in text)
    return shown if keep_space or len(shown) > SHORT else shown.replace(" ", "␣") if shown.strip() != shown else shown
