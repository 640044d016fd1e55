"""A small model of random weights in pure NumPy, for tests that need a model but not PyTorch.

Names and shapes are those of diffusers' UNet2DConditionModel and AutoencoderKL and of transformers' CLIPTextModel.
"""

import numpy as np

from styleid import _core

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
TOKENS = 5  # of CONTEXT


def config(text=False):
    """Two levels, the lower one without attention: of the decoder's layers 0 to 3, 2 and 3 have attention."""
    return {
        "unet": {
            "in_channels": 4,
            "out_channels": 4,
            "channels": [16, 32],
            "heads": [2, 4],
            "attention": [True, False],
            "layers_per_block": 1,
            "linear_projection": False,
            "context_size": 24,
            "groups": 8,
            "eps": 1e-5,
            "prediction": "epsilon",
            "sample_size": 8,
        },
        "vae": {
            "image_channels": 3,
            "latent_channels": 4,
            "channels": [8, 16],
            "layers_per_block": 1,
            "groups": 4,
            "scaling_factor": 0.5,
            "mid_attention": True,
            "quant_conv": True,
            "post_quant_conv": True,
        },
        "text": {
            "vocabulary": 50,
            "positions": 7,
            "channels": 24,
            "hidden": 48,
            "layers": 2,
            "heads": 2,
            "activation": "quick_gelu",
        }
        if text
        else None,
        "alphas": ALPHAS,
    }


# ------------------------------------------------------------------------------------------------- names and shapes


def norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def linear(name, inputs, outputs, bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def conv(name, inputs, outputs, size=3):
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def resnet(name, inputs, outputs, time=0):
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs)
    if time:
        shapes |= linear(f"{name}.time_emb_proj", time, outputs)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        shapes |= conv(f"{name}.conv_shortcut", inputs, outputs, 1)
    return shapes


def transformer(name, channels, context, linear_projection):
    def project(end):
        return linear(end, channels, channels) if linear_projection else conv(end, channels, channels, 1)

    block = f"{name}.transformer_blocks.0"
    shapes = norm(f"{name}.norm", channels) | project(f"{name}.proj_in") | project(f"{name}.proj_out")
    for attention, source in (("attn1", channels), ("attn2", context)):
        shapes |= linear(f"{block}.{attention}.to_q", channels, channels, bias=False)
        shapes |= linear(f"{block}.{attention}.to_k", source, channels, bias=False)
        shapes |= linear(f"{block}.{attention}.to_v", source, channels, bias=False)
        shapes |= linear(f"{block}.{attention}.to_out.0", channels, channels)
    for number in (1, 2, 3):
        shapes |= norm(f"{block}.norm{number}", channels)
    shapes |= linear(f"{block}.ff.net.0.proj", channels, 8 * channels)
    return shapes | linear(f"{block}.ff.net.2", 4 * channels, channels)


def unet_shapes(c):
    widths, per_block, time = c["channels"], c["layers_per_block"], 4 * c["channels"][0]

    def maybe_transformer(name, level):
        has_one = c["attention"][level]
        return transformer(name, widths[level], c["context_size"], c["linear_projection"]) if has_one else {}

    shapes = conv("conv_in", c["in_channels"], widths[0])
    shapes |= linear("time_embedding.linear_1", widths[0], time) | linear("time_embedding.linear_2", time, time)
    skips, channels = [widths[0]], widths[0]
    for level, width in enumerate(widths):
        block = f"down_blocks.{level}"
        for i in range(per_block):
            shapes |= resnet(f"{block}.resnets.{i}", channels, width, time)
            shapes |= maybe_transformer(f"{block}.attentions.{i}", level)
            channels = width
            skips.append(channels)
        if level < len(widths) - 1:
            shapes |= conv(f"{block}.downsamplers.0.conv", channels, channels)
            skips.append(channels)
    for i in (0, 1):
        shapes |= resnet(f"mid_block.resnets.{i}", channels, channels, time)
    shapes |= transformer("mid_block.attentions.0", channels, c["context_size"], c["linear_projection"])
    for number, level in enumerate(reversed(range(len(widths)))):
        block = f"up_blocks.{number}"
        for i in range(per_block + 1):
            shapes |= resnet(f"{block}.resnets.{i}", channels + skips.pop(), widths[level], time)
            shapes |= maybe_transformer(f"{block}.attentions.{i}", level)
            channels = widths[level]
        if level:
            shapes |= conv(f"{block}.upsamplers.0.conv", channels, channels)
    return shapes | norm("conv_norm_out", channels) | conv("conv_out", channels, c["out_channels"])


def vae_middle(name, channels, attention):
    shapes = resnet(f"{name}.resnets.0", channels, channels) | resnet(f"{name}.resnets.1", channels, channels)
    if attention:
        shapes |= norm(f"{name}.attentions.0.group_norm", channels)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= linear(f"{name}.attentions.0.{part}", channels, channels)
    return shapes


def vae_half(name, c, inputs, outputs, widths, block, per_block, sampler):
    """The encoder or, with the middle first and the levels the other way round, the decoder."""
    middle = vae_middle(f"{name}.mid_block", c["channels"][-1], c["mid_attention"])
    shapes = conv(f"{name}.conv_in", inputs, widths[0]) | middle
    channels = widths[0]
    for level, width in enumerate(widths):
        for i in range(per_block):
            shapes |= resnet(f"{name}.{block}.{level}.resnets.{i}", channels, width)
            channels = width
        if level < len(widths) - 1:
            shapes |= conv(f"{name}.{block}.{level}.{sampler}.0.conv", channels, channels)
    return shapes | norm(f"{name}.conv_norm_out", channels) | conv(f"{name}.conv_out", channels, outputs)


def vae_shapes(c):
    latent, widths, per_block = c["latent_channels"], c["channels"], c["layers_per_block"]
    shapes = vae_half("encoder", c, c["image_channels"], 2 * latent, widths, "down_blocks", per_block, "downsamplers")
    shapes |= vae_half(
        "decoder", c, latent, c["image_channels"], widths[::-1], "up_blocks", per_block + 1, "upsamplers"
    )
    if c["quant_conv"]:
        shapes |= conv("quant_conv", 2 * latent, 2 * latent, 1)
    if c["post_quant_conv"]:
        shapes |= conv("post_quant_conv", latent, latent, 1)
    return shapes


def text_shapes(c):
    channels = c["channels"]
    shapes = {
        "embeddings.token_embedding.weight": (c["vocabulary"], channels),
        "embeddings.position_embedding.weight": (c["positions"], channels),
    }
    for i in range(c["layers"]):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", channels, channels)
        shapes |= norm(f"{layer}.layer_norm1", channels) | norm(f"{layer}.layer_norm2", channels)
        shapes |= linear(f"{layer}.mlp.fc1", channels, c["hidden"]) | linear(f"{layer}.mlp.fc2", c["hidden"], channels)
    return shapes | norm("final_layer_norm", channels)


def shapes(configuration):
    """{name: shape} of all weights of a model."""
    parts = {"unet": unet_shapes, "vae": vae_shapes, "text": text_shapes}
    return {
        f"{part}.{name}": shape
        for part, list_shapes in parts.items()
        if configuration[part] is not None
        for name, shape in list_shapes(configuration[part]).items()
    }


# ----------------------------------------------------------------------------------------------------------- models


def weight(array):
    return {"dtype": "F32", "shape": list(array.shape), "data": array}


def weights(configuration, seed=0):
    """Random ones that keep the activations' size: matrices by their fan-in, norms' scales about 1."""
    random = np.random.default_rng(seed)

    def make(name, shape):
        values = random.standard_normal(shape, np.float32)
        if len(shape) > 1:
            return values / np.sqrt(np.float32(np.prod(shape[1:])))
        return 0.1 * values + np.float32("norm" in name and name.endswith("weight"))

    return {name: weight(make(name, shape)) for name, shape in shapes(configuration).items()}


def model(text=False, **options):
    configuration = config(text)
    return _core.Model(configuration, weights(configuration), **options)


def latents(n=1, height=4, width=4, seed=1):
    return np.random.default_rng(seed).standard_normal((n, 4, height, width), np.float32)


# ------------------------------------------------------------------------------------ good arguments for the module

STEPS = 3
LAYERS = (2, 3)
CONTEXT = np.random.default_rng(2).standard_normal((1, TOKENS, 24), np.float32)
STRENGTHS = np.ones((STEPS, 4), np.float32)  # (steps, decoder layers)


def invert(model, **changes):
    arguments = {
        "latents": latents(),
        "context": CONTEXT,
        "steps": STEPS,
        "schedule": "diffusers",
        "layers": LAYERS,
        "keep": ("both",),
        "feature_dtype": "float32",
    }
    return _core.invert(model, **(arguments | changes))


def sample_arguments(inversion):
    return {
        "latent": inversion["latents"][-1:],
        "context": CONTEXT,
        "steps": STEPS,
        "schedule": "diffusers",
        "layers": LAYERS,
        "content": inversion,
        "styles": [inversion],
        "weights": [1.0],
        "gamma": STRENGTHS,
        "temperature": STRENGTHS,
    }


def random_image(height=8, width=8):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def transfer_arguments():
    return {
        "content": random_image(),
        "style": random_image(),
        "context": CONTEXT,
        "steps": STEPS,
        "schedule": "diffusers",
        "layers": LAYERS,
        "gamma": STRENGTHS,
        "temperature": STRENGTHS,
    }


def filled(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array
