"""Zoo entries for architectures of pretrained libraries, made tiny from a config with random weights."""

from __future__ import annotations

from diffusion import DIFFUSION
from encoders import ENCODERS
from entry import Entry
from language import LANGUAGE
from vision import VISION

HUGGING_FACE: list[Entry] = [*LANGUAGE, *ENCODERS, *VISION, *DIFFUSION]
