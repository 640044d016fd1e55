"""Trains the autoencoder in two stages: a linear transform coder, then its decoder as a deep network.

The encoder stays linear. That costs a little sharpness at a given number of channels, and buys a lot for the method:
mean and deviation of a latent channel are those of the image's colours (three channels) and of its grain (the
others), so AdaIN on latents is AdaIN on palette and contrast; and the UNet can be trained while the decoder still is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import checkpoint, images, linear, log, networks, scores, sheets, workers

CROP = 96
BATCH = 4
SIDES = (400, 256, 160)
# Of the posterior, in each channel. A sample differs from the mean by 32 dB; where the image is flat, inversions turn it into noise.
DEVIATION = 0.15


@dataclass
class Settings:
    training: list[np.ndarray]
    held_out: list[np.ndarray]
    out: Path
    steps: int
    seed: int
    rate: float = 5e-4
    score_every_steps: int = 250


def moments(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
    """The latent's mean; this autoencoder's variance is a constant."""
    return vae.encode(image).latent_dist.mode()


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The PSNR itself (log of the error, image by image), L1, SSIM, and colour differences.

    Without the colour terms the red-green axis, which carries little energy, is learned last or never.
    """
    error = output - target
    log_error = (error.square().mean((1, 2, 3)) + 1e-5).log().mean()
    red_green = error[:, :1] - error[:, 1:2]
    yellow_blue = error[:, :2].mean(1, keepdim=True) - error[:, 2:]
    colour = torch.cat([red_green, yellow_blue], 1)
    colour_loss = colour.abs().mean() + F.avg_pool2d(colour, 4).abs().mean()
    return 0.1 * log_error + error.abs().mean() + 0.5 * colour_loss + 0.3 * (1 - fast_ssim(output, target))


def fast_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM with a flat window of 7, on images in [-1, 1]: cheap enough for every step."""

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, 1)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, covariance = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (2 * 0.01) ** 2, (2 * 0.03) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, squares: list[np.ndarray]) -> torch.Tensor:
    """Encodes and decodes uint8 squares; (n, 3, side, side) in [0, 1]."""
    outputs = [vae.decode(moments(vae, images.to_tensor(square)[None])).sample for square in squares]
    return ((torch.cat(outputs).float() + 1) / 2).clamp(0, 1)


def score(vae: AutoencoderKL, squares: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR and SSIM of the reconstructions."""
    target = (images.to_tensor(np.stack(squares)) + 1) / 2
    output = reconstruct(vae, squares)
    decibels = scores.psnr(output, target)
    return {
        "psnr": round(decibels.mean().item(), 3),
        "psnr_worst": round(decibels.min().item(), 3),
        "ssim": round(scores.ssim(output, target).mean().item(), 4),
    }


@torch.no_grad()
def settle_latents(vae: AutoencoderKL, squares: list[np.ndarray]) -> None:
    """Scales the latents to unit variance."""
    latents = torch.cat([moments(vae, images.to_tensor(square)[None]) for square in squares])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 6))


@torch.no_grad()
def fix_variance(vae: AutoencoderKL) -> None:
    """Makes the posterior's variance a constant; the UNet is trained on its samples."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * float(np.log(DEVIATION))


def train_linear(settings: Settings) -> None:
    """Makes the whole autoencoder as a linear transform coder, in the model folder. Runs in one process."""
    training = settings.training
    checkpoint_path = settings.out / "work" / "linear.ckpt"
    coder = linear.fit(training, networks.LATENT_CHANNELS, settings.steps, settings.seed, checkpoint_path)
    vae = networks.new_vae()
    linear.write_into(vae, coder)
    sample = [images.centre_square(pixels, 256) for pixels in training[:: max(1, len(training) // 100)]]
    settle_latents(vae, sample)
    fix_variance(vae)
    print("linear", score(vae, [images.centre_square(pixels, 256) for pixels in settings.held_out[::3]]), flush=True)
    networks.save_network(vae, settings.out / "vae")


def step_loss(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
    with networks.quick_arithmetic(image.device):
        with torch.no_grad():
            latent = moments(vae, image)
            latent = latent + linear.LATENT_NOISE * torch.randn_like(latent)
        output = vae.decode(latent).sample
    return reconstruction_loss(output.float(), image)


def train_decoder(settings: Settings) -> None:
    """Trains the decoder, and leaves its average in the model folder. Runs in every worker process."""
    work = settings.out / "work"
    # A third of them is enough to follow the training; `evaluate` takes all.
    squares = [images.centre_square(pixels, 256) for pixels in settings.held_out[::3]]
    vae = networks.load_vae(settings.out).to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    run = checkpoint.Run(vae, work / "decoder.ckpt", settings.seed, settings.rate, decay=0.99)
    sampler = images.CropSampler(settings.training, SIDES, CROP)
    total = 0.0
    while run.step < settings.steps:
        random = run.begin_step(run.step / settings.steps, warmup=50)
        image = sampler.batch(max(1, BATCH // workers.count()), random)
        loss = step_loss(vae, image.contiguous(memory_format=torch.channels_last))
        run.finish_step(run.descend(loss, clip=1.0))
        total += loss.item()
        if workers.rank() == 0 and (run.step % settings.score_every_steps == 0 or run.step == settings.steps):
            run.average.swap(vae)
            report(run, vae, squares, work, total / settings.score_every_steps)
            # Every scored state is usable: the folder always holds the latest.
            networks.save_network(vae, settings.out / "vae")
            run.average.swap(vae)
            total = 0.0
        run.save_now_and_then()
    if workers.rank() == 0:
        run.save()
    workers.wait()


def report(run: checkpoint.Run, vae: AutoencoderKL, squares: list, work: Path, loss: float) -> None:
    """A row of scores, the plot and the sample sheet."""
    row = {"step": run.step, "seconds": round(run.seconds), "loss": round(loss, 4)} | score(vae, squares)
    print("decoder", row, flush=True)
    log.append_row(work / "decoder.csv", row)
    log.plot(work / "decoder.csv", ["loss", "psnr", "ssim"], work / "decoder.png")
    sheets.reconstructions(squares[::2], reconstruct(vae, squares[::2]), work / "decoder-sheet.png")
