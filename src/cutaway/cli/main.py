"""From a command line to an exit status.

0    done                                    2    a mistake that the caller can mend: one sentence on stderr
1    an unexpected error, or a bad finding   130  interrupted        141  the reader of the output went away
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.main import get_command

from ..commands import verbs
from ..errors import CutawayError
from . import screen
from .parser import DEBUG, JSON, Call, application

INTERRUPTED, CLOSED = 130, 141
# Errors of the command line itself; typer brings its own click in new versions and the separate one in old ones.
_USAGE = typer.BadParameter.__mro__[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (that of the process by default) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = JSON in options, DEBUG in options
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a narrow encoding must not turn a result into an error
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        status = _run(arguments, as_json)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is still buffered has no reader either; without this, Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except KeyboardInterrupt as stop:  # a long job may say how to go on
        return _failed(str(stop) or "interrupted; what was kept before stays kept.", INTERRUPTED, as_json)
    except (CutawayError, _USAGE) as error:  # type: ignore[misc]
        return _failed(error.format_message() if isinstance(error, _USAGE) else str(error), 2, as_json)  # type: ignore[attr-defined]
    except Exception as error:  # noqa: BLE001 - the last resort, which says what happened
        if debug:
            traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        hint = "" if debug else f" Run it again with {DEBUG} for the traceback."
        return _failed(f"unexpected {type(error).__name__}: {first.rstrip('.')}.{hint}", 1, as_json)


def _run(arguments: list[str], as_json: bool) -> int:
    call = get_command(application(verbs())).main(arguments, prog_name="cutaway", standalone_mode=False)
    if not isinstance(call, Call):
        return call if isinstance(call, int) else 0
    with screen.progress():
        result = call.verb(call.values)
    if as_json:
        screen.print_json(result)
    else:
        screen.show(call.verb.show(screen.visible(result)))
    return 0 if call.verb.good(result) else 1


def _failed(sentence: str, status: int, as_json: bool) -> int:
    if as_json:
        screen.print_json({"error": " ".join(sentence.split())})
    else:
        screen.complain(sentence)
    return status
