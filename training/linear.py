"""The autoencoder's starting point: a linear transform coder, learned first, then written into the deep network.

A small convolutional autoencoder started at random spends most of its training on what a linear transform of 4x4 blocks
does at once. So the linear chain inside the network (the convolutions that sit outside the residual branches) is
trained alone, which takes minutes; then the residual branches join it, silent at first, and the whole is trained.

Two things in the deep network stand in a linear chain's way, the last normalisation and the last activation of each
half. Both are passed by carrying every signal x as a pair (x, -x): silu(x) - silu(-x) = x, and the pair has zero mean;
beside it a constant pair (B, -B), large against the signals, keeps the normalisation's divisor nearly constant.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from training import checkpoint, images

# Noise on the unit-variance latents in training: it takes the place of a learned posterior, and makes the decoder
# forgive the UNet's small errors.
LATENT_NOISE = 0.05
LEVEL = 8.0
GROUPS = 8
ENCODER_SHARE = 0.4
CROP = 64
BATCH = 8
SIDES = (400, 256, 160)
ENCODER_WIDTH = 96
DECODER_WIDTH = 32


def signals_of(width: int) -> int:
    """How many signals fit a normalised layer: in each group, one pair of channels is the constant."""
    return GROUPS * (width // GROUPS // 2 - 1)


class LinearCoder(nn.Module):
    """The linear chain, with the layers' names in AutoencoderKL beside them."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.e_in = nn.Conv2d(3, 32, 3, padding=1, bias=False)  # encoder.conv_in
        self.e_down0 = nn.Conv2d(32, 32, 3, stride=2, bias=False)  # encoder.down_blocks.0.downsamplers.0.conv
        self.e_wide1 = nn.Conv2d(32, 64, 1, bias=False)  # encoder.down_blocks.1.resnets.0.conv_shortcut
        self.e_down1 = nn.Conv2d(64, 64, 3, stride=2, bias=False)  # encoder.down_blocks.1.downsamplers.0.conv
        self.e_wide2 = nn.Conv2d(64, signals_of(ENCODER_WIDTH), 1, bias=False)  # encoder...2.resnets.0.conv_shortcut
        self.e_out = nn.Conv2d(signals_of(ENCODER_WIDTH), latent_channels, 3, padding=1, bias=False)  # encoder.conv_out
        self.d_in = nn.Conv2d(latent_channels, 96, 3, padding=1, bias=False)  # decoder.conv_in
        self.d_up0 = nn.Conv2d(96, 96, 3, padding=1, bias=False)  # decoder.up_blocks.0.upsamplers.0.conv
        self.d_thin1 = nn.Conv2d(96, 64, 1, bias=False)  # decoder.up_blocks.1.resnets.0.conv_shortcut
        self.d_up1 = nn.Conv2d(64, 64, 3, padding=1, bias=False)  # decoder.up_blocks.1.upsamplers.0.conv
        self.d_thin2 = nn.Conv2d(64, signals_of(DECODER_WIDTH), 1, bias=False)  # decoder...2.resnets.0.conv_shortcut
        self.d_out = nn.Conv2d(signals_of(DECODER_WIDTH), 3, 3, padding=1, bias=False)  # decoder.conv_out
        for layer in self.children():
            nn.init.orthogonal_(layer.weight.view(layer.weight.shape[0], -1))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        x = self.e_down0(F.pad(self.e_in(image), (0, 1, 0, 1)))
        x = self.e_down1(F.pad(self.e_wide1(x), (0, 1, 0, 1)))
        return self.e_out(self.e_wide2(x))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.d_up0(F.interpolate(self.d_in(latent), scale_factor=2.0))
        x = self.d_up1(F.interpolate(self.d_thin1(x), scale_factor=2.0))
        return self.d_out(self.d_thin2(x))

    @torch.no_grad()
    def start_as_block_transform(self, crops: torch.Tensor) -> None:
        """Makes the encoder the principal components of 4x4 blocks, each of unit variance."""
        for layer in (self.e_in, self.e_down0, self.e_wide1, self.e_down1, self.e_wide2, self.e_out):
            layer.weight.zero_()
        self.e_in.weight[:3, :, 1, 1] = torch.eye(3)
        for row in range(2):
            for column in range(2):
                place = 2 * row + column
                self.e_down0.weight[3 * place : 3 * place + 3, :3, row, column] = torch.eye(3)
                self.e_down1.weight[12 * place : 12 * place + 12, :12, row, column] = torch.eye(12)
        self.e_wide1.weight[:12, :12, 0, 0] = torch.eye(12)
        halves = self.e_wide1(self.e_down0(F.pad(self.e_in(crops), (0, 1, 0, 1))))
        blocks = self.e_down1(F.pad(halves, (0, 1, 0, 1)))[:, :48].movedim(1, -1).flatten(0, 2)
        values, vectors = torch.linalg.eigh(torch.cov(blocks.T))
        count = self.e_out.weight.shape[0]
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
        self.e_wide2.weight[:count, :48, 0, 0] = vectors.T / values.sqrt()[:, None]
        self.e_out.weight[:, :count, 1, 1] = torch.eye(count)


def fit(training: list[np.ndarray], latent_channels: int, steps: int, seed: int, path: Path) -> LinearCoder:
    """Learns the linear chain with Adam on random crops; goes on from a checkpoint at `path`."""
    torch.manual_seed(seed)
    coder = LinearCoder(latent_channels)
    sampler = images.CropSampler(training, SIDES, CROP)
    coder.start_as_block_transform(sampler.batch(200, np.random.default_rng(seed)))
    coder.to(memory_format=torch.channels_last)
    run = checkpoint.Run(coder, path, seed, rate=2e-3, decay=0.99)
    while run.step < steps:
        random = run.begin_step(run.step / steps, warmup=20)
        image = sampler.batch(BATCH, random).contiguous(memory_format=torch.channels_last)
        # The encoder settles early; the rest of the time goes to the decoder alone.
        with torch.set_grad_enabled(run.step < ENCODER_SHARE * steps):
            latent = coder.encode(image)
        output = coder.decode(latent + LATENT_NOISE * torch.randn_like(latent))
        loss = (output - image).square().mean((1, 2, 3)).add(1e-5).log().mean()
        # The latents keep unit variance, channel by channel.
        spread = (latent.std((0, 2, 3)) - 1).square().mean()
        run.finish_step(run.descend(loss + spread, clip=1.0))
        run.save_now_and_then()
        if run.step % 200 == 0:
            decibels = 20 * np.log10(2) - 10 * np.log10(np.e) * loss.item()
            print(f"linear step {run.step}: {decibels:.2f} dB on the last crops", flush=True)
    run.save()
    run.average.swap(coder)
    return coder


@torch.no_grad()
def write_into(vae: AutoencoderKL, coder: LinearCoder) -> None:
    """Sets a new AutoencoderKL up to compute what the linear coder does, all residual branches silent."""
    encoder, decoder = vae.encoder, vae.decoder
    for name, module in vae.named_modules():
        if name.endswith((".conv2", ".to_out.0")):
            module.weight.zero_()
            module.bias.zero_()
    plain = {
        encoder.conv_in: coder.e_in,
        encoder.down_blocks[0].downsamplers[0].conv: coder.e_down0,
        encoder.down_blocks[1].resnets[0].conv_shortcut: coder.e_wide1,
        encoder.down_blocks[1].downsamplers[0].conv: coder.e_down1,
        decoder.conv_in: coder.d_in,
        decoder.up_blocks[0].upsamplers[0].conv: coder.d_up0,
        decoder.up_blocks[1].resnets[0].conv_shortcut: coder.d_thin1,
        decoder.up_blocks[1].upsamplers[0].conv: coder.d_up1,
    }
    for target, source in plain.items():
        target.weight.copy_(source.weight)
        target.bias.zero_()
    latent = coder.e_out.weight.shape[0]
    widest, thinnest = encoder.down_blocks[2].resnets[0], decoder.up_blocks[2].resnets[0]
    _paired(widest.conv_shortcut, encoder.conv_norm_out, encoder.conv_out, coder.e_wide2, coder.e_out)
    _paired(thinnest.conv_shortcut, decoder.conv_norm_out, decoder.conv_out, coder.d_thin2, coder.d_out)
    for layer, count in ((vae.quant_conv, 2 * latent), (vae.post_quant_conv, latent)):
        layer.weight.zero_()
        layer.weight[:, :, 0, 0] = torch.eye(count)
        layer.bias.zero_()


def _paired(into: nn.Conv2d, norm: nn.GroupNorm, out: nn.Conv2d, from_into: nn.Conv2d, from_out: nn.Conv2d) -> None:
    """Lays the signals out as pairs, with a constant pair first in each group."""
    width = into.weight.shape[0]
    size = width // GROUPS
    into.weight.zero_()
    into.bias.zero_()
    out.weight.zero_()
    out.bias.zero_()
    signal = 0
    for group in range(GROUPS):
        first = group * size
        into.bias[first], into.bias[first + 1] = LEVEL, -LEVEL
        for positive in range(first + 2, first + size, 2):
            into.weight[positive], into.weight[positive + 1] = from_into.weight[signal], -from_into.weight[signal]
            rows = from_out.weight.shape[0]
            out.weight[:rows, positive] = from_out.weight[:, signal]
            out.weight[:rows, positive + 1] = -from_out.weight[:, signal]
            signal += 1
    # The constants alone give a deviation of LEVEL * sqrt(2 / size); the norm's weight undoes the division.
    norm.weight.fill_(LEVEL * (2 / size) ** 0.5)
    norm.bias.zero_()
