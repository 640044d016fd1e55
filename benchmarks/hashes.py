"""Prints the SHA-256 of what the engine computes, so that a change that must keep the bytes can show that it does:
`python -m benchmarks.hashes > before.txt`, the change, the same again, `diff`. About two minutes; the two sides have to run
on one machine, with one STYLEID_ISA, with the same oneDNN.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np

import styleid
from styleid import _core
from tests import tiny

STEPS = 5
SD_UNET = {
    "in_channels": 4, "out_channels": 4, "channels": [320, 640, 1280, 1280], "heads": [8, 8, 8, 8],
    "attention": [True, True, True, False], "layers_per_block": 2, "linear_projection": False, "context_size": 768,
    "groups": 32, "eps": 1e-5, "prediction": "epsilon", "sample_size": 64,
}  # fmt: skip
SD_VAE = {
    "image_channels": 3, "latent_channels": 4, "channels": [128, 256, 512, 512], "layers_per_block": 2, "groups": 32,
    "scaling_factor": 0.18215, "mid_attention": True, "quant_conv": True, "post_quant_conv": True,
}  # fmt: skip
SD_TEXT = {
    "vocabulary": 200, "positions": 77, "channels": 768, "hidden": 3072, "layers": 2, "heads": 12,
    "activation": "quick_gelu",
}  # fmt: skip
DTYPES = ("float32", "bfloat16")
PAPER = {"gamma": 0.75, "temperature": 1.5}  # whatever the default model recommends


def show(name, *arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    print(digest.hexdigest()[:32], name, flush=True)


def image(seed, height=128, width=128):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def noise(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def transfers(dtype):
    """The default model, along every way through the engine."""
    whole = styleid.load_model(dtype=dtype, threads=2)
    tiled = styleid.load_model(dtype=dtype, threads=2, tiling=True)
    content, style, other, wide = image(1), image(2), image(3), image(4, 128, 192)
    half = np.zeros((2, 128, 128), np.float32)
    half[0, :, :64] = half[1, :, 64:] = 1

    def report(name, *images, model=whole, **arguments):
        if arguments.get("inject", True) is not False:
            arguments = PAPER | arguments
        show(f"{dtype} {name}", styleid.transfer(*images, model, steps=STEPS, **arguments))

    report("transfer", content, style)
    report("no AdaIN", content, style, adain=False)
    report("diffusers' schedule", content, style, schedule="diffusers", gamma=0.3, temperature=1.2)
    report("corrected schedule", content, style, schedule="corrected")
    report("two sizes", content, wide)
    report("two styles", content, [style, other], options=styleid.Mix([1, 3]))
    report("masks", content, [style, other], options=styleid.Mix(masks=list(half)))
    report("a style's mask", content, style, options=styleid.Mix(style_masks=[half[0]]))
    report("recompute", content, style, options=styleid.Storage("recompute"))
    report("keys alone", content, style, inject="k", gamma=None)
    report("values and queries", content, style, inject="qv")
    report("no injection", content, style, inject=False)
    report("strength", content, style, options=styleid.Start(strength=0.6))
    report("refine", content, style, options=styleid.Accuracy(refine=1))
    report("seed", content, style, options=styleid.Accuracy(seed=1))
    report("tiles", image(5, 704, 192), style, model=tiled, layers=[7, 8])
    inversions(dtype, whole, content, style)


def inversions(dtype, model, content, style):
    first = styleid.invert(content, model, steps=STEPS)
    second = styleid.invert(style, model, steps=STEPS, options=styleid.Storage(dtype="bfloat16"))
    step, layer = 2, first.layers[0]
    show(
        f"{dtype} inversion", first.latents, first.query(step, layer), first.key(step, layer), first.value(step, layer)
    )
    show(f"{dtype} features of another dtype", styleid.inject_styles(first, second, model, **PAPER))
    with tempfile.TemporaryDirectory() as folder:
        for name, inversion in (("content", first), ("style", second)):
            inversion.save(Path(folder, name))
        loaded = [styleid.Inversion.load(Path(folder, name), mapped=True) for name in ("content", "style")]
        show(f"{dtype} features from disk", styleid.inject_styles(*loaded, model, **PAPER))
    show(
        f"{dtype} a hook",
        styleid.inject_styles(first, second, model, **PAPER, options=styleid.Hooks(on_attention=negate)),
    )


def negate(step, layer, query, key, value):
    return -query, -key, value


def guided(dtype):
    """A small model with prompts."""
    model = tiny.model(text=True, dtype=dtype, threads=2)
    context = model.encode_tokens(np.arange(10, dtype=np.int32).reshape(2, 5))
    show(f"{dtype} small text", context)
    found = tiny.invert(model, latents=tiny.latents(2, 8, 8), keep=("both", "both"), negative=context[:1], guidance=3.0)
    arguments = tiny.sample_arguments(found[0]) | {"styles": found}
    arguments |= {"weights": [1.0, 2.0], "negative": context[:1], "guidance": 5.0}
    show(f"{dtype} guidance", _core.sample(model, **arguments))


def sd_weights():
    """Random ones in float16 of Stable Diffusion 1.x's size, its text encoder cut to two layers."""
    random = np.random.default_rng(0)
    weights = {}
    for name, shape in tiny.shapes(sd_config()).items():
        values = random.random(shape, np.float32)
        values -= 0.5
        if len(shape) > 1:
            values *= np.float32(np.sqrt(12 / np.prod(shape[1:])))
        elif "norm" in name and name.endswith("weight"):
            values += 1
        weights[name] = {"dtype": "F16", "shape": list(shape), "data": values.astype(np.float16)}
    return weights


def sd_config():
    return {"unet": SD_UNET, "vae": SD_VAE, "text": SD_TEXT, "alphas": tiny.ALPHAS}


def full_size(dtype, weights):
    model = _core.Model(sd_config(), weights, dtype, 2)
    context = model.encode_tokens(np.arange(77, dtype=np.int32)[None])
    show(f"{dtype} text", context)
    for n, side in ((1, 64), (2, 32), (1, 24)):
        show(f"{dtype} UNet, {n} of {side}x{side}", model.predict_noise(noise(n, 4, side, side), 500, context))
    show(f"{dtype} UNet, two contexts", model.predict_noise(noise(2, 4, 16, 16), 1, noise(2, 77, 768)))
    pixels = image(6, 256, 256)[None]
    show(f"{dtype} encode", model.encode(pixels), model.log_variance(pixels))
    show(f"{dtype} decode", model.decode_float(noise(1, 4, 32, 32)), model.decode_float(noise(2, 4, 9, 7)))
    del model


def main():
    weights = sd_weights()
    for dtype in DTYPES:
        full_size(dtype, weights)
    del weights
    for dtype in DTYPES:
        transfers(dtype)
        guided(dtype)


if __name__ == "__main__":
    main()
