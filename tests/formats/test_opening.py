"""Which opener takes which file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from cutaway.formats import open_checkpoint


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ""])
def test_a_header_whose_length_looks_like_a_pickle_is_none(protocol: int, suffix: str, tmp_path: Path) -> None:
    length = 0x80 + 256 * protocol  # the length is the first bytes of the file
    data = next(
        data
        for size in range(length)
        if (data := save({"a": torch.ones(2)}, {"note": "x" * size}))[:2] == bytes([0x80, protocol])
    )
    (tmp_path / f"weights{suffix}").write_bytes(data)
    found = open_checkpoint(tmp_path / f"weights{suffix}")
    assert found.numbers("a").tolist() == [1, 1]
