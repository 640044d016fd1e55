"""Trains the autoencoder: first as a whole, then, with the latents fixed for the UNet, its decoder alone."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import checkpoint, log, networks, pictures, scores, sheets

# Noise on the latents in training, relative to their standard deviation: it takes the place of a learned posterior,
# keeps the latents smooth, and makes the decoder forgive the UNet's small errors.
LATENT_NOISE = 0.05
CROP = 96
BATCH = 8
SIDES = (400, 256, 160)


@dataclass
class Settings:
    training_folder: Path
    held_out_folder: Path
    out: Path
    init: Path | None
    steps: int
    seed: int
    decoder_only: bool
    rate: float = 6e-4
    save_every_seconds: float = 45
    score_every_steps: int = 250


def moments(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
    """The latent's mean; this autoencoder's variance is a constant."""
    return vae.encode(image).latent_dist.mode()


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The PSNR itself (log of the error, picture by picture), L1, SSIM, and colour differences.

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
    """SSIM with a flat window of 7, on pictures in [-1, 1]: cheap enough for every step."""

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
    outputs = [vae.decode(moments(vae, pictures.to_tensor(square)[None])).sample for square in squares]
    return ((torch.cat(outputs).float() + 1) / 2).clamp(0, 1)


def score(vae: AutoencoderKL, squares: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR and SSIM of the reconstructions."""
    target = (pictures.to_tensor(np.stack(squares)) + 1) / 2
    output = reconstruct(vae, squares)
    decibels = scores.psnr(output, target)
    return {
        "psnr": round(decibels.mean().item(), 3),
        "psnr_worst": round(decibels.min().item(), 3),
        "ssim": round(scores.ssim(output, target).mean().item(), 4),
    }


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, squares: list[np.ndarray]) -> float:
    """The scaling factor: latents times it have unit variance."""
    latents = torch.cat([moments(vae, pictures.to_tensor(square)[None]) for square in squares])
    return 1 / latents.std().item()


@torch.no_grad()
def fix_variance(vae: AutoencoderKL) -> None:
    """Makes the posterior's variance the constant that the decoder was trained with, for those who sample it."""
    channels = vae.config.latent_channels
    noise = LATENT_NOISE / vae.config.scaling_factor
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * float(np.log(noise))


def start(settings: Settings) -> AutoencoderKL:
    if settings.decoder_only:
        vae = networks.load_vae(settings.out)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    else:
        vae = networks.grown_vae(settings.init) if settings.init else networks.new_vae()
    return vae.to(memory_format=torch.channels_last)


def step_loss(vae: AutoencoderKL, image: torch.Tensor, decoder_only: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not decoder_only):
            latent = moments(vae, image)
        noise = LATENT_NOISE * latent.detach().float().std() * torch.randn_like(latent)
        output = vae.decode(latent + noise).sample
    loss = reconstruction_loss(output.float(), image)
    # A mild pull to zero mean and a bounded scale, which the UNet's noise levels assume.
    return loss if decoder_only else loss + 1e-3 * (latent.float().square().mean() / 2.6)


def train(settings: Settings) -> None:
    """Trains, and leaves the averaged autoencoder in the model folder."""
    stage = "decoder" if settings.decoder_only else "vae"
    work = settings.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    vae = start(settings)
    run = checkpoint.Run(vae, work / f"{stage}.ckpt", settings.seed, settings.rate, decay=0.997)
    training = list(pictures.read_folder(settings.training_folder).values())
    held_out = pictures.read_folder(settings.held_out_folder)
    squares = [pictures.centre_square(pixels, 256) for pixels in held_out.values()]
    sampler = pictures.CropSampler(training, SIDES, CROP)
    table = work / f"{stage}.csv"
    total, saved = 0.0, time.monotonic()
    while run.step < settings.steps:
        began = time.monotonic()
        for group in run.optimiser.param_groups:
            group["lr"] = checkpoint.rate_at(run.step, settings.steps, settings.rate, warmup=50)
        image = sampler.batch(BATCH, run.random).contiguous(memory_format=torch.channels_last)
        loss = step_loss(vae, image, settings.decoder_only)
        run.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        run.optimiser.step()
        run.average.update(vae)
        run.step += 1
        run.seconds += time.monotonic() - began
        total += loss.item()
        if run.step % settings.score_every_steps == 0 or run.step == settings.steps:
            run.average.swap(vae)
            row = {"step": run.step, "seconds": round(run.seconds), "loss": round(total / settings.score_every_steps, 4)}
            row |= score(vae, squares)
            output = reconstruct(vae, squares[::4])
            run.average.swap(vae)
            total = 0.0
            print(stage, row, flush=True)
            log.append_row(table, row)
            log.plot(table, ["loss", "psnr", "ssim"], work / f"{stage}.png")
            sheets.reconstructions(squares[::4], output, work / f"{stage}-sheet.png")
        if time.monotonic() - saved > settings.save_every_seconds:
            run.save()
            saved = time.monotonic()
    run.save()
    run.average.swap(vae)
    if not settings.decoder_only:
        sample = [pictures.centre_square(pixels, 256) for pixels in training[:: max(1, len(training) // 100)]]
        vae.register_to_config(scaling_factor=round(latent_scale(vae, sample), 6))
        fix_variance(vae)
    networks.save_network(vae, settings.out / "vae")
