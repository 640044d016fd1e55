"""The same random model in every format that models come in: what the loaders are compared with.

Written from the engine's names to the others, the opposite direction of the loaders.
"""

import json
import re

import numpy as np
import tiny
from conftest import write_folder
from safetensors.numpy import save_file

FAMILIES = ("1.x", "2.x")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
EXTRAS = {  # that published files hold besides
    "1.x": {
        "betas": (1000,),
        "posterior_mean_coef1": (1000,),
        "sqrt_one_minus_alphas_cumprod": (1000,),
        "model_ema.decay": (),
        "model_ema.diffusion_modelinput_blocks00bias": (32,),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
        "cond_stage_model.logit_scale": (),
    },
    "2.x": {
        "logvar": (1000,),
        "cond_stage_model.model.logit_scale": (),
        "cond_stage_model.model.text_projection": (64, 64),
    },
}


def configuration(family):
    """As small as 32 groups and, in 2.x, heads of 64 allow."""
    config = tiny.config(text=True)
    config["unet"] |= {"channels": [32, 64], "heads": [8, 8], "groups": 32, "context_size": 64, "sample_size": 64}
    config["unet"] |= {"layers_per_block": 2}
    config["vae"] |= {"channels": [32, 64], "groups": 32, "scaling_factor": 0.18215, "layers_per_block": 2}
    config["text"] |= {"channels": 64, "heads": 1, "hidden": 96, "vocabulary": 520, "positions": 77}
    if family == "2.x":
        config["unet"] |= {"channels": [64, 128], "heads": [1, 2], "linear_projection": True}
        config["text"] |= {"activation": "gelu"}
    return config


def arrays(config):
    """{engine's name: float32 array}; numbers that float16 holds exactly, so that all files can hold the same ones."""
    weights = tiny.weights(config)
    return {name: weight["data"].astype(np.float16).astype(np.float32) for name, weight in weights.items()}


def write_diffusers(root, config):
    """A folder with a text encoder and a tokenizer. -> its path"""
    write_folder(root, config)
    text, every = config["text"], arrays(config)
    (root / "context.safetensors").unlink()
    unet = json.loads((root / "unet/config.json").read_text())
    unet["use_linear_projection"] = config["unet"]["linear_projection"]
    files = {
        "unet/config.json": unet,
        "text_encoder/config.json": {
            "model_type": "clip_text_model", "vocab_size": text["vocabulary"], "hidden_size": text["channels"],
            "max_position_embeddings": text["positions"], "intermediate_size": text["hidden"],
            "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"], "hidden_act": text["activation"],
        },
    }  # fmt: skip
    for name, values in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(values))
    write_tokenizer(root / "tokenizer", text["vocabulary"], config["unet"]["linear_projection"])
    for part, stem in STEMS.items():
        save_file(component(every, part), root / part / f"{stem}.safetensors")
    return root


def component(every, part):
    """The arrays of one part by the names that its own file has."""
    prefix = {"text_encoder": "text."}.get(part, f"{part}.")
    inside = {"text_encoder": "text_model."}.get(part, "")
    return {inside + name.removeprefix(prefix): a for name, a in every.items() if name.startswith(prefix)}


def write_tokenizer(folder, vocabulary, pads_with_zero):
    """CLIP's, of single characters; its last two tokens begin and end a text."""
    folder.mkdir()
    characters = [chr(c) for c in range(33, 127)]
    pieces = ["!", *(c for c in characters if c != "!"), *(f"{c}</w>" for c in characters)]
    pieces += [f"unused{i}" for i in range(vocabulary - 2 - len(pieces))] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!" if pads_with_zero else "<|endoftext|>"}))


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def unet_name(name, config):
    """model.diffusion_model.*; blocks are numbered through, samplers included."""
    per_block = config["unet"]["layers_per_block"]
    stem, kind = name.rsplit(".", 1)
    if stem in UNET_ENDS:
        return f"{UNET_ENDS[stem]}.{kind}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", stem):
        what, i, inner = match.groups()
        place = 1 if what == "attentions" else 2 * int(i)
        return f"middle_block.{place}.{RESNET.get(inner, inner) if what == 'resnets' else inner}.{kind}"
    side, level, what, i, inner = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", stem).groups()
    level, i = int(level), int(i)
    if what == "downsamplers":
        return f"input_blocks.{(level + 1) * (per_block + 1)}.0.op.{kind}"
    if what == "upsamplers":
        attends = config["unet"]["attention"][::-1][level]
        return f"output_blocks.{level * (per_block + 1) + per_block}.{2 if attends else 1}.conv.{kind}"
    block = f"input_blocks.{1 + level * (per_block + 1) + i}"
    if side == "up":
        block = f"output_blocks.{level * (per_block + 1) + i}"
    return f"{block}.1.{inner}.{kind}" if what == "attentions" else f"{block}.0.{RESNET[inner]}.{kind}"


def vae_name(name, config):
    levels = len(config["vae"]["channels"])
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    name = name.replace("down_blocks", "down").replace("samplers.0.conv", "sample.conv")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = (
        name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    )
    if match := re.fullmatch(r"(.+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        return f"{match[1]}.mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    return name


def open_clip(every, config):
    """cond_stage_model.model.*: fused projections, and a last layer that nothing uses."""
    found = {}
    for name, array in every.items():
        name = name.removeprefix("text.")
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        name = name.replace("encoder.layers", "transformer.resblocks").replace("final_layer_norm", "ln_final")
        name = name.replace("embeddings.token_embedding", "token_embedding")
        found[name.replace("embeddings.position_embedding.weight", "positional_embedding")] = array
    for i in range(config["text"]["layers"]):
        block = f"transformer.resblocks.{i}"
        for kind in "weight", "bias":
            parts = [found.pop(f"{block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            found[f"{block}.attn.in_proj_{kind}"] = np.concatenate(parts)
    last = f"transformer.resblocks.{config['text']['layers'] - 1}."
    unused = f"transformer.resblocks.{config['text']['layers']}."
    found |= {name.replace(last, unused): array + 1 for name, array in found.items() if name.startswith(last)}
    return {f"cond_stage_model.model.{name}": array for name, array in found.items()}


def ldm(config, family, text_level="text_model."):
    """All arrays by their original names, with what else such files hold."""
    every, found = arrays(config), {}
    for name, array in every.items():
        part, inner = name.split(".", 1)
        if part == "unet":
            found[f"model.diffusion_model.{unet_name(inner, config)}"] = array
        elif part == "vae":
            matrix = re.search(r"attentions.*weight", name) and "norm" not in name
            found[f"first_stage_model.{vae_name(inner, config)}"] = array[..., None, None] if matrix else array
    text = {name: array for name, array in every.items() if name.startswith("text.")}
    if family == "2.x":
        found |= open_clip(text, config)
    else:
        prefix = f"cond_stage_model.transformer.{text_level}"
        found |= {prefix + name.removeprefix("text."): array for name, array in text.items()}
    extras = {name: np.ones(shape, np.float32) for name, shape in EXTRAS[family].items()}
    return found | extras | {"alphas_cumprod": tiny.ALPHAS.astype(np.float32)}
