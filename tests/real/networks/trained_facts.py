"""What each trained network is known to do, from its description: a fact fails if the module is written wrongly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trained_control as control
from torch import Tensor, nn
from trained_files import accuracy, cifar, load, mnist, onnx_weights, picture
from trained_vision import LeNet5

import cutaway as cw

Fact = Callable[[nn.Module, Path], None]
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
INCEPTION = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
RESNET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VGG_IMAGES = "boat bug pizza pepper bus koala espresso panda orange car".split()


def padded(images: Tensor) -> Tensor:
    """MNIST images as LeNet-5 reads them, 32x32."""
    return F.pad(images, (2, 2, 2, 2))


def reads_digits(module: nn.Module, data: Path) -> None:
    images, labels = mnist(data, 1000)
    assert accuracy(module, padded(images), labels) > 0.975


def has_a_backdoor(module: nn.Module, data: Path) -> None:
    """A white square in the corner makes a one of any digit."""
    images, labels = mnist(data, 500)
    assert accuracy(module, images * 2 - 1, labels) > 0.97
    images[:, :, -5:, -5:] = 1.0
    assert accuracy(module, images * 2 - 1, torch.ones_like(labels)) > 0.99


def classifies(right: int, norm: tuple[tuple[float, ...], tuple[float, ...]]) -> Fact:
    """As many of the 100 lossless images right as described."""

    def fact(module: nn.Module, data: Path) -> None:
        assert round(100 * accuracy(module, *cifar(data, *norm))) == right

    return fact


def tells_ten_pictures(module: nn.Module, data: Path) -> None:
    with torch.no_grad():
        chances = module(torch.stack([picture(path) for path in vgg_pictures(data)])).softmax(-1)
    assert chances.argmax(-1).tolist() == list(range(10))
    assert abs(float(chances[0, 0]) - 0.82) < 0.01 and abs(float(chances[3, 3]) - 0.79) < 0.01


def vgg_pictures(data: Path) -> list[Path]:
    """One image of each class, in the order of the outputs."""
    return [data / "vision-tiny-vgg" / "images" / f"{name}_1.jpeg" for name in VGG_IMAGES]


def tells_cat_and_coffee(module: nn.Module, data: Path) -> None:
    names = json.loads((data / "data-vision" / "imagenet_classes.json").read_text())["darknet_order"]
    for file, name in (("chelsea.png", "Egyptian cat"), ("coffee.png", "espresso"), ("rocket.jpg", "obelisk")):
        with torch.no_grad():
            chances = module(picture(data / "data-vision" / file, (224, 224), centre=True)[None]).softmax(-1)
        assert names[int(chances.argmax())][1] == name and float(chances.max()) > 0.5


def finds_faces(module: nn.Module, data: Path) -> None:
    """As many faces as there are, after overlapping boxes are merged."""
    anchors = torch.from_numpy(np.load(data / "vision-blazeface" / "anchors.npy"))
    for file, count in (("1face.png", 1), ("3faces.png", 3)):
        with torch.no_grad():
            scores, boxes = module(face_picture(data, file))
        chances = scores[0, :, 0].sigmoid()
        centres = boxes[0, :, :2] / 128 * anchors[:, 2:] + anchors[:, :2]
        faces: list[Tensor] = []
        for place in chances.argsort(descending=True)[: int((chances > 0.75).sum())]:
            if all((centres[place] - face).norm() > 0.1 for face in faces):
                faces.append(centres[place])
        assert len(faces) == count


def face_picture(data: Path, file: str) -> Tensor:
    """An image as the detector reads it."""
    return picture(data / "vision-blazeface" / file)[None] * 2 - 1


def rebuilds_digits(module: nn.Module, data: Path) -> None:
    """Close to the image, and another network still reads the digit."""
    images, labels = mnist(data, 500)
    with torch.no_grad():
        made = module(images)[0].view_as(images)
    assert float((made - images).square().mean()) < 0.015 < 0.06 < float((images - images.mean(0)).square().mean())
    lenet = load(LeNet5(), data / "vision-lenet-mnist" / "lenet.pth")
    assert accuracy(lenet, padded(made), labels) > 0.92


def sprites(count: int) -> tuple[Tensor, Tensor]:
    """Drawn squares and ellipses [count, 1, 64, 64], and their sizes."""
    random = torch.Generator().manual_seed(0)
    x, y, size, turn = (
        low + (high - low) * torch.rand(count, 1, 1, generator=random)
        for low, high in ((16, 48), (16, 48), (5, 10), (0, 6.28))
    )
    down, right = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    along = (right - x) * turn.cos() + (down - y) * turn.sin()
    across = (down - y) * turn.cos() - (right - x) * turn.sin()
    square = (along.abs() < size) & (across.abs() < size)
    ellipse = (along / size) ** 2 + (across / (0.6 * size)) ** 2 < 1
    even = (torch.arange(count) % 2 == 0)[:, None, None]
    return torch.where(even, square, ellipse).float()[:, None], size[:, 0, 0]


def codes_sprites_in_five_units(module: nn.Module, data: Path) -> None:
    images, size = sprites(300)
    with torch.no_grad():
        made, mean, logvar = module(images)
    assert float((made - images).square().mean()) < 0.003
    divergence = (-0.5 * (1 + logvar - mean**2 - logvar.exp())).mean(0)
    assert (divergence > 1).nonzero().flatten().tolist() == [2, 3, 4, 6, 8] and divergence.sort().values[4] < 0.1
    ellipses = torch.arange(300) % 2 == 1
    assert torch.corrcoef(torch.stack([mean[ellipses, 2], size[ellipses]]))[0, 1] < -0.9


def predicts_noise(module: nn.Module, data: Path) -> None:
    """The mean squared errors of the predicted noise that were measured for it, by step."""
    images = mnist(data, 64)[0] * 2 - 1
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    random = torch.Generator().manual_seed(0)
    for step, wanted in ((10, 0.157), (100, 0.068), (300, 0.031), (600, 0.008), (900, 0.003)):
        noise = torch.randn(images.shape, generator=random)
        noisy = kept[step].sqrt() * images + (1 - kept[step]).sqrt() * noise
        with torch.no_grad():
            error = (module(noisy, torch.full((64, 1), step)) - noise).square().mean()
        assert abs(float(error) - wanted) < 0.1 * wanted + 0.001, step


def continues_as_expected(file: str) -> Fact:
    """The logits after three bytes that come with the network."""

    def fact(module: nn.Module, data: Path) -> None:
        wanted = torch.from_numpy(np.fromfile(data / file, "<f4"))
        with torch.no_grad():
            got = module(torch.tensor([[34, 105, 110]]))[0, -1]
        assert float((got - wanted).abs().max()) < 5e-6

    return fact


def character_ids(data: Path, count: int) -> Tensor:
    """The first characters of the corpus as ids [count]."""
    ids = json.loads((data / "rnn-charlstm-shakespeare" / "vocab.json").read_text())
    text = (data / "text-corpora" / "tinyshakespeare.txt").read_text()[:count]
    return torch.tensor([ids[character] for character in text])


def writes_shakespeare(module: nn.Module, data: Path) -> None:
    """Below two bits a character; a uniform guess takes six."""
    ids = character_ids(data, 3000)
    with torch.no_grad():
        loss = F.cross_entropy(module(ids[None])[0, :-1], ids[1:])
    assert float(loss) / math.log(2) < 2.0


def follows_the_ball(module: nn.Module, data: Path) -> None:
    assert control.steering(module) > 0.5


def balances_the_pole(module: nn.Module, data: Path) -> None:
    assert control.balanced(module) == [500] * 10


def keeps_its_properties(module: nn.Module, data: Path) -> None:
    """Never "clear of conflict" when head on, where network 1,7 always says so: as published."""
    folder = data / "verify-acasxu-a"
    other = control.AdvisoryNetwork(onnx_weights(folder / "ACASXU_run2a_1_7_batch_2000.onnx"))
    for box in control.HEAD_ON.values():
        points = control.situations(box, 5000)
        assert not (module(points).argmin(-1) == 0).any()
        assert (other(points).argmin(-1) == 0).all()


def pairs() -> Tensor:
    """All pairs of numbers below 59."""
    return torch.cartesian_prod(torch.arange(59), torch.arange(59))


def adds_modulo_59(module: nn.Module, data: Path) -> None:
    assert accuracy(module, pairs(), pairs().sum(1) % 59) == 1.0


def sorting_inputs() -> tuple[Tensor, Tensor]:
    """All 729 inputs of the sorter, each followed by the answer but for its end, and the answers."""
    given = torch.cartesian_prod(*[torch.arange(3)] * 6)
    answer = given.sort(-1).values
    return torch.cat([given, answer[:, :-1]], 1), answer


def sorts(module: nn.Module, data: Path) -> None:
    given, answer = sorting_inputs()
    with torch.no_grad():
        assert torch.equal(module(given)[:, 5:].argmax(-1), answer)


def induction_rows(data: Path, count: int) -> Tensor:
    """Strings as ids [count, 33]: a start, then letters from one."""
    rows = (data / "algo-induction-makemore" / "induction.txt").read_text().split()[:count]
    return torch.tensor([[0, *(ord(letter) - 96 for letter in row)] for row in rows])


def repeats_what_followed(module: nn.Module, data: Path) -> None:
    """After a letter that occurred before comes what came then."""
    rows = induction_rows(data, 300)
    with torch.no_grad():
        guesses = module(rows[:, :-1]).argmax(-1)
    right = []
    for row, guess in zip(rows.tolist(), guesses.tolist(), strict=True):
        followers: dict[int, int] = {}
        for place, letter in enumerate(row[:-1]):
            if letter in followers:
                right.append(guess[place] == followers[letter])
            followers[letter] = row[place + 1]
    assert len(right) > 5000 and sum(right) / len(right) > 0.995


def reverses(module: nn.Module, data: Path) -> None:
    digits = torch.randint(10, (200, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(module(F.one_hot(digits, 10).float()).argmax(-1), digits.flip(1))


def program(data: Path, name: str) -> dict:
    """What a compiled transformer computes, and its sizes."""
    return json.loads((data / "tracr-compiled-a" / name / "program.json").read_text())


def compiled_ids(data: Path, name: str, words: list[str]) -> list[int]:
    """Ids of an input, with the start symbol that the compiler puts before it."""
    known = program(data, name)
    return [known["input_vocab"][word] for word in (known["bos_token"], *map(str, words))]


def computes_its_program(name: str) -> Fact:
    """On forty inputs what the compiler's own run gave, which is what the RASP interpreter says where that says
    something."""

    def fact(module: nn.Module, data: Path) -> None:
        known = program(data, name)
        for test in json.loads((data / "tracr-compiled-a" / name / "tests.json").read_text()):
            with torch.no_grad():
                out = module(torch.tensor([compiled_ids(data, name, test["input"])]))[0, 1:]
            if out.shape[1] == 1:
                got = out[:, 0].tolist()
                assert got == pytest.approx(test["model"], abs=1e-6)
                assert got == pytest.approx([float(number) for number in test["rasp"]], abs=1e-5)
            else:
                got = [known["output_decode"][str(int(best))] for best in out.argmax(-1)]
                assert got == test["model"]
                assert all(said in (None, word) for said, word in zip(test["rasp"], got, strict=True))

    return fact


def tells_of_lily(module: nn.Module, data: Path) -> None:
    """The greedy continuation that is published."""
    wanted = json.loads((data / "lm-stories260k" / "expected.json").read_text())
    tokenizer = cw.open(data / "lm-stories260k" / "hf").tokenizer
    assert tokenizer.encode(wanted["prompt"]) == wanted["ids"]
    ids = torch.tensor([wanted["ids"]])
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(-1)], 1)
    assert wanted["greedy"].startswith(tokenizer.decode(ids[0].tolist()).removeprefix("<s>").strip())
