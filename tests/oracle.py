"""StyleID in plain PyTorch: what the engine is compared with. Slow, and written to be read beside docs/algorithm.md.

The networks are those of diffusers and transformers, with seeded random weights; the method is written out below.
"""

import math
import os
from dataclasses import dataclass, field

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin make small networks many times slower

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from styleid import _core

torch.set_num_threads(1)
torch.set_grad_enabled(False)

TRAIN_STEPS = 1000
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2)

# Relative L2 errors that the engine may have in float32.
EVALUATION_TOLERANCE = 1e-5  # one run of a network
TRAJECTORY_TOLERANCE = 1e-3  # the latent after a whole run of 50 steps
# What bfloat16 may lose, in terms of what PyTorch's own bfloat16 loses.
BFLOAT16_TOLERANCE = 1.5


def relative_error(actual, expected):
    actual, expected = (np.asarray(x, dtype=np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# ---------------------------------------------------------------------------------------------------------- networks


def randomize(network, seed):
    """Weights that leave nothing degenerate: every part counts, attention is neither flat nor the choice of one token."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim > 1:
            gain = 1.5 if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")) else 1.0
            parameter.mul_(gain / math.sqrt(parameter[0].numel()))
        else:
            parameter.mul_(0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return network.eval()


def unet(channels, heads, attention, *, layers=2, linear=False, context=48, groups=8, latent=4, sample_size=16, seed=1):
    """channels, heads and attention per level, full resolution first."""
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention))
    with torch.device("meta"):  # no time spent on weights that are overwritten
        network = UNet2DConditionModel(
            sample_size=sample_size, in_channels=latent, out_channels=latent, block_out_channels=channels,
            down_block_types=down, up_block_types=up, layers_per_block=layers, attention_head_dim=heads,
            use_linear_projection=linear, cross_attention_dim=context, norm_num_groups=groups,
        )  # fmt: skip
    return randomize(network.to_empty(device="cpu"), seed)


def vae(
    channels, *, layers=2, latent=4, groups=8, scaling=0.18215, attention=True, quant=True, post_quant=True, seed=2
):
    with torch.device("meta"):
        network = AutoencoderKL(
            block_out_channels=channels, layers_per_block=layers, latent_channels=latent, norm_num_groups=groups,
            down_block_types=("DownEncoderBlock2D",) * len(channels), scaling_factor=scaling,
            up_block_types=("UpDecoderBlock2D",) * len(channels), mid_block_add_attention=attention,
            use_quant_conv=quant, use_post_quant_conv=post_quant,
        )  # fmt: skip
    return randomize(network.to_empty(device="cpu"), seed)


def tiny_vae(width=16, *, encoder=(1, 3, 3, 3), decoder=(3, 3, 3, 1), latent=4, scaling=1.0, seed=4):
    with torch.device("meta"):
        network = AutoencoderTiny(
            encoder_block_out_channels=(width,) * len(encoder), decoder_block_out_channels=(width,) * len(decoder),
            num_encoder_blocks=encoder, num_decoder_blocks=decoder, latent_channels=latent, scaling_factor=scaling,
        )  # fmt: skip
    return randomize(network.to_empty(device="cpu"), seed)


def text_encoder(
    channels, heads, *, layers=2, hidden=None, vocabulary=100, positions=77, activation="quick_gelu", seed=3
):
    return randomize(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=channels,
                intermediate_size=hidden or 4 * channels,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=positions,
                hidden_act=activation,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=0,
            )  # fmt: skip
        ),
        seed,
    )


@dataclass
class Networks:
    """What one engine model is made of."""

    unet: UNet2DConditionModel = field(default_factory=lambda: unet((16,), (2,), (True,), layers=1))
    vae: AutoencoderKL | AutoencoderTiny = field(default_factory=lambda: vae((8, 8), layers=1))
    text: CLIPTextModel | None = None
    prediction: str = "epsilon"

    def config(self):
        """As styleid._core.Model takes it."""
        u = self.unet.config
        levels = len(u.block_out_channels)
        config = {
            "unet": {
                "in_channels": u.in_channels,
                "out_channels": u.out_channels,
                "channels": list(u.block_out_channels),
                "heads": [u.attention_head_dim] * levels
                if isinstance(u.attention_head_dim, int)
                else list(u.attention_head_dim),
                "attention": [block.startswith("CrossAttn") for block in u.down_block_types],
                "layers_per_block": u.layers_per_block,
                "linear_projection": u.use_linear_projection,
                "context_size": u.cross_attention_dim,
                "groups": u.norm_num_groups,
                "eps": u.norm_eps,
                "prediction": self.prediction,
                "sample_size": u.sample_size,
            },
            "vae": self.vae_config(),
            "text": None,
            "alphas": ALPHAS,
        }
        if self.text is not None:
            t = self.text.config
            config["text"] = {
                "vocabulary": t.vocab_size,
                "positions": t.max_position_embeddings,
                "channels": t.hidden_size,
                "hidden": t.intermediate_size,
                "layers": t.num_hidden_layers,
                "heads": t.num_attention_heads,
                "activation": t.hidden_act,
            }
        return config

    def vae_config(self):
        v = self.vae.config
        if isinstance(self.vae, AutoencoderTiny):
            return {
                "kind": "tiny",
                "image_channels": v.in_channels,
                "latent_channels": v.latent_channels,
                "channels": list(v.encoder_block_out_channels),
                "encoder_blocks": list(v.num_encoder_blocks),
                "decoder_blocks": list(v.num_decoder_blocks),
                "scaling_factor": v.scaling_factor,
            }
        return {
            "image_channels": v.in_channels,
            "latent_channels": v.latent_channels,
            "channels": list(v.block_out_channels),
            "layers_per_block": v.layers_per_block,
            "groups": v.norm_num_groups,
            "scaling_factor": v.scaling_factor,
            "mid_attention": v.mid_block_add_attention,
            "quant_conv": v.use_quant_conv,
            "post_quant_conv": v.use_post_quant_conv,
        }

    def weights(self):
        """As styleid._core.Model takes them, in the type that the networks have."""
        weights = {}
        for prefix, network in (("unet", self.unet), ("vae", self.vae), ("text", self.text)):
            if network is not None:
                for name, parameter in network.named_parameters():
                    weights[f"{prefix}.{name.removeprefix('text_model.')}"] = weight(parameter)
        return weights

    def engine(self, dtype="float32", threads=1, tiling="auto"):
        return _core.Model(self.config(), self.weights(), dtype=dtype, threads=threads, tiling=tiling)

    def save(self, folder, context):
        """As a diffusers folder, with a stored context for the empty prompt."""
        self.unet.save_pretrained(folder / "unet")
        self.vae.save_pretrained(folder / "vae")
        DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=self.prediction
        ).save_pretrained(folder / "scheduler")
        save_file({"empty_prompt": context}, folder / "context.safetensors")
        return folder


def weight(tensor):
    dtype = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[tensor.dtype]
    tensor = tensor.detach().contiguous()
    data = tensor.view(torch.uint16) if dtype == "BF16" else tensor  # NumPy has no bfloat16
    return {"dtype": dtype, "shape": list(tensor.shape), "data": data.numpy()}


# -------------------------------------------------------------------------------------------------------- schedules


def timesteps(steps):
    return [1 + i * (TRAIN_STEPS // steps) for i in range(steps)]


NO_NOISE = -1  # the level of a clean latent; the others are indices of ALPHAS


def alpha(level):
    return 1.0 if level == NO_NOISE else ALPHAS[level]


def inversion_moves(schedule, steps):
    """(evaluated timestep, level before, level after) of every step."""
    c, ts = TRAIN_STEPS // steps, timesteps(steps)
    if schedule == "diffusers":
        return [(t, max(0, t - c), t) for t in ts]
    return [(t, t, following) for t, following in zip(ts, [*ts[1:], TRAIN_STEPS - 1])]


def sampling_moves(schedule, steps):
    ts = timesteps(steps)
    if schedule == "paper":
        ts = ts[:-1]  # the evaluation at the largest timestep is skipped
    last = NO_NOISE if schedule == "diffusers" else 0
    return [(t, t, preceding) for t, preceding in zip(ts, [last, *ts[:-1]])][::-1]


def move(z, prediction, kind, a, b):
    """One DDIM move of z from level a to level b; prediction is what the UNet said of z."""
    a, b = alpha(a), alpha(b)
    e = math.sqrt(a) * prediction + math.sqrt(1 - a) * z if kind == "v_prediction" else prediction
    x0 = (z - math.sqrt(1 - a) * e) / math.sqrt(a)
    return math.sqrt(b) * x0 + math.sqrt(1 - b) * e


# ------------------------------------------------------------------------------------------------------- the method


@dataclass
class Inversion:
    latents: list  # the input of every evaluation, then zT
    features: list  # per step: {layer: (query, key, value)}, each (tokens, channels)


@dataclass
class Injection:
    """Into one layer at one step. None: the layer's own."""

    query: torch.Tensor | None
    keys: list
    values: list
    weights: list
    gamma: float
    temperature: float
    bias: torch.Tensor | None = None  # (queries, keys), added to the logits
    cover: torch.Tensor | None = None  # (queries,): the share of it in the output


class SelfAttention:
    """The self-attention of one decoder layer, written out, that shows its Q, K, V or has others injected."""

    injection = None

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = attention.to_q(hidden_states), attention.to_k(hidden_states), attention.to_v(hidden_states)
        self.features = q[0], k[0], v[0]
        out = plain = self.attend(attention.heads, q, k, v)
        if self.injection is not None:
            injected = self.injection
            if injected.query is not None:
                q = injected.gamma * injected.query[None] + (1 - injected.gamma) * q
            keys = [k[0] if key is None else key for key in injected.keys]
            values = [v[0] if value is None else value for value in injected.values]
            k, v = torch.cat(keys)[None], torch.cat(values)[None]
            bias = torch.cat([torch.full((len(x),), w).log() for x, w in zip(keys, injected.weights)])
            bias = bias if injected.bias is None else bias + injected.bias
            out = self.attend(attention.heads, q, k, v, injected.temperature, bias)
            if injected.cover is not None:
                cover = injected.cover[:, None]
                out = torch.where(cover > 0, cover * out, 0) + (1 - cover) * plain
        return attention.to_out[0](out)

    @staticmethod
    def attend(heads, q, k, v, temperature=1.0, bias=0.0):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        logits = temperature * q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


class StyleID:
    def __init__(self, networks):
        self.unet, self.vae, self.prediction = networks.unet, networks.vae, networks.prediction
        self.layers = {}
        resnets = self.unet.config.layers_per_block + 1
        for b, block in enumerate(self.unet.up_blocks):
            for i, transformer in enumerate(getattr(block, "attentions", ())):
                self.layers[b * resnets + i] = SelfAttention()
                transformer.transformer_blocks[0].attn1.set_processor(self.layers[b * resnets + i])

    def encode(self, image):
        """(H, W, 3) uint8 or float in [0, 1] -> (1, C, h, w)."""
        x = torch.from_numpy(image).float() / (255 if image.dtype == np.uint8 else 1)
        x = 2 * x.permute(2, 0, 1)[None] - 1
        return self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor

    def decode(self, z, schedule):
        x = self.vae.decode(z / self.vae.config.scaling_factor).sample
        x = 255 * ((x + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0)
        return (x.round() if schedule == "diffusers" else x.trunc()).byte().numpy()

    def predict(self, z, t, context):
        return self.unet(z, t, context.expand(len(z), -1, -1)).sample

    def guided(self, z, t, context, negative, guidance):
        """Classifier-free guidance, as diffusers' pipelines write it; the features left behind are the context's."""
        if negative is None:
            return self.predict(z, t, context)
        unconditional = self.predict(z, t, negative)
        conditional = self.predict(z, t, context)
        return unconditional + guidance * (conditional - unconditional)

    def invert(self, z, context, steps, schedule, negative=None, guidance=1.0):
        inversion = Inversion([z], [])
        for t, a, b in inversion_moves(schedule, steps):
            z = move(z, self.guided(z, t, context, negative, guidance), self.prediction, a, b)
            inversion.latents.append(z)
            inversion.features.append({n: layer.features for n, layer in self.layers.items()})
        return inversion

    def sample(
        self, z, context, steps, schedule, layers, content, styles, weights=(1.0,), gamma=0.75, temperature=1.5,
        negative=None, guidance=1.0, inject="qkv", regions=None,
    ):  # fmt: skip
        """gamma, temperature: one number, or arrays (steps of the inversion, decoder layers). regions: as the engine's."""
        slots = {t: slot for slot, t in enumerate(timesteps(steps))}
        shape = steps, max(self.layers) + 1
        gamma, temperature = np.broadcast_to(gamma, shape), np.broadcast_to(temperature, shape)
        for t, a, b in sampling_moves(schedule, steps):
            slot = slots[t]
            for n in layers:
                _, keys, values = zip(*(style.features[slot][n] for style in styles))
                self.layers[n].injection = Injection(
                    content.features[slot][n][0] if "q" in inject else None,
                    keys if "k" in inject else [None] * len(styles),
                    values if "v" in inject else [None] * len(styles),
                    weights,
                    float(gamma[slot, n]),
                    float(temperature[slot, n]),
                    *([None, None] if regions is None else self.region(regions, n)),
                )
            z = move(z, self.guided(z, t, context, negative, guidance), self.prediction, a, b)
        for layer in self.layers.values():
            layer.injection = None
        return z

    @staticmethod
    def region(regions, layer):
        """The bias (queries, keys of all styles) and the cover of a layer."""
        bias, cover = (torch.from_numpy(regions[name][layer]) for name in ("bias", "cover"))
        of_keys = [torch.from_numpy(keys[layer]) for keys in regions["key_bias"]]
        return torch.cat([of_query[:, None] + of_key for of_query, of_key in zip(bias, of_keys)], dim=1), cover

    @staticmethod
    def adain(content, style, schedule):
        dims = dict(dim=(2, 3), keepdim=True)
        scale = content.std(**dims) + (1e-4 if schedule == "diffusers" else 0)
        return style.std(**dims) * (content - content.mean(**dims)) / scale + style.mean(**dims)

    @staticmethod
    def default_layers(schedule):
        return range(7 if schedule == "diffusers" else 6, 12)

    def transfer(self, content, style, context, steps, schedule, layers=None, adain=True, gamma=0.75, temperature=1.5):
        """Images in, image out."""
        layers = self.default_layers(schedule) if layers is None else layers
        content, style = (self.invert(self.encode(x), context, steps, schedule) for x in (content, style))
        z = content.latents[-1]
        if adain:
            z = self.adain(z, style.latents[-1], schedule)
        z = self.sample(z, context, steps, schedule, layers, content, [style], gamma=gamma, temperature=temperature)
        return self.decode(z, schedule)


# ---------------------------------------------------------------------------------------------------------- images


def smooth_image(height, width, seed):
    """A smooth synthetic image with some edges: (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = sum(
        random.uniform(0.2, 1) * np.sin(2 * np.pi * (random.uniform(-4, 4) * x + random.uniform(-4, 4) * y) + phase)[..., None]
        * random.uniform(-1, 1, 3)
        for phase in random.uniform(0, 2 * np.pi, 5)
    )  # fmt: skip
    waves += np.where((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.06, 0.6, -0.3)[..., None] * random.uniform(-1, 1, 3)
    return np.uint8(np.clip(127.5 + 70 * waves, 0, 255))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
