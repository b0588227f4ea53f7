"""One sound file of every format, and mutants of them: what the fuzzer starts from.

A seed is a set of files by relative name; the first name is what is opened (a folder, if it ends in a slash).
"""

from __future__ import annotations

import json
import random
import struct
import zipfile

import numpy as np
from crafted_files import entry, npy_bytes, safetensors_bytes, tensor_pickle, torch_zip_bytes, zip_bytes
from crafted_models import HDF5, keras_bytes, small_gguf, small_onnx, small_tflite

Seed = dict[str, bytes]
_EXTREME = [
    struct.pack("<Q", value)
    for value in (0, 1, 255, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
]
_TOKENS = [
    b"[" * 200, b"{" * 200, b"\xff\xff\xff\xff", b"9999", b"-1", b"\0", b"../", b"/etc/passwd", b"cos\nsystem\n(",
]  # fmt: skip


def seeds() -> dict[str, Seed]:
    """By the name of the format."""
    tensors = tensor_pickle((2, 3), (3, 1), 6)
    header = {"__metadata__": {"a": "b"}, "x": entry("F32", [2, 3], 0, 24), "y": entry("BF16", [4], 24, 32)}
    plain = safetensors_bytes(header, bytes(range(32)))
    archive = torch_zip_bytes(tensors, {"0": bytes(24)})
    legacy = [b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02M\xe9\x03.", b"\x80\x02}."]
    legacy += [tensors, b"\x80\x02]X\1\0\0\0" + b"0a.", struct.pack("<q", 6), bytes(24)]
    array = npy_bytes(np.arange(6.0).reshape(2, 3))
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-1.safetensors"}}
    config = {"model_type": "x", "layers": [{"a": 1}], "auto_map": {"AutoModel": "m.M"}, "chat_template": "{{ x }}"}
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}
    folder = {
        "m/config.json": json.dumps(config).encode(),
        "m/tokenizer.json": json.dumps(tokenizer).encode(),
        "m/tokenizer_config.json": b'{"chat_template": "{{ x }}"}',
        "m/model.safetensors.index.json": json.dumps(index).encode(),
        "m/model-1.safetensors": plain,
    }
    arrays = {"a.npy": array, "b.npy": npy_bytes(np.asfortranarray(np.ones((2, 3), np.float16)))}
    return {
        "safetensors": {"a.safetensors": plain},
        "torch": {"b.pt": archive},
        "torch legacy": {"c.pt": b"".join(legacy)},
        "npy": {"d.npy": array},
        "npz": {"e.npz": zip_bytes(arrays)},
        "npz deflated": {"f.npz": zip_bytes(arrays, zipfile.ZIP_DEFLATED)},
        "zip of torch": {"g.zip": zip_bytes({"data": b"{}", "p.pth": archive})},
        "folder": {"m/": b"", **folder},
        "gguf": {"h.gguf": small_gguf()},
        "onnx": {"i.onnx": small_onnx()},
        "hdf5": {"j.h5": HDF5},
        "keras": {"k.keras": keras_bytes()},
        "tflite": {"l.tflite": small_tflite()},
    }


def mutate(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """A few changes: bits, bytes, extreme integers, words that mean something, cuts, repeats, a piece of `other`."""
    mutant = bytearray(content)
    live = [at for at, byte in enumerate(content) if byte] or [0]  # files of HDF5 are mostly zeros that nobody reads
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(max(1, len(mutant))) if chance.random() < 0.3 else chance.choice(live)
        match chance.choice((0, 0, 0, 1, 1, 1, 2, 3, 4, 4, 4, 6, 7, 8)):  # most leave the length as it is
            case 0:
                mutant[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                mutant[at : at + 1] = bytes(byte ^ 1 << chance.randrange(8) for byte in mutant[at : at + 1])
            case 2:
                del mutant[at : at + chance.randint(1, 8)]
            case 3:
                mutant[at:at] = mutant[at : at + chance.randint(1, 40)]
            case 4:
                width = chance.choice((1, 2, 4, 8))
                mutant[at : at + width] = chance.choice(_EXTREME)[:width]
            case 6:
                token = chance.choice(_TOKENS)
                mutant[at : at + (len(token) if chance.random() < 0.5 else 0)] = token
            case 7:
                begin = chance.randrange(max(1, len(other)))
                mutant[at : at + 16] = other[begin : begin + chance.randint(1, 64)]
            case 8:
                if chance.random() < 0.3:
                    del mutant[max(1, at) :]
    return bytes(mutant)
