"""Undo and redo: the history only grows, and any state can be returned to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import ProjectError
from cutaway.project import Project


def _state(project: Project) -> tuple:
    return project.names(), project.comments(), project.models(), project.claims(), project.records()


def test_undo_walks_back_and_redo_forward(tmp_path: Path) -> None:
    with Project(tmp_path / "p") as project:
        states = [_state(project)]
        id = project.add_claim({"statement": "s", "verdict": "holds", "provenance": {}})
        states.append(_state(project))
        project.rename("a", "first")
        states.append(_state(project))
        project.comment("a", "text")
        states.append(_state(project))
        for expected in (states[2], states[1], states[0]):
            assert project.undo() is not None
            assert _state(project) == expected
        assert project.undo() is None
        with pytest.raises(ProjectError, match="has no claim"):
            project.claim(id)
        for expected in states[1:]:
            assert project.redo() is not None
            assert _state(project) == expected
        assert project.redo() is None
        assert len(project.history()) == 9
        assert project.check() == []


def test_undo_returns_the_undone_entry_and_history_says_by_whom(tmp_path: Path) -> None:
    with Project(tmp_path / "p") as project:
        project.rename("a", "first")
        project.rename("a", "second")
        undone = project.undo()
        assert undone is not None
        assert (undone["verb"], undone["before"], undone["after"]) == ("rename", "first", "second")
        assert project.names() == {"a": "first"}
        history = project.history()
        assert [entry["undone_by"] for entry in history] == [None, 3, None]
        assert history[2]["undoes"] == 2
        project.undo(3)  # undoing an undo brings the change back
        assert project.names() == {"a": "second"}
        assert [entry["undone_by"] for entry in project.history()] == [None, None, 4, None]
        assert [entry["verb"] for entry in project.history()] == ["rename", "rename", "undo", "redo"]


def test_undo_of_an_older_entry_is_refused_where_a_later_one_builds_on_it(tmp_path: Path) -> None:
    with Project(tmp_path / "p") as project:
        project.rename("a", "first")
        project.rename("b", "other")
        project.rename("a", "second")
        with pytest.raises(ProjectError, match="undo that one first"):
            project.undo(1)
        project.undo(2)
        assert project.names() == {"a": "second"}
        with pytest.raises(ProjectError, match="already undone by entry 4"):
            project.undo(2)
        with pytest.raises(ProjectError, match="no entry 99"):
            project.undo(99)
        project.rename("c", "other")
        with pytest.raises(ProjectError, match="already belongs to c"):
            project.undo(4)
        assert project.check() == []


def test_a_new_change_ends_redo(tmp_path: Path) -> None:
    with Project(tmp_path / "p") as project:
        project.rename("a", "first")
        project.undo()
        project.rename("a", "second")
        assert project.redo() is None


_SITES = st.sampled_from(["a", "b", "c"])
_CHANGES = st.one_of(
    st.tuples(st.just("rename"), _SITES, st.sampled_from(["x", "y", "z", ""])),
    st.tuples(st.just("comment"), _SITES, st.sampled_from(["hm", "why\nnot"])),
    st.tuples(st.just("add_model"), _SITES, st.integers(0, 2)),
    st.tuples(st.just("add_record"), _SITES, st.integers(0, 2)),
    st.tuples(st.just("undo"), st.none(), st.none()),
    st.tuples(st.just("redo"), st.none(), st.none()),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(_CHANGES, max_size=12))
def test_any_sequence_agrees_with_a_stack_of_states(changes: list[tuple]) -> None:
    """The model: two stacks of states, as an editor has them. History never shrinks and check stays clean."""
    with tempfile.TemporaryDirectory() as folder, Project(Path(folder) / "p") as project:
        past, future = [_state(project)], []
        for verb, site, value in changes:
            entries = len(project.history())
            if verb == "undo":
                assert (project.undo() is not None) == (len(past) > 1)
                if len(past) > 1:
                    future.append(past.pop())
            elif verb == "redo":
                assert (project.redo() is not None) == bool(future)
                if future:
                    past.append(future.pop())
            else:
                try:
                    argument = {"n": value} if verb.startswith("add") else value
                    getattr(project, verb)(site, argument)
                except ProjectError as error:
                    assert "already belongs" in str(error)
                if len(project.history()) > entries:
                    past.append(_state(project))
                    future.clear()
            assert _normal(_state(project)) == _normal(past[-1])
            assert len(project.history()) >= entries
        assert project.check() == []
        while project.undo():
            pass
        assert _normal(_state(project)) == _normal(past[0])


def _normal(state: tuple) -> tuple:
    """Order does not count: what was undone and redone is listed last."""
    names, comments, models, claims, records = state
    by_id = {key: sorted(c["id"] for c in found) for key, found in comments.items()}
    return names, by_id, models, sorted(c["id"] for c in claims), sorted(r["id"] for r in records)
