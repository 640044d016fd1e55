"""The JSON configurations of a diffusers folder, translated into the numbers that the engine is built from.

Every key that changes what a model computes is either translated or must have the one value that the engine computes;
anything else is refused by name. Missing keys take the defaults of diffusers and transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.disk import read_json

if TYPE_CHECKING:
    from styleid._core import Config, KLConfig, TextConfig, TinyConfig, UNetConfig, VAEConfig

# Keys with one computable value: the accepted spellings of it.
UNET_FIXED: Mapping[str, Sequence[Any]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Keys without an effect here: for training, for float16, or of parts that the fixed keys exclude.
UNET_IGNORED = {
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "class_embeddings_concat",
    "dropout",
    "projection_class_embeddings_input_dim",
    "upcast_attention",  # the engine's softmax is in float32 always
}
KL_FIXED: Mapping[str, Sequence[Any]] = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "out_channels": (3,),
    "shift_factor": (None, 0),
}
KL_IGNORED = {"force_upcast", "sample_size"}
TINY_FIXED: Mapping[str, Sequence[Any]] = {
    "_class_name": ("AutoencoderTiny",),
    "act_fn": ("relu",),
    "in_channels": (3,),
    "out_channels": (3,),
    "shift_factor": (0, None),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
# A range that latents are shown in, and a copy of decoder_block_out_channels.
TINY_IGNORED = {"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift"}
SCHEDULER_FIXED: Mapping[str, Sequence[Any]] = {
    "num_train_timesteps": (_core.TRAIN_STEPS,),
    "rescale_betas_zero_snr": (False,),
}
TEXT_FIXED: Mapping[str, Sequence[Any]] = {
    "layer_norm_eps": (1e-5,),
    "model_type": ("clip_text_model",),
}


class Settings:
    """One configuration file, read key by key; every complaint names the file, the key and the value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = read_json(path)
        self.seen: set[str] = set()

    def get(self, key: str, default: Any) -> Any:
        """The value as it is."""
        self.seen.add(key)
        return self.values.get(key, default)

    def refuse(self, key: str, expected: str) -> ValueError:
        """The error to raise about a key."""
        return ValueError(f"{self.path}: {key} is {str(self.values.get(key))[:120]}; expected {expected}")

    def fixed(self, accepted: Mapping[str, Sequence[Any]]) -> None:
        """Each key, where it is there, has one of its accepted values."""
        for key, values in accepted.items():
            value = self.get(key, values[0])
            if not any(type(value) is type(a) and value == a for a in (*values, *map(_float, values))):
                raise self.refuse(key, " or ".join(map(repr, values)))

    def integer(self, key: str, default: int | None) -> int:
        """A positive whole number."""
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value < 1 << 24:
            raise self.refuse(key, "a positive whole number")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise self.refuse(key, "a positive number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.refuse(key, "true or false")
        return value

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """One of some words."""
        value = self.get(key, default)
        if value not in choices:
            raise self.refuse(key, " or ".join(choices))
        return cast(str, value)

    def items(self, key: str, default: Sequence[Any], kind: type, length: int | None = None) -> list[Any]:
        """A list of things of one kind, whole numbers positive."""
        value = self.get(key, list(default))
        if not isinstance(value, list) or not value or not all(type(item) is kind for item in value):
            raise self.refuse(key, f"a list of {kind.__name__}")
        if kind is int and not all(0 < item < 1 << 24 for item in value):
            raise self.refuse(key, "positive whole numbers")
        if length is not None and len(value) != length:
            raise self.refuse(key, f"{length} items, one per level of block_out_channels")
        return value

    def per_level(self, key: str, default: int, levels: int) -> list[int]:
        """One positive number per level, given as a list or as one for all."""
        if not isinstance(self.get(key, default), list):
            return [self.integer(key, default)] * levels
        return self.items(key, [], int, levels)

    def same_on_all_levels(self, key: str, default: int, levels: int) -> int:
        """A number that may be given per level, but must not differ."""
        values = set(self.per_level(key, default, levels))
        if len(values) > 1:
            raise self.refuse(key, "the same number on all levels")
        return values.pop()

    def warn_about_unknown(self, ignored: set[str]) -> None:
        """A warning that names the keys nothing was asked of."""
        unknown = [key for key in self.values if key not in self.seen | ignored and not key.startswith("_")]
        if unknown:
            warnings.warn(f"{self.path}: unknown keys are ignored: {', '.join(unknown)[:200]}", stacklevel=2)


def _float(value: Any) -> Any:
    """A number, which may be written 1 or 1.0."""
    return float(value) if type(value) is int else value


def read_unet(path: Path, prediction: Literal["epsilon", "v_prediction"]) -> UNetConfig:
    """Reads the UNet2DConditionModel of SD 1.x and 2.x, with any widths, depths and numbers of heads."""
    settings = Settings(path)
    settings.fixed(UNET_FIXED)
    channels = settings.items("block_out_channels", (320, 640, 1280, 1280), int)
    levels = len(channels)
    if settings.same_on_all_levels("transformer_layers_per_block", 1, levels) != 1:
        raise settings.refuse("transformer_layers_per_block", "1")
    if settings.get("only_cross_attention", False) not in (False, [False] * levels):
        raise settings.refuse("only_cross_attention", "false")
    sample_size = settings.get("sample_size", None)
    config: UNetConfig = {
        "in_channels": settings.integer("in_channels", 4),
        "out_channels": settings.integer("out_channels", 4),
        "channels": channels,
        "heads": _heads(settings, levels),
        "attention": _attention(settings, levels),
        "layers_per_block": settings.same_on_all_levels("layers_per_block", 2, levels),
        "linear_projection": settings.boolean("use_linear_projection", False),
        "context_size": settings.integer("cross_attention_dim", 1280),
        "groups": settings.integer("norm_num_groups", 32),
        "eps": settings.number("norm_eps", 1e-5),
        "prediction": prediction,
        "sample_size": 64 if sample_size is None else settings.integer("sample_size", None),
    }
    settings.warn_about_unknown(UNET_IGNORED)
    return config


def _heads(settings: Settings, levels: int) -> list[int]:
    """diffusers' `attention_head_dim` holds the number of heads, unless `num_attention_heads` is given."""
    key = "attention_head_dim" if settings.get("num_attention_heads", None) is None else "num_attention_heads"
    settings.get("attention_head_dim", None)
    return settings.per_level(key, 8, levels)


def _attention(settings: Settings, levels: int) -> list[bool]:
    """Which levels have transformers: the same ones on the way down and up."""
    down = settings.items("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], str, levels)
    up = settings.items("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, str, levels)
    if not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
        raise settings.refuse("down_block_types", "CrossAttnDownBlock2D and DownBlock2D only")
    if [block.replace("Down", "Up") for block in reversed(down)] != up:
        raise settings.refuse("up_block_types", "the mirror image of down_block_types")
    return [block == "CrossAttnDownBlock2D" for block in down]


def read_vae(path: Path) -> VAEConfig:
    """Reads an AutoencoderKL with any widths and depths, or an AutoencoderTiny with one width and any depths."""
    settings = Settings(path)
    return _tiny(settings) if settings.get("_class_name", None) == "AutoencoderTiny" else _kl(settings)


def _tiny(settings: Settings) -> TinyConfig:
    settings.fixed(TINY_FIXED)
    channels = settings.items("encoder_block_out_channels", (64,) * 4, int)
    for key in "encoder_block_out_channels", "decoder_block_out_channels":
        if settings.items(key, (64,) * 4, int) != channels[:1] * len(channels):
            raise settings.refuse(key, "one width at all levels of both halves")
    config: TinyConfig = {
        "kind": "tiny",
        "image_channels": 3,
        "latent_channels": settings.integer("latent_channels", 4),
        "channels": channels,
        "encoder_blocks": settings.items("num_encoder_blocks", (1, 3, 3, 3), int, len(channels)),
        "decoder_blocks": settings.items("num_decoder_blocks", (3, 3, 3, 1), int, len(channels)),
        "scaling_factor": settings.number("scaling_factor", 1.0),
    }
    settings.warn_about_unknown(TINY_IGNORED)
    return config


def _kl(settings: Settings) -> KLConfig:
    settings.fixed(KL_FIXED)
    channels = settings.items("block_out_channels", (64,), int)
    for key, block in ("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D"):
        if set(settings.items(key, (block,), str, len(channels))) != {block}:
            raise settings.refuse(key, f"{block} only")
    config: KLConfig = {
        "image_channels": 3,
        "latent_channels": settings.integer("latent_channels", 4),
        "channels": channels,
        "layers_per_block": settings.integer("layers_per_block", 1),
        "groups": settings.integer("norm_num_groups", 32),
        "scaling_factor": settings.number("scaling_factor", 0.18215),
        "mid_attention": settings.boolean("mid_block_add_attention", True),
        "quant_conv": settings.boolean("use_quant_conv", True),
        "post_quant_conv": settings.boolean("use_post_quant_conv", True),
    }
    settings.warn_about_unknown(KL_IGNORED)
    return config


def read_text(path: Path) -> TextConfig:
    """Reads a CLIPTextModel; keys that only matter to text generation or training are ignored."""
    settings = Settings(path)
    settings.fixed(TEXT_FIXED)
    activation = settings.choice("hidden_act", "quick_gelu", ("quick_gelu", "gelu"))
    return {
        "vocabulary": settings.integer("vocab_size", 49408),
        "positions": settings.integer("max_position_embeddings", 77),
        "channels": settings.integer("hidden_size", 512),
        "hidden": settings.integer("intermediate_size", 2048),
        "layers": settings.integer("num_hidden_layers", 12),
        "heads": settings.integer("num_attention_heads", 8),
        "activation": cast(Literal["quick_gelu", "gelu"], activation),
    }


def read_scheduler(path: Path) -> tuple[Literal["epsilon", "v_prediction"], NDArray[np.float64]]:
    """What the model predicts, and alpha, the (1000,) cumulative product of 1 - beta.

    Only the noise levels that the model was trained with are taken. Which of them are visited, and how, is decided by the
    method and not by the sampler that the file names.
    """
    settings = Settings(path)
    settings.fixed(SCHEDULER_FIXED)
    prediction = settings.choice("prediction_type", "epsilon", ("epsilon", "v_prediction"))
    betas = _betas(settings)
    if betas.shape != (_core.TRAIN_STEPS,) or not np.all((betas > 0) & (betas < 1)):
        raise ValueError(f"{path}: the betas must be {_core.TRAIN_STEPS} numbers between 0 and 1")
    return cast(Literal["epsilon", "v_prediction"], prediction), np.cumprod(1 - betas, dtype=np.float64)


def _betas(settings: Settings) -> NDArray[np.float64]:
    trained = settings.get("trained_betas", None)
    if trained is not None:
        return np.array(settings.items("trained_betas", [], float), dtype=np.float64)
    kind = settings.choice("beta_schedule", "linear", ("linear", "scaled_linear"))
    start, end = settings.number("beta_start", 0.0001), settings.number("beta_end", 0.02)
    if kind == "linear":
        return np.linspace(start, end, _core.TRAIN_STEPS)
    return _scaled_linear(start, end)


def _scaled_linear(start: float, end: float) -> NDArray[np.float64]:
    """(1000,) betas whose square roots are evenly spaced."""
    return np.linspace(np.sqrt(start), np.sqrt(end), _core.TRAIN_STEPS) ** 2


# The noise levels of every published Stable Diffusion model: (1000,) cumulative products of 1 - beta.
STANDARD_ALPHAS = np.cumprod(1 - _scaled_linear(0.00085, 0.012), dtype=np.float64)
STANDARD_ALPHAS.flags.writeable = False


def read_config(unet: Path, vae: Path | VAEConfig, scheduler: Path, text: Path | None) -> Config:
    """The whole configuration, of which that of the VAE may be known. ValueError naming the file, the key and its value."""
    prediction, alphas = read_scheduler(scheduler)
    config: Config = {
        "unet": read_unet(unet, prediction),
        "vae": read_vae(vae) if isinstance(vae, Path) else vae,
        "text": read_text(text) if text else None,
        "alphas": alphas,
    }
    latent = config["vae"]["latent_channels"]
    for key in "in_channels", "out_channels":
        if isinstance(vae, Path) and config["unet"][key] != latent:
            raise ValueError(f"{unet}: {key} is {config['unet'][key]}, but the VAE's latents have {latent} channels")
    if config["text"] and config["text"]["channels"] != config["unet"]["context_size"]:
        raise ValueError(
            f"{unet}: cross_attention_dim is {config['unet']['context_size']}, "
            f"but the text encoder's hidden_size is {config['text']['channels']}"
        )
    return config
