"""What a verb is: declared once, as a function whose signature, docstring and renderer say everything about it.

    @verb("rename", show=terminal.renamed)
    def rename(project: Annotated[str, Argument("The project.", positional=True)], ...) -> dict[str, Any]:
        "Give a site a name."

A parameter whose type is a dataclass stands for its fields: options that belong together and always have defaults.

The command line, `--json`, HTTP and the documentation read this declaration; none of them keeps a list of its own.
"""

from __future__ import annotations

import difflib
import inspect
import shlex
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ..errors import InputError

Result = dict[str, Any]
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """What `Annotated` says of a parameter. Positional ones are given without a name; `shown` stands for the value."""

    help: str
    positional: bool = False
    choices: tuple[str, ...] = ()
    least: int | None = None
    shown: str = ""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a verb: `type` is str, int, float, bool or list[str]; `default` may be REQUIRED."""

    name: str
    type: Any
    default: Any
    about: Argument

    @property
    def option(self) -> str:
        """How it is written on a command line."""
        return self.name.upper() if self.about.positional else f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Verb:
    """A verb. `run` returns a JSON-able result, `show` turns that result into what a terminal prints, `good` says
    whether the finding is one that a script should go on with."""

    name: str
    run: Callable[..., Result]
    show: Callable[[Result], Any]
    chapter: str
    good: Callable[[Result], bool] = lambda result: True

    @property
    def help(self) -> str:
        """The docstring: a first sentence, then what else there is to know."""
        return inspect.getdoc(self.run) or ""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters in the order of the signature."""
        hints = get_type_hints(self.run, include_extras=True)
        found: list[Parameter] = []
        for name, parameter in inspect.signature(self.run).parameters.items():
            if is_dataclass(hints[name]):
                found += _fields(self.name, hints[name])
            else:
                found.append(_parameter(self.name, name, hints[name], parameter.default))
        return tuple(found)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values as `run` takes them: those of a group together, as that group."""
        made, hints = dict(given), get_type_hints(self.run)
        for name in inspect.signature(self.run).parameters:
            if is_dataclass(hints[name]):
                group: Any = hints[name]
                names = [part.name for part in fields(group) if part.name in made]
                made[name] = group(**{part: made.pop(part) for part in names})
        return made

    def __call__(self, values: Mapping[str, Any]) -> Result:
        """Run with these values; parameters left out, or None, take their defaults. Raises InputError for bad ones."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if strange := [name for name in values if name not in known]:
            raise InputError(f"'{self.name}' takes no '{strange[0]}'; it takes {', '.join(known)}.")
        given = {name: value for name, value in values.items() if value is not None}
        for name, parameter in known.items():
            if name in given:
                _check(parameter, given[name])
            elif parameter.default is REQUIRED:
                raise InputError(f"'{self.name}' needs {parameter.option}: {parameter.about.help}")
        token = _running.set(self.spelled(given))
        try:
            return self.run(**self.arguments(given))
        finally:
            _running.reset(token)

    def spelled(self, values: Mapping[str, Any]) -> str:
        """The command line that runs this verb with these values; what equals the default is left out."""
        words = ["cutaway", *self.name.split()]
        for parameter in self.parameters:
            value = values.get(parameter.name, parameter.default)
            if value == parameter.default:
                continue
            for item in value if isinstance(value, list) else [value]:
                words += [] if parameter.about.positional else [parameter.option]
                words += [] if item is True else [shlex.quote(str(item))]
        return " ".join(words)


def _parameter(verb: str, name: str, hint: Any, default: Any) -> Parameter:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{verb}: parameter {name} has no Argument")
    kind, about = get_args(hint)
    return Parameter(name, kind, default, about)


def _fields(verb: str, group: Any) -> list[Parameter]:
    """The parameters that a group stands for: the fields of a dataclass, each with its Argument."""
    hints = get_type_hints(group, include_extras=True)
    return [_parameter(verb, part.name, hints[part.name], _default(part)) for part in fields(group)]


def _default(part: Field[Any]) -> Any:
    return part.default_factory() if part.default_factory is not MISSING else part.default


def running() -> str:
    """The command line of the verb that is running here, for the record; empty outside of one."""
    return _running.get()


def _check(parameter: Parameter, value: Any) -> None:
    about = parameter.about
    if about.choices and value not in about.choices:
        raise InputError(f"{parameter.option} cannot be '{value}'{near(str(value), about.choices)}")
    if about.least is not None and value < about.least:
        raise InputError(f"{parameter.option} is {value}; give at least {about.least}.")


def near(wrong: str, known: tuple[str, ...]) -> str:
    """The end of a sentence about an unknown word: what was probably meant, and what there is."""
    close = difflib.get_close_matches(wrong, known, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else "."
    return f"{meant} The choices are {', '.join(known)}."


_running: ContextVar[str] = ContextVar("running", default="")
_VERBS: dict[str, Verb] = {}


def verb(
    name: str,
    *,
    show: Callable[[Result], Any],
    chapter: str,
    good: Callable[[Result], bool] = lambda result: True,
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Declare a function as the verb `name`; two words make it part of a group, as in 'organisms train'."""

    def declare(run: Callable[..., Result]) -> Callable[..., Result]:
        _VERBS[name] = Verb(name, run, show, chapter, good)
        return run

    return declare


def declared() -> dict[str, Verb]:
    """The verbs declared so far, by name."""
    return dict(_VERBS)
