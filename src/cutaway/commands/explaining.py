"""Verbs that explain a behaviour and test the explanation."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError, ProjectError, ResourceError
from ..report import terminal
from . import store
from .looking import NOTHING, Dictionaries, Model
from .progress import report
from .verb import Argument, Result, declared, verb

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit
    from ..claims.claim import Claim
    from ..run.network import Network
    from .finding import Finding
    from .subject import Examples

SAME = 1e-4  # figures that are repeated on the same machine agree much better than this


@dataclass(frozen=True)
class Pairs:
    """Pairs of one's own, by option or by file."""

    clean: Annotated[list[str], Argument("An input with the behaviour; may be repeated.", shown="TEXT")] = field(
        default_factory=list
    )
    corrupted: Annotated[list[str], Argument("Its counterpart that does not, one for each.", shown="TEXT")] = field(
        default_factory=list
    )
    correct: Annotated[list[str], Argument("The answer to the clean input, one token.", shown="TOKEN")] = field(
        default_factory=list
    )
    wrong: Annotated[list[str], Argument("That to the corrupted input, one token.", shown="TOKEN")] = field(
        default_factory=list
    )
    pairs_file: Annotated[str, Argument("A .json or .jsonl file of such pairs: clean, corrupted, correct, wrong.")] = ""


@dataclass(frozen=True)
class Quest:
    """What is searched for, and how."""

    level: Annotated[str, Argument("What a circuit is made of.", choices=("edge", "node"))] = "edge"
    positions: Annotated[bool, Argument("Tell positions apart.")] = False
    neurons: Annotated[bool, Argument("Tell the neurons of MLPs apart.")] = False
    search: Annotated[str, Argument("How: refine, top-n, greedy, threshold, acdc, edge-pruning.")] = "refine"
    scores: Annotated[str, Argument("The scoring method that the search starts from.", shown="METHOD")] = "eap-ig"
    ablation: Annotated[
        str,
        Argument("What is outside carries.", choices=("counterfactual", "zero", "mean", "resample")),
    ] = "counterfactual"
    size: Annotated[int, Argument("At most so many edges or nodes; 0: as few as carry the behaviour.", least=0)] = 0
    limit: Annotated[int, Argument("Forward and backward passes at most; 0: as the search needs.", least=0)] = 0

    def options(self) -> dict[str, Any]:
        """As `find_circuit` takes them."""
        return {
            "level": self.level, "positions": self.positions, "neurons": self.neurons, "search": self.search,
            "method": self.scores, "baseline": self.ablation, "size": self.size or None,
            "max_forwards": self.limit or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """Where a circuit goes."""

    project: Annotated[str, Argument("The project that keeps the claim and its evidence.")] = ""
    save: Annotated[str, Argument("Write the circuit to this file, as JSON.", shown="FILE")] = ""
    format: Annotated[str, Argument("How that file is written.", choices=("cutaway", "eap-ig", "neuronpedia"))] = (
        "cutaway"
    )
    plot: Annotated[str, Argument("Draw the tested circuit: a .svg or .png file.", shown="FILE")] = ""

    def check(self) -> None:
        """Raise before a long job what writing after it would raise."""
        if self.project:
            store.check(self.project)
        if self.plot and not self.plot.lower().endswith((".svg", ".png")):
            raise InputError(f"--plot is '{self.plot}'; a drawing is written as .svg or .png.")
        if self.plot.lower().endswith(".png") and find_spec("resvg_py") is None:
            raise ResourceError("A PNG needs the package resvg-py; install cutaway[plot], or name a .svg file.")
        for option, path in (("--save", self.save), ("--plot", self.plot)):
            if path:
                store.check_file(option, path)

    def write(self, finding: Finding) -> Result:
        """Write the circuit and its drawing, where they are asked for; the paths, by option."""
        from ..circuits.files import save_circuit

        made: Result = {}
        if self.save:
            made["saved"] = str(save_circuit(finding.circuit, self.save, self.format))
        if self.plot:
            made["plot"] = str(finding.claim.plot().save(self.plot))
        return made


@verb("circuit", show=terminal.circuit, chapter="Explain")
def circuit(
    model: Model,
    own: Pairs = Pairs(),
    quest: Quest = Quest(),
    pairs: Annotated[int, Argument("How many pairs of an organism to search on; as many test.", least=2)] = 64,
    seed: Annotated[int, Argument("Which pairs of an organism to draw.", least=0)] = 0,
    dictionary: Dictionaries = NOTHING,
    out: Outputs = Outputs(),
) -> Result:
    """Find the circuit behind a behaviour, test it, and keep the claim.

    Of each dictionary the 100 latents that differ most between the two sides of the pairs are nodes, and its error.
    Of 8 or more pairs of your own every second one is held out for the test; organisms draw fresh ones.
    """
    from .finding import find, shown_pairs, told
    from .subject import attached, behaving, drawn, facts, held_out, open_model, organism_of, runs, suited_threads

    out.check()
    net = open_model(model)
    truth = None
    if texts := _own(net, own):
        examples, test = _split(texts)
    elif (organism := organism_of(net)) is not None:
        examples = drawn(behaving(organism.name), pairs, seed)
        test = held_out(organism, examples, pairs, seed)
        truth = organism.truth
    else:
        what = "--clean, --corrupted, --correct and --wrong, or --pairs-file"
        raise InputError(f"Nothing to explain in '{net.name}'; give {what}.")
    with suited_threads(net):
        if dictionary:
            net, truth = attached(net, dictionary, runs(net, examples)), None
        finding = find(net, examples, test, truth=truth, seed=seed, **quest.options())
    claim = store.stored_form(finding.claim)
    result = {"model": model, "facts": facts(net), "pairs": shown_pairs(net, examples, 2), **told(claim)}
    if out.project:
        result |= store.keep_claim(out.project, facts(net), claim, finding.claim.tensors)
    return result | out.write(finding)


def _own(net: Network, own: Pairs) -> Examples | None:
    """The pairs that were given, by option or by file; None when there are none."""
    from .texts import Texts, read_pairs

    if own.pairs_file and own.clean:
        raise InputError("Pairs are given both by --pairs-file and by --clean; give one or the other.")
    if own == Pairs():
        return None
    listed = Texts(own.clean, own.corrupted, own.correct, own.wrong)
    texts = read_pairs(own.pairs_file) if own.pairs_file else listed
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
    pairs: Annotated[int, Argument("Test on so many fresh pairs, 2 or more, instead (organisms only).", least=0)] = 0,
    seed: Annotated[int, Argument("Which fresh pairs to draw.", least=0)] = 1,
    thorough: Annotated[bool, Argument("Also draw curves, resample, and test every part (takes longer).")] = False,
    alternatives: Annotated[int, Argument("Look for so many other circuits, too.", least=0)] = 0,
) -> Result:
    """Test a kept claim again, on the inputs it was tested on or on fresh ones, and keep what came out."""
    from ..claims.repeat import options, rebuild
    from ..project import Project
    from .finding import told
    from .subject import facts, open_model, organism_of, suited_threads

    if pairs == 1:
        raise InputError("--pairs is 1; give at least 2, or 0 for the inputs that the claim was tested on.")
    with Project(project, create=False, readonly=True) as opened:
        stored = opened.claim(claim or _newest(opened.claims(), project))
        arrays = opened.tensors(stored["id"])
    net = open_model(stored["provenance"]["source"])
    organism = organism_of(net)
    if pairs and organism is None:
        raise InputError(f"'{net.name}' is no organism, so no fresh pairs can be drawn; leave --pairs out.")
    with suited_threads(net):
        found = rebuild(net, stored, arrays)
        asked = options(net, stored, arrays)
        asked |= {"thorough": thorough or asked["thorough"], "alternatives": alternatives or asked["alternatives"]}
        again = _test(net, found, asked, pairs, seed)
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
    words |= {"thorough": thorough, "alternatives": alternatives}
    command = declared()["verify"].spelled(words)
    kept = store.keep_record(project, facts(net), "verification", record, {}, command)
    return {"model": net.name, "facts": facts(net), **told_again, **kept, **result}


def _newest(claims: list[dict[str, Any]], project: str) -> str:
    if not claims:
        raise ProjectError(f"{project} holds no claim to verify; `cutaway circuit … --project {project}` makes one.")
    return str(claims[-1]["id"])


def _test(net: Network, found: Circuit, asked: dict[str, Any], pairs: int, seed: int) -> Claim:
    """The stored test again with the options `asked`, or the same test on fresh pairs.

    The comparison with a truth is no part of it: that ranks the scores of the search, which is not repeated here.
    """
    from ..claims.verify import verify as test
    from .subject import behaving, drawn, runs

    if pairs:
        fresh = drawn(behaving(net.name), pairs, seed)
        again = runs(net, fresh)
        asked |= {"clean": again[0], "corrupted": again[1], "metric": fresh.metric(again[0]), "seed": seed}
    return test(found, **asked, progress=report)


def _compared(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each figure then and now."""
    old = {row["name"]: row["value"] for row in before}
    rows = []
    for row in now:
        was, now = old.get(row["name"]), row["value"]
        new = row["name"] not in old  # asked for this time only
        near = was is not None and now is not None and abs(was - now) <= SAME * max(1.0, abs(was))
        agrees = new or was == now or near
        rows.append({key: row[key] for key in ("name", "low", "high")} | {"was": was, "now": now, "agrees": agrees})
    return rows
