"""Declarations: what a verb says of itself, what it refuses, and that every verb says enough."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from cutaway.commands import REQUIRED, Argument, Parameter, Verb, listening, verbs
from cutaway.commands.progress import report
from cutaway.commands.verb import near, running
from cutaway.errors import InputError


def _run(
    place: Annotated[str, Argument("Where.", positional=True)],
    text: Annotated[list[str], Argument("What.")],
    count: Annotated[int, Argument("How many.", least=1)] = 3,
    kind: Annotated[str, Argument("Which.", choices=("plain", "fancy"))] = "plain",
    loud: Annotated[bool, Argument("Whether.")] = False,
) -> dict[str, Any]:
    """Try things."""
    return {"given": [place, text, count, kind, loud], "command": running()}


TRY = Verb("try", _run, show=str, chapter="Tests")


def test_parameters_come_from_the_signature() -> None:
    assert TRY.parameters[0] == Parameter("place", str, REQUIRED, Argument("Where.", positional=True))
    assert [parameter.option for parameter in TRY.parameters] == ["PLACE", "--text", "--count", "--kind", "--loud"]
    assert TRY.help == "Try things."


def test_a_call_takes_defaults_and_knows_its_command_line() -> None:
    result = TRY({"place": "a b", "text": ["x", "y z"], "count": None, "loud": True})
    assert result["given"] == ["a b", ["x", "y z"], 3, "plain", True]
    assert result["command"] == "cutaway try 'a b' --text x --text 'y z' --loud"
    assert running() == ""


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"text": []}, "needs PLACE"),
        ({"place": "a", "text": [], "colour": "red"}, "takes no 'colour'"),
        ({"place": "a", "text": [], "count": 0}, "--count is 0; give at least 1"),
        ({"place": "a", "text": [], "kind": "fancey"}, "did you mean 'fancy'"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TRY(values)


def test_near_names_the_choices() -> None:
    assert near("zzz", ("one", "two")) == ". The choices are one, two."


@pytest.mark.parametrize("name", verbs())
def test_every_verb_says_what_it_does(name: str) -> None:
    verb = verbs()[name]
    assert verb.help.splitlines()[0].endswith(".")
    assert verb.chapter
    for parameter in verb.parameters:
        assert parameter.about.help.endswith(".")
        assert parameter.type in (str, int, float, bool, list[str])


def test_progress_is_heard_only_inside() -> None:
    heard: list[tuple[str, int, int]] = []
    report("before", 0, 1)
    with listening(lambda *what: heard.append(what)):
        report("inside", 1, 2)
    report("after", 1, 1)
    assert heard == [("inside", 1, 2)]


def test_long_verbs_report_progress(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    heard: list[str] = []
    with listening(lambda stage, done, of: heard.append(stage)):
        verbs()["demo"]({"organism": "induction", "pairs": 4})
    assert {"exact patching", "null", "minimality"} <= set(heard)
