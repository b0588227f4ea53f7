"""The command line made from the verbs: every option, its type and its help come from the verb's declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Annotated, Any

import typer

from .. import __version__
from ..commands import REQUIRED, Parameter, Verb

JSON, DEBUG = "--json", "--debug"
_SHARED = {
    JSON: typer.Option(JSON, help="Print the result, or the error, as JSON."),
    DEBUG: typer.Option(DEBUG, help="Show the traceback of an unexpected error."),
}
SETTINGS: dict[str, Any] = {"add_completion": False, "rich_markup_mode": "rich", "pretty_exceptions_enable": False}


@dataclass(frozen=True)
class Call:
    """What a command line asks for."""

    verb: Verb
    values: dict[str, Any]


def application(verbs: Mapping[str, Verb]) -> typer.Typer:
    """A typer application whose commands return a `Call`. Two-word verbs become groups, which list when left bare."""
    app = typer.Typer(name="cutaway", context_settings={"help_option_names": ["-h", "--help"]}, **SETTINGS)
    app.callback(invoke_without_command=True)(_root)
    groups: dict[str, typer.Typer] = {}
    for name, verb in verbs.items():
        group, _, last = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(**SETTINGS)
            bare = verbs.get(f"{group} list")
            groups[group].callback(invoke_without_command=bare is not None)(_bare(bare))
            text = f"{bare.help.splitlines()[0] if bare else group} (and {_others(group, verbs)})"
            app.add_typer(groups[group], name=group, help=text, rich_help_panel=verb.chapter)
        (groups[group] if group else app).command(last, help=verb.help, rich_help_panel=verb.chapter)(_command(verb))
    return app


def _others(group: str, verbs: Mapping[str, Verb]) -> str:
    words = [name.partition(" ")[2] for name in verbs if name.startswith(f"{group} ")]
    return ", ".join(word for word in words if word != "list")


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    json: Annotated[bool, _SHARED[JSON]] = False,
    debug: Annotated[bool, _SHARED[DEBUG]] = False,
) -> None:
    """Take trained networks apart, and test every explanation causally."""
    if version:
        typer.echo(f"cutaway {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def _bare(verb: Verb | None) -> Callable[..., Call | None]:
    """What a group does without a word behind it."""

    def chosen(json: Annotated[bool, _SHARED[JSON]] = False, debug: Annotated[bool, _SHARED[DEBUG]] = False) -> Any:
        return Call(verb, {}) if verb is not None else None

    return chosen


def _command(verb: Verb) -> Callable[..., Call]:
    """A function with the verb's parameters and the two that every command has, for typer to read."""

    def command(**values: Any) -> Call:
        return Call(verb, {parameter.name: values[parameter.name] for parameter in verb.parameters})

    parameters = [_parameter(parameter) for parameter in verb.parameters]
    keyword = inspect.Parameter.KEYWORD_ONLY
    for name, option in _SHARED.items():
        kind = Annotated[bool, option]
        parameters.append(inspect.Parameter(name.strip("-"), keyword, default=False, annotation=kind))
    # typer reads both: the signature for order and defaults, the annotations for types.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(parameter: Parameter) -> inspect.Parameter:
    about = parameter.about
    text = about.help + (f" One of {', '.join(about.choices)}." if about.choices else "")
    shown: dict[str, Any] = {"help": text, "metavar": about.shown or None}
    if parameter.default in (REQUIRED, "", []) or parameter.type is bool:
        shown["show_default"] = False
    how = typer.Argument(**shown) if about.positional else typer.Option(parameter.option, **shown)
    default = inspect.Parameter.empty if parameter.default is REQUIRED else parameter.default
    kind = getitem(Annotated, (parameter.type, how))  # the type is known only now
    return inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
