"""Networks and dictionaries for the tests of attribution graphs."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

from cutaway.features import Card, Dictionary, Place

WIDTH, TOKENS = 32, 7


def gpt2(layers: int = 3, **options: object) -> nn.Module:
    """A random GPT-2 whose biases and gains are not trivial."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers, n_head=4, n_embd=WIDTH, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0, **options
    )
    return shaken(transformers.GPT2LMHeadModel(config).eval())


def llama(layers: int = 3) -> nn.Module:
    """A random Llama with grouped keys and values."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50,
    )  # fmt: skip
    return shaken(transformers.LlamaForCausalLM(config).eval())


def shaken(module: nn.Module) -> nn.Module:
    """The module with noise on every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return module


def ids(seed: int = 0) -> Tensor:
    """[1, tokens]"""
    return torch.randint(0, 50, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


def random_dictionary(
    reads: dict[str, int], writes: dict[str, int], *, seed: int = 0, skip: bool = False, axis: str = "",
    latents: int = 40, k: int = 4, **options: object,
) -> Dictionary:  # fmt: skip
    """A random TopK dictionary between places, by site and width."""
    generator = torch.Generator().manual_seed(seed)
    wide, out = sum(reads.values()), sum(writes.values())

    def draw(*shape: int, scale: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weights = {
        "encoder": draw(latents, wide, scale=wide**-0.5), "decoder": draw(latents, out), "encoder_bias": draw(latents),
        "decoder_bias": draw(out), "center": draw(wide),
    }  # fmt: skip
    if skip:
        weights["skip"] = draw(wide, out)
    ends = [tuple(Place(site, width, "", axis) for site, width in end.items()) for end in (reads, writes)]
    return Dictionary("topk", "topk", weights, k=k, card=Card(*ends), **options)


def transcoders(module: nn.Module, read: str, **options: object) -> list[Dictionary]:
    """Random transcoders for all MLPs; `read` is what each reads, with the layer's number to be put in."""
    count = module.config.num_hidden_layers
    return [
        random_dictionary({read.format(layer): WIDTH}, {f"L{layer}.mlp_out": WIDTH}, seed=layer, **options)
        for layer in range(count)
    ]


def exact_transcoder(layer: int, up: nn.Module, down: nn.Module, read: str) -> Dictionary:
    """A ReLU MLP as its own transcoder: nothing is missed."""
    weights = {
        "encoder": up.weight.detach(), "encoder_bias": up.bias.detach(), "decoder": down.weight.detach().T.contiguous(),
        "decoder_bias": down.bias.detach(),
    }  # fmt: skip
    reads, writes = (Place(read, up.in_features),), (Place(f"L{layer}.mlp_out", down.out_features),)
    return Dictionary("exact", "relu", weights, card=Card(reads, writes))
