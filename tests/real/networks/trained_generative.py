"""The trained generative networks: two autoencoders and a diffusion model's U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DigitVAE(nn.Module):
    """A variational autoencoder of linear layers; it draws its code, at evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.fc1(images.view(-1, 784)))
        mean, logvar = self.fc21(hidden), self.fc22(hidden)
        spread = torch.exp(0.5 * logvar)
        code = torch.randn_like(spread).mul(spread).add_(mean)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(code)))), mean, logvar


class SpriteEncoder(nn.Module):
    """Four strided convolutions, two linear layers, then mean and log variance of each latent side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 4, 2, 1)
        self.conv2, self.conv3, self.conv_64 = (nn.Conv2d(32, 32, 4, 2, 1) for _ in range(3))
        self.lin1, self.lin2, self.mu_logvar_gen = nn.Linear(512, 256), nn.Linear(256, 256), nn.Linear(256, 20)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        for layer in (self.conv1, self.conv2, self.conv3, self.conv_64):
            x = torch.relu(layer(x))
        x = torch.relu(self.lin2(torch.relu(self.lin1(x.view(len(x), -1)))))
        mean, logvar = self.mu_logvar_gen(x).view(-1, 10, 2).unbind(-1)
        return mean, logvar


class SpriteDecoder(nn.Module):
    """The encoder mirrored."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2, self.lin3 = nn.Linear(10, 256), nn.Linear(256, 256), nn.Linear(256, 512)
        self.convT_64, self.convT1, self.convT2 = (nn.ConvTranspose2d(32, 32, 4, 2, 1) for _ in range(3))
        self.convT3 = nn.ConvTranspose2d(32, 1, 4, 2, 1)

    def forward(self, code: Tensor) -> Tensor:
        x = torch.relu(self.lin3(torch.relu(self.lin2(torch.relu(self.lin1(code))))))
        x = x.view(-1, 32, 4, 4)
        for layer in (self.convT_64, self.convT1, self.convT2):
            x = torch.relu(layer(x))
        return torch.sigmoid(self.convT3(x))


class SpriteVAE(nn.Module):
    """A beta-VAE; its code is drawn in training and the mean at evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = SpriteEncoder(), SpriteDecoder()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(images)
        code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.training else mean
        return self.decoder(code), mean, logvar


class NormedConvs(nn.Module):
    """A norm over channels and pixels, then two convolutions with SiLU; `normed=False` holds the norm and skips it."""

    def __init__(self, width: int, out: int, side: int, normed: bool = True) -> None:
        super().__init__()
        self.ln, self.normed = nn.LayerNorm((width, side, side)), normed
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv2(F.silu(self.conv1(self.ln(x) if self.normed else x))))


def _stage(side: int, *widths: int) -> nn.Sequential:
    return nn.Sequential(*(NormedConvs(a, b, side) for a, b in zip(widths, widths[1:], strict=False)))


def _time(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(100, width), nn.SiLU(), nn.Linear(width, width))


class DigitUNet(nn.Module):
    """Predicts the noise in images [batch, 1, 28, 28] at steps [batch, 1]; stages meet across the U by concatenation.

    Its table of time embeddings is a stored parameter, not the usual sinusoid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Embedding(1000, 100)
        self.te1, self.b1, self.down1 = _time(1), _stage(28, 1, 10, 10, 10), nn.Conv2d(10, 10, 4, 2, 1)
        self.te2, self.b2, self.down2 = _time(10), _stage(14, 10, 20, 20, 20), nn.Conv2d(20, 20, 4, 2, 1)
        self.te3, self.b3 = _time(20), _stage(7, 20, 40, 40, 40)
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2, 1), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.te_mid, self.b_mid = _time(40), _stage(3, 40, 20, 20, 40)
        self.up1 = nn.Sequential(nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2, 1))
        self.te4, self.b4, self.up2 = _time(80), _stage(7, 80, 40, 20, 20), nn.ConvTranspose2d(20, 20, 4, 2, 1)
        self.te5, self.b5, self.up3 = _time(40), _stage(14, 40, 20, 10, 10), nn.ConvTranspose2d(10, 10, 4, 2, 1)
        self.te_out, self.b_out = _time(20), _stage(28, 20, 10, 10, 10)
        self.b_out[2].normed = False
        self.conv_out = nn.Conv2d(10, 1, 3, 1, 1)

    def forward(self, images: Tensor, steps: Tensor) -> Tensor:
        time = self.time_embed(steps)

        def at(layer: nn.Module) -> Tensor:
            return layer(time).reshape(len(images), -1, 1, 1)

        first = self.b1(images + at(self.te1))
        second = self.b2(self.down1(first) + at(self.te2))
        third = self.b3(self.down2(second) + at(self.te3))
        middle = self.b_mid(self.down3(third) + at(self.te_mid))
        x = self.b4(torch.cat((third, self.up1(middle)), 1) + at(self.te4))
        x = self.b5(torch.cat((second, self.up2(x)), 1) + at(self.te5))
        x = self.b_out(torch.cat((first, self.up3(x)), 1) + at(self.te_out))
        return self.conv_out(x)
