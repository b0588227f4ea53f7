"""Dictionaries of other libraries give the numbers that their libraries give; what is written for SAELens too."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from rows import Row, row
from safetensors.torch import load_file
from torch import Tensor

from cutaway.errors import FormatError
from cutaway.features import Dictionary, load_dictionaries
from cutaway.features.sae_lens import save_sae_lens

COMMAND = "python benchmarks/features.py files --peer PYTHON"
PEER = Path(__file__).parents[1] / "peers" / "dictionary_files.py"
CLOSE = 1e-4  # relative


def outputs(found: list[Dictionary], x: Tensor, y: Tensor) -> Tensor:
    """What the dictionaries make of rows; several are summed layer by layer where they write."""
    if len(found) == 1:
        return found[0].reconstruct(x)
    made = y * 0
    for layer, one in enumerate(found):
        for later, part in enumerate(one.reconstruct(x[layer]).split(y.shape[-1], -1), layer):
            made[later] += part
    return made


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """The share of files that agree, of those that the peers' libraries wrote, and of those that SAELens reads."""
    del seeds  # the weights are random, and one draw of them is as good as another
    if not peers:
        return [row("foreign dictionaries: not measured, there is no --peer", [0], "files", None, COMMAND)]
    agree, told = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder, back = Path(name) / "written", Path(name) / "back"
        folder.mkdir()
        back.mkdir()
        for peer in peers:
            subprocess.run([peer, str(PEER), "write", str(folder)], check=True, capture_output=True)
        for place in sorted(folder.iterdir()):
            io, found = load_file(place / "io.safetensors"), load_dictionaries(place)
            worst = (outputs(found, io["x"], io["y"]) - io["y"]).abs().max() / io["y"].abs().max()
            agree.append(float(worst) < CLOSE)
            if len(found) == 1:
                try:
                    save_sae_lens(found[0], back / place.name)
                    shutil.copy(place / "io.safetensors", back / place.name)
                except FormatError:
                    told["without an architecture in SAELens"] = told.get("without an architecture in SAELens", 0) + 1
        done = [subprocess.run([peer, str(PEER), "read", str(back)], capture_output=True, text=True) for peer in peers]
        read = next((json.loads(one.stdout.splitlines()[-1]) for one in done if one.returncode == 0), {})
    again = [worst < CLOSE for worst in read.values()]
    share = {"files": len(agree), "equal": sum(agree)}
    return [
        row("foreign dictionaries equal to their libraries", [sum(agree) / len(agree)], "share", 1.0, COMMAND, share,
            better="higher"),
        row("written for SAELens and equal there", [sum(again) / max(len(again), 1)], "share", 1.0, COMMAND,
            {"files": len(again), "equal": sum(again), **told}, better="higher"),
    ]  # fmt: skip
