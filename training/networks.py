"""The two networks, and the diffusers folder that holds them."""

import json
import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

LATENT_CHANNELS = 12
CONTEXT_WIDTH = 64
CONTEXT_NAME = "empty_prompt"


def new_vae(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """Factor 4: 256x256 images have 64x64 latents."""
    return AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=1.0,
    )


def new_unet(latent_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """The SD layout: decoder layers 3-11 have self-attention. Two heads everywhere: few heads are fast on a CPU."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(64, 96, 128, 192),
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=CONTEXT_WIDTH,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def noise_levels() -> torch.Tensor:
    """alpha[t], the cumulative product of 1 - beta, (1000,)."""
    return new_scheduler().alphas_cumprod


def quick_arithmetic(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU and where the processor has vectors for it, float32 elsewhere."""
    quick = device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=quick)


@torch.no_grad()
def posterior(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, h, w) to scaled latents: the mean of the autoencoder's posterior, and a sample of it."""
    with quick_arithmetic(images.device):
        found = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
    mean, scale = found.mode().float(), vae.config.scaling_factor
    return mean * scale, (mean + found.std.float() * torch.randn_like(mean)) * scale


def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, h, w) to scaled latents, the posterior's mean."""
    return posterior(vae, images)[0]


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents to images; gradients pass."""
    latents = (latents / vae.config.scaling_factor).contiguous(memory_format=torch.channels_last)
    with quick_arithmetic(latents.device):
        return vae.decode(latents).sample.float()


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder of a model folder, in float32."""
    return AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a model folder, in float32."""
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)


def load_context(folder: Path) -> torch.Tensor:
    """The one learned token that stands for the empty prompt, (1, 1, CONTEXT_WIDTH)."""
    return load_file(folder / "context.safetensors")[CONTEXT_NAME].float()


def write_atomically(path: Path, write) -> None:
    """Calls write(partial path), then puts the whole file in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    write(partial)
    # safetensors makes files that only their owner may read; a model is there for all.
    partial.chmod(0o644)
    os.replace(partial, path)


def write_json(path: Path, value: dict) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n"))


def public_config(part: AutoencoderKL | UNet2DConditionModel | DDIMScheduler) -> dict:
    """What diffusers needs to build the same again, without its private notes."""
    config = {key: value for key, value in part.config.items() if not key.startswith("_")}
    return config | {"_class_name": type(part).__name__}


def save_network(network: AutoencoderKL | UNet2DConditionModel, folder: Path) -> None:
    """config.json and float16 weights, as diffusers names them."""
    half = {name: value.detach().half().contiguous() for name, value in network.state_dict().items()}
    write_json(folder / "config.json", public_config(network))
    write_atomically(folder / "diffusion_pytorch_model.safetensors", lambda partial: save_file(half, partial))


def save_frame(folder: Path, context: torch.Tensor) -> None:
    """What a model folder holds beside the two networks: its index, its scheduler and its context."""
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    write_json(folder / "scheduler" / "scheduler_config.json", public_config(new_scheduler()))
    tensors = {CONTEXT_NAME: context.detach().reshape(1, 1, -1).half().contiguous()}
    write_atomically(folder / "context.safetensors", lambda partial: save_file(tensors, partial))
