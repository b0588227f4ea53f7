"""strings and xrefs through the command line: JSON, text, and what goes wrong."""

from __future__ import annotations

from command_line import CommandLine


def test_strings_finds_filters_and_says_how(cutaway: CommandLine) -> None:
    found = cutaway.json("strings", "shapes", "--grep", "red.cyan")
    assert [row["site"] for row in found["rows"]] == ["L0.conv.c5.in"] and found["rows"][0]["z"] > 5
    shown = cutaway("strings", "shapes", "--top", "3").out
    assert "one colour" in shown and "random directions" in shown
    refused = cutaway("strings", "shapes", "--side", "up")
    assert refused.status == 2 and "A side is one of" in refused.err


def test_xrefs_answers_by_weights_and_in_a_run(cutaway: CommandLine) -> None:
    found = cutaway.json("xrefs", "induction", "L1.attn.h1.k", "--project", "p")
    assert found["how"] == "static" and [row["name"] for row in found["writers"]] == ["L0.attn.h0"]
    again = cutaway("xrefs", "induction", "L1.attn.h1.k", "--project", "p").out
    assert "from record" in again and "L0.attn.h0" in again
    shown = cutaway("xrefs", "induction", "L0.attn.h0", "--run").out
    assert "in this run" in shown and "L1.attn.h1.k" in shown
    refused = cutaway("xrefs", "induction", "L7.atn")
    assert refused.status == 2 and "Near it" in refused.err
