"""The trained networks: how each is built and read in, what it runs on, what it does, and what lifting must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import trained_control as control
import trained_facts as facts
import trained_generative as generative
import trained_recurrent as recurrent
import trained_transformers as transformers
import trained_vision as vision
from parts import Units, parts, states
from torch import Tensor, nn
from trained_files import cifar, load, mnist, onnx_weights, picture

import cutaway as cw

COUNT = 3  # examples in a batch
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """One network. `build` and `inputs` take the data's folder; `inputs` also where to begin in it, so that there are
    others of the same shapes.

    `expected` maps components to (units, calls), and `stream` counts the residual values. `slow`: its tests take
    seconds.
    """

    name: str
    build: Callable[[Path], nn.Module]
    inputs: Callable[[Path, int], Tensor | tuple[Tensor, ...]]
    fact: facts.Fact
    expected: Units
    stream: int = 0
    slow: bool = False


@dataclass(frozen=True)
class Entry:
    """A network with its data's folder, in the form that the zoo's cases take."""

    trained: Trained
    data: Path = field(repr=False)

    def inputs(self, start: int = 1) -> Inputs:
        """Inputs for a recording."""
        torch.manual_seed(start)
        found = self.trained.inputs(self.data, start * COUNT)
        return (found if isinstance(found, tuple) else (found,)), {}

    def make(self, twin: bool = False) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The module with its trained weights, and inputs for it."""
        return self.trained.build(self.data), *self.inputs()


def there(path: Path) -> Path:
    """The path. Raises FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(path)
    return path


def from_file(build: Callable[[], nn.Module], file: str, prefix: str = "", *skip: str) -> Callable[[Path], nn.Module]:
    """Build a module and load a file into it."""
    return lambda data: load(build(), there(data / file), prefix, skip)


def digits(data: Path, start: int) -> Tensor:
    """MNIST images, 0..1."""
    return mnist(data, COUNT, start)[0]


def photos(norm: tuple[tuple[float, ...], tuple[float, ...]]) -> Callable[[Path, int], Tensor]:
    """CIFAR images, normalised."""
    return lambda data, start: cifar(data, *norm)[0][start : start + COUNT]


def noisy(data: Path, start: int) -> tuple[Tensor, Tensor]:
    """Digits under noise, and steps of the diffusion."""
    images = digits(data, start) * 2 - 1
    return 0.7 * images + 0.7 * torch.randn_like(images), torch.tensor([[10], [300], [900]])


def text(data: Path, start: int) -> Tensor:
    """Bytes of Shakespeare."""
    with (data / "text-corpora" / "tinyshakespeare.txt").open("rb") as file:
        file.seek(100 * start)
        return torch.frombuffer(bytearray(file.read(COUNT * 6)), dtype=torch.uint8).view(COUNT, 6).long()


def pong(data: Path, start: int) -> Tensor:
    """Four frames of balls that fly right."""
    balls = [[(60 + 6 * step, 30 + 20 * ball + start) for step in range(4)] for ball in range(COUNT)]
    return torch.stack([torch.stack([control.frame(place, 70, place[1]) for place in flight]) for flight in balls])


def one_hot_digits(data: Path, start: int) -> Tensor:
    return F.one_hot(torch.randint(10, (COUNT, 16)), 10).float()


def story(data: Path, start: int) -> Tensor:
    """Prompts of twelve tokens."""
    tokenizer = cw.open(data / "lm-stories260k" / "hf").tokenizer
    ids = tokenizer.encode((data / "lm-stories260k" / "tinystories_sample.txt").read_text())
    return torch.tensor(ids[10 * start : 10 * start + COUNT * 12]).view(COUNT, 12)


def face_parts() -> Units:
    """A block has a depthwise and a pointwise convolution and the ReLU behind its shortcut; where the shortcut is
    pooled it is no longer what the block read, and the ReLU is the pointwise convolution's own."""
    convolutions, sums = [24], []
    widths = [*vision.FACE_WIDTHS, *[96] * 5]
    for before, after in zip(widths, widths[1:], strict=False):
        convolutions += [before, after]
        sums += [] if (before, after) in vision.FACE_STRIDES else [after]
    return parts(6, conv=[*convolutions, 2, 6, 32, 96], act=sums)


def compiled(name: str, heads: int, hidden: int, layers: int, words: int) -> Trained:
    """A transformer that Tracr compiled; its parts are in its program."""

    def build(data: Path) -> nn.Module:
        path = data / "tracr-compiled-a" / name / "model.safetensors"
        return load(transformers.Compiled(facts.program(data, name)), path)

    def inputs(data: Path, start: int) -> Tensor:
        known = [word for word in facts.program(data, name)["input_vocab"] if not word.startswith("compiler")]
        drawn = torch.randint(len(known), (COUNT, 6))
        return torch.tensor([facts.compiled_ids(data, name, [known[place] for place in row]) for row in drawn.tolist()])

    expected = parts(words, "embed pos_embed", attn=[heads] * layers, mlp=[hidden] * layers)
    return Trained(f"tracr {name}", build, inputs, facts.computes_its_program(name), expected, 2 * layers + 1)


VISION = [
    Trained(
        "LeNet MNIST", from_file(vision.LeNet5, "vision-lenet-mnist/lenet.pth"),
        lambda data, start: facts.padded(digits(data, start)), facts.reads_digits,
        parts(10, conv=[6, 16, 120], mlp=84),
    ),
    Trained(
        "BadNet MNIST", from_file(vision.BadNet, "backdoor-badnet-mnist/badnet-MNIST.pth"),
        lambda data, start: digits(data, start) * 2 - 1, facts.has_a_backdoor,
        parts(10, conv=[16, 32], mlp=512, act=1),
    ),
    Trained(
        "Captum CIFAR", from_file(vision.CaptumCNN, "vision-captum-cifar/cifar_torchvision.pt"),
        photos(facts.HALF), facts.classifies(62, facts.HALF), parts(10, conv=[6, 16], mlp=[120, 84]),
    ),
    Trained(
        "Tiny VGG", from_file(vision.TinyVGG, "vision-tiny-vgg/model.safetensors"),
        lambda data, start: torch.stack([picture(path) for path in facts.vgg_pictures(data)[start : start + COUNT]]),
        facts.tells_ten_pictures, parts(10, conv=[10] * 4),
    ),
    Trained(
        "ResNet-20 CIFAR",
        from_file(vision.ResNet20, "vision-resnet20-cifar10/resnet20-12fca82f.th", "state_dict.module."),
        photos(facts.RESNET), facts.classifies(94, facts.RESNET),
        parts(10, conv=[16] * 7 + [32] * 6 + [64] * 6, act=[16] * 3 + [32] * 3 + [64] * 3), 18,
    ),
    Trained(
        "GoogLeNet CIFAR", from_file(vision.GoogLeNet, "vision-googlenet-cifar10/GoogleNet.ckpt", "state_dict.model."),
        photos(facts.INCEPTION), facts.classifies(93, facts.INCEPTION),
        parts(10, conv=[64, *(
            width for row in vision.INCEPTION if row
            for width in (row[2][0], row[1][0], row[2][1], row[1][1], row[2][2], row[2][3])
        )]),
        slow=True,
    ),
    Trained(
        "Tiny Darknet", from_file(vision.TinyDarknet, "vision-tiny-darknet/model.safetensors"),
        lambda data, start: picture(data / "data-vision/chelsea.png")[None, :, 100:164, start : start + 64],
        facts.tells_cat_and_coffee, parts(1000, conv=list(vision.DARKNET)),
    ),
    Trained(
        "BlazeFace", from_file(vision.BlazeFace, "vision-blazeface/blazeface.pth"),
        lambda data, start: facts.face_picture(data, "3faces.png").roll(start, -1), facts.finds_faces,
        face_parts(), 26,
    ),
]  # fmt: skip

GENERATIVE = [
    Trained(
        "VAE MNIST", from_file(generative.DigitVAE, "gen-vae-mnist/vae_epoch_25.pth"), digits, facts.rebuilds_digits,
        parts(784, mlp=[400, 20, 400], act=1),
    ),
    Trained(
        "beta-VAE dSprites", from_file(generative.SpriteVAE, "gen-btcvae-dsprites/model.pt"),
        lambda data, start: facts.sprites(20)[0][start : start + COUNT], facts.codes_sprites_in_five_units,
        parts(1, conv=[32] * 7 + [1], mlp=[256, 256, 256, 256, 512]),
    ),
    Trained(
        "DDPM MNIST", from_file(generative.DigitUNet, "gen-ddpm-mnist/ddpm_mnist.pt", "network."), noisy,
        facts.predicts_noise,
        parts(
            1, "input embed", mlp=[1, 10, 20, 40, 80, 40, 20],
            conv=[10] * 7 + [20] * 7 + [40] * 8 + [20] * 4 + [40] * 6 + [20] * 7 + [10] * 5 + [10] * 6 + [1],
        ),
    ),
]  # fmt: skip

RECURRENT = [
    Trained(
        "RWKV 4", from_file(lambda: recurrent.RWKV(4, 4, 128, 256), "lm-rwkv4-660k-dead-ffn/model.safetensors"), text,
        facts.continues_as_expected("lm-rwkv4-660k-dead-ffn/expected-logits-4v0-660K.bin"),
        parts(256, "embed", norm=1, ssm=[128] * 4, mlp=[256] * 4, act=[1] * 4), 9,
    ),
    Trained(
        "RWKV 5", from_file(lambda: recurrent.RWKV(5, 12, 64, 256), "lm-rwkv5-730k/model.safetensors"), text,
        facts.continues_as_expected("lm-rwkv5-730k/expected-logits-5v2-730K.bin"),
        parts(256, "embed", norm=1, ssm=[8] * 12, mlp=[256] * 12, act=[1] * 12), 25,
        slow=True,
    ),
    Trained(
        "char-LSTM Shakespeare", from_file(recurrent.CharLSTM, "rnn-charlstm-shakespeare/model.safetensors"),
        lambda data, start: facts.character_ids(data, 200)[start : start + COUNT * 6].view(COUNT, 6),
        facts.writes_shakespeare, states(65, 6, 128, 128, cells=True),
    ),
    Trained(
        "A3C-GRU Pong", from_file(recurrent.PongAgent, "rl-a3c-gru-pong/model.80.tar"), pong, facts.follows_the_ball,
        parts(6, conv=[(32, 4)] * 4, rnn=[(256, 4)]),
    ),
]  # fmt: skip

CONTROL = [
    Trained(
        "PPO CartPole", from_file(control.CartPolePolicy, "rl-ppo-cartpole/CartPole-v1.zip", "policy.pth:"),
        lambda data, start: torch.randn(COUNT, 4) * 0.1, facts.balances_the_pole, parts(2, mlp=[64] * 4),
    ),
    Trained(
        "ACAS Xu 1,1",
        lambda data: control.AdvisoryNetwork(onnx_weights(data / "verify-acasxu-a/ACASXU_run2a_1_1_batch_2000.onnx")),
        lambda data, start: control.situations(control.HEAD_ON["3"], 100)[start : start + COUNT],
        facts.keeps_its_properties, parts(5, mlp=[50] * 6),
    ),
]  # fmt: skip

TRANSFORMERS = [
    Trained(
        "clock",
        from_file(partial(transformers.ModularAddition, 1.0), "mi-pizza-and-clock/model_l8k1hzciux.pt", "", "mask"),
        lambda data, start: facts.pairs()[100 * start :: 777][:COUNT], facts.adds_modulo_59,
        parts(59, "embed pos_embed", attn=4, mlp=512), 3,
    ),
    Trained(
        "pizza",
        from_file(partial(transformers.ModularAddition, 0.0), "mi-pizza-and-clock/model_p99zdpze5l.pt", "", "mask"),
        lambda data, start: facts.pairs()[100 * start :: 777][:COUNT], facts.adds_modulo_59,
        parts(59, "embed pos_embed", attn=4, mlp=512), 3,
    ),
    Trained(
        "nano-GPT sort",
        from_file(lambda: transformers.NanoGPT(3, 11, 3, 3, 48, bias=False), "algo-nano-gpt-sort/model.safetensors"),
        lambda data, start: facts.sorting_inputs()[0][50 * start :: 100][:COUNT], facts.sorts,
        parts(3, "embed pos_embed", attn=[3] * 3, mlp=[192] * 3), 7,
    ),
    Trained(
        "induction makemore",
        from_file(
            lambda: transformers.NanoGPT(27, 32, 2, 1, 64), "algo-induction-makemore/model.pt", "",
            "h.0.attn.bias", "h.1.attn.bias",
        ),
        lambda data, start: facts.induction_rows(data, 20)[start : start + COUNT, :12], facts.repeats_what_followed,
        parts(27, "embed pos_embed", attn=[1] * 2, mlp=[256] * 2), 5,
    ),
    Trained(
        "reverse encoder",
        from_file(transformers.ReverseEncoder, "algo-reverse-uva/ReverseTask.ckpt", "state_dict."),
        one_hot_digits, facts.reverses, parts(10, "input pos_embed", attn=1, norm=1, mlp=[64, 32]), 4,
    ),
    Trained(
        "stories260K", lambda data: cw.open(there(data / "lm-stories260k" / "hf")).module, story, facts.tells_of_lily,
        parts(512, "embed", attn=[8] * 5, mlp=[172] * 5), 11,
    ),
    compiled("detect_pattern_ab", 1, 4, 2, 2),
    compiled("dyck1", 2, 258, 6, 2),
    compiled("frac_prevs_x", 1, 1, 2, 1),
    compiled("hist", 1, 18, 1, 9),
    compiled("length", 1, 18, 1, 9),
    compiled("reverse", 1, 72, 4, 4),
    compiled("shift_by_1", 1, 1, 1, 4),
    compiled("sort_unique", 1, 18, 2, 8),
]  # fmt: skip

TRAINED: dict[str, Trained] = {
    entry.name: entry for entry in (*VISION, *GENERATIVE, *RECURRENT, *CONTROL, *TRANSFORMERS)
}
