"""What `attribute` prints: the graph's size and scores, its strongest nodes and edges."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading
from .run_text import network


def graph(result: Data) -> RenderableType:
    """An attribution graph over latents."""
    counts, kept, scores = result["counts"], result["kept"], result["scores"]
    size = ", ".join(
        f"{kept[kind]:,} of {counts[kind]:,} {kind}s" for kind in counts if kind != "edges" and counts[kind]
    )
    ends = ", ".join(f"{row['output']!r} ({row['probability']:.2f})" for row in result["outputs"])
    nodes, shown = grid("influence>", "node")
    for row in result["nodes"]:
        nodes.add_row(f"{row['influence']:.4f}", Text(row["node"]))
    edges, drawn = grid("effect>", "from", "to")
    for row in result["edges"]:
        edges.add_row(f"{row['effect']:+.4f}", Text(row["from"]), Text(row["to"]))
    told = f"effects add up to what targets were within {result['error']:.0e}"
    parts: list[RenderableType] = [
        network(result["facts"]),
        Text(f"Explained: {ends}"),
        Text(f"Kept: {size}, {kept['edges']:,} edges"),
        Text(f"Replacement score {scores['replacement']:.3f}, completeness {scores['completeness']:.3f} (1 is best)"),
        *(Text(note) for note in result["how"]["notes"]),
        heading("Nodes", "by influence on the outputs, direct and indirect"), shown, heading("Edges", told), drawn,
    ]  # fmt: skip
    if (test := result["test"]) is not None:
        value, low, high = test["correlation"]
        between = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
        parts.append(Text(
            f"Taken away in the network: predicted and actual changes of {test['n']} latents correlate "
            f"{value:.3f}{between} (1 is best; {test['control']}: {test['control_correlation'][0]:.3f}); mean change "
            f"{test['mean_effect']:.4g}, of random latents {test['control_mean_effect']:.4g}"
        ))  # fmt: skip
    parts += [Text(f"Written: {path}") for path in result["files"].values()]
    return Group(*parts)
