"""Verbs that explain a behaviour and test the explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError, ProjectError
from ..report import terminal
from . import store
from .looking import NOTHING, Model
from .progress import report
from .verb import Argument, Result, declared, verb

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit
    from ..claims.claim import Claim
    from ..run.network import Network
    from .subject import Examples

SAME = 1e-4  # figures that are repeated on the same machine agree much better than this


@verb("circuit", show=terminal.circuit, chapter="Explain")
def circuit(
    model: Model,
    clean: Annotated[list[str], Argument("An input with the behaviour; may be repeated.", shown="TEXT")] = NOTHING,
    corrupted: Annotated[list[str], Argument("Its counterpart that does not, one for each.", shown="TEXT")] = NOTHING,
    correct: Annotated[list[str], Argument("The answer to the clean input, one token.", shown="TOKEN")] = NOTHING,
    wrong: Annotated[list[str], Argument("That to the corrupted input, one token.", shown="TOKEN")] = NOTHING,
    pairs_file: Annotated[
        str, Argument("A .json or .jsonl file of such pairs: clean, corrupted, correct, wrong.")
    ] = "",
    level: Annotated[str, Argument("What a circuit is made of.", choices=("edge", "node"))] = "edge",
    positions: Annotated[bool, Argument("Tell positions apart.")] = False,
    neurons: Annotated[bool, Argument("Tell the neurons of MLPs apart.")] = False,
    pairs: Annotated[int, Argument("How many pairs of an organism to search on; as many test.", least=2)] = 64,
    seed: Annotated[int, Argument("Which pairs of an organism to draw.", least=0)] = 0,
    project: Annotated[str, Argument("The project that keeps the claim and its evidence.")] = "",
) -> Result:
    """Find the circuit behind a behaviour, test it, and keep the claim.

    Of 8 or more pairs of your own every second one is held out for the test; organisms draw fresh ones.
    """
    from .finding import find, shown_pairs, told
    from .subject import behaving, drawn, facts, held_out, open_model, organism_of, suited_threads

    if project:
        store.check(project)
    net = open_model(model)
    truth = None
    if own := _own(net, clean, corrupted, correct, wrong, pairs_file):
        examples, test = _split(own)
    elif (organism := organism_of(net)) is not None:
        examples = drawn(behaving(organism.name), pairs, seed)
        test = held_out(organism, examples, pairs, seed)
        truth = organism.truth
    else:
        what = "--clean, --corrupted, --correct and --wrong, or --pairs-file"
        raise InputError(f"Nothing to explain in '{net.name}'; give {what}.")
    with suited_threads(net):
        finding = find(net, examples, test, level=level, positions=positions, neurons=neurons, truth=truth, seed=seed)
    claim = store.stored_form(finding.claim)
    result = {"model": model, "facts": facts(net), "pairs": shown_pairs(net, examples, 2), **told(claim)}
    if project:
        result |= store.keep_claim(project, facts(net), claim, finding.claim.tensors)
    return result


def _own(
    net: Network, clean: list[str], corrupted: list[str], correct: list[str], wrong: list[str], pairs_file: str
) -> Examples | None:
    """The pairs that were given, by option or by file; None when there are none."""
    from .texts import Texts, read_pairs

    if pairs_file and clean:
        raise InputError("Pairs are given both by --pairs-file and by --clean; give one or the other.")
    if not (pairs_file or clean or corrupted or correct or wrong):
        return None
    texts = read_pairs(pairs_file) if pairs_file else Texts(clean, corrupted, correct, wrong)
    if missing := [f"--{name}" for name in ("clean", "corrupted", "correct", "wrong") if not getattr(texts, name)]:
        raise InputError(f"A behaviour needs both inputs and both answers; {' and '.join(missing)} is missing.")
    return texts.examples(net)


def _split(examples: Examples) -> tuple[Examples, Examples | None]:
    """Pairs for the search and pairs for the test; all are for the search when there are few."""
    from .subject import HELD_OUT_FROM

    if len(examples) < HELD_OUT_FROM:
        return examples, None
    return examples.rows(range(0, len(examples), 2)), examples.rows(range(1, len(examples), 2))


@verb("verify", show=terminal.verified, chapter="Explain")
def verify(
    project: Annotated[str, Argument("A project.", positional=True)],
    claim: Annotated[str, Argument("A claim's id or how it begins; the newest when left out.", positional=True)] = "",
    pairs: Annotated[int, Argument("Test on so many fresh pairs instead (organisms only).", least=0)] = 0,
    seed: Annotated[int, Argument("Which fresh pairs to draw.", least=0)] = 1,
) -> Result:
    """Test a kept claim again, on the inputs it was tested on or on fresh ones, and keep what came out."""
    from ..claims.repeat import rebuild
    from ..project import Project
    from .finding import told
    from .subject import facts, open_model, organism_of, suited_threads

    with Project(project, create=False, readonly=True) as opened:
        stored = opened.claim(claim or _newest(opened.claims(), project))
        arrays = opened.tensors(stored["id"])
    net = open_model(stored["provenance"]["source"])
    organism = organism_of(net)
    if pairs and organism is None:
        raise InputError(f"'{net.name}' is no organism, so no fresh pairs can be drawn; leave --pairs out.")
    with suited_threads(net):
        found = rebuild(net, stored, arrays)
        again = _test(net, found, stored, pairs, seed)
    result = told(store.stored_form(again))
    figures = _compared(stored["evidence"], result["evidence"])
    told_again: dict[str, Any] = {
        "of": stored["id"],
        "fresh": bool(pairs),
        "was": stored["verdict"],
        "figures": figures,
        "agrees": stored["verdict"] == again.verdict and (bool(pairs) or all(row["agrees"] for row in figures)),
    }
    versions = again.provenance["versions"]
    record = {**told_again, "verdict": again.verdict, "examples": result["examples"], "versions": versions}
    # Spelled with the whole id, so that the same test is the same record however the claim was named.
    words = {"project": project, "claim": stored["id"], "pairs": pairs, "seed": seed}
    command = declared()["verify"].spelled(words)
    kept = store.keep_record(project, facts(net), "verification", record, {}, command)
    return {"model": net.name, "facts": facts(net), **told_again, **kept, **result}


def _newest(claims: list[dict[str, Any]], project: str) -> str:
    if not claims:
        raise ProjectError(f"{project} holds no claim to verify; `cutaway circuit … --project {project}` makes one.")
    return str(claims[-1]["id"])


def _test(net: Network, found: Circuit, stored: dict[str, Any], pairs: int, seed: int) -> Claim:
    """The stored test again, or the same test on fresh pairs.

    The comparison with a truth is no part of it: that ranks the scores of the search, which is not repeated here.
    """
    from ..claims.verify import verify as test
    from .subject import behaving, drawn, runs

    provenance, random = stored["provenance"], len(stored["details"]["null"])
    if pairs:
        fresh = drawn(behaving(net.name), pairs, seed)
        return test(found, *runs(net, fresh), fresh.metric(), random=random, seed=seed, progress=report)
    # Handing the stored runs over as held-out ones says of the repetition what was true of the test.
    given = (found.graph.clean_trace, found.graph.corrupted_trace) if provenance["held_out"] else (None, None)
    return test(found, *given, random=random, seed=provenance["seed"], progress=report)


def _compared(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each figure then and now."""
    old = {row["name"]: row["value"] for row in before}
    rows = []
    for row in now:
        was, now = old.get(row["name"]), row["value"]
        agrees = was == now or (was is not None and now is not None and abs(was - now) <= SAME * max(1.0, abs(was)))
        rows.append({key: row[key] for key in ("name", "low", "high")} | {"was": was, "now": now, "agrees": agrees})
    return rows
