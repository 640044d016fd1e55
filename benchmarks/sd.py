"""A model of Stable Diffusion 1.x's size with random weights: speed does not depend on what the weights are."""

import json
from pathlib import Path

SIDE = 64  # of the latent: 512 x 512 pixels
CONTEXT = (77, 768)
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def write_folder(folder: Path) -> None:
    """A diffusers folder of float16 weights, 1.9 GB; an existing one is kept."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.numpy import save_file

    if (folder / "context.safetensors").exists():
        return
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).half().save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).half().save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    context = np.random.default_rng(0).standard_normal((1, *CONTEXT), dtype=np.float32)
    save_file({"empty_prompt": context}, folder / "context.safetensors")
