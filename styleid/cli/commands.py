"""What each command does: everything that needs no model is checked first, then the model is loaded."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styleid import _core, _cuda
from styleid.cli.arguments import TILINGS, arguments_of, read_options
from styleid.files.disk import check_writable
from styleid.images import check_output, load_image, save_image, to_array
from styleid.inversions.inversion import Inversion
from styleid.memory import free_memory
from styleid.method.calls import inject_styles, invert, transfer
from styleid.method.options import Accuracy, Injection, Kept, Mix, Resize, Start, Steps, Storage, Text
from styleid.method.plan import predict_memory, prepare
from styleid.metrics import evaluate
from styleid.models.loading import load_model
from styleid.models.model import Model
from styleid.processors import default_threads
from styleid.study.protocol import evaluate_results, table_text
from styleid.study.sweep import sweep, write_table


def run_transfer(options: argparse.Namespace) -> None:
    """styleid transfer CONTENT STYLE -o OUT"""
    check_output(options.output)
    paths = [options.content, *options.style]
    masks = arguments_of(options, Mix)
    _check_inputs(options, [*paths, *(masks["masks"] or ()), *(masks["style_masks"] or ())])
    settings = arguments_of(options, Steps) | arguments_of(options, Injection)
    resize = read_options(options, Resize)
    chosen = [read_options(options, kind) for kind in (Start, Text, Storage, Accuracy)]
    images, masks = [_open(path) for path in paths], _open_masks(masks, len(options.style))
    model = _load(options)
    _say_recommended(options, model, settings)
    pixels = [prepare(image, model, path, resize) for image, path in zip(images, paths, strict=True)]
    mix = _mix(masks, [one.shape[:2] for one in pixels], resize.how)
    image = transfer(
        pixels[0], [*pixels[1:]], model, **settings, progress=_show_progress(options), options=[*chosen, mix]
    )
    save_image(options.output, image)


def run_invert(options: argparse.Namespace) -> None:
    """styleid invert IMAGE -o FILE"""
    check_writable(options.output)
    _check_inputs(options, [options.image])
    settings = arguments_of(options, Steps) | arguments_of(options, Kept)
    chosen = [read_options(options, kind) for kind in (Text, Storage, Accuracy, Resize)]
    image = _open(options.image)
    model = _load(options)
    invert(image, model, **settings, progress=_show_progress(options), options=chosen).save(options.output)


def run_inject(options: argparse.Namespace) -> None:
    """styleid inject CONTENT STYLE -o OUT"""
    check_output(options.output)
    masks = arguments_of(options, Mix)
    _check_inputs(options, [options.content, *options.style, *(masks["masks"] or ()), *(masks["style_masks"] or ())])
    settings = arguments_of(options, Injection)
    chosen = [read_options(options, kind) for kind in (Start, Text)]
    content, *styles = [Inversion.load(path, mapped=True) for path in (options.content, *options.style)]
    mix = _mix(_open_masks(masks, len(styles)), [one.size for one in (content, *styles)], "crop")
    model = _load(options)
    _say_recommended(options, model, settings | {"layers": content.layers})
    image = inject_styles(content, styles, model, **settings, progress=_show_progress(options), options=[*chosen, mix])
    save_image(options.output, image)


def run_sweep(options: argparse.Namespace) -> None:
    """styleid sweep CONTENTS STYLES -o DIR"""
    text, resize = read_options(options, Text), read_options(options, Resize)
    axes = {name: getattr(options, name) for name in ("gamma", "temperature", "initial")}
    rows = sweep(
        [options.contents],
        [options.styles],
        options.output,
        _load(options),
        **{name: values for name, values in axes.items() if values is not None},
        **arguments_of(options, Steps),
        layers=arguments_of(options, Kept)["layers"],
        size=resize.size,
        resize=resize.how,
        prompt=text.prompt or "",
        negative_prompt=text.negative,
        guidance=text.guidance,
        features=read_options(options, Storage).features,
        progress=_show_progress(options),
    )
    parquet = "and table.parquet" if find_spec("pyarrow") else "(and, where PyArrow is installed, table.parquet)"
    print(f"{len(rows)} images in {options.output}, listed in table.csv {parquet}")


def run_evaluate(options: argparse.Namespace) -> None:
    """styleid evaluate STYLIZED CONTENT STYLE, three images or three folders"""
    networks = options.networks or options.weights is not None
    if Path(options.stylized).is_dir():
        folders = options.stylized, options.content, options.style
        rows = evaluate_results(*folders, networks, options.weights, options.fid, _show_progress(options))
        print(table_text(rows))
        if options.output:
            write_table(options.output, rows)
        return
    stylized = load_image(options.stylized)
    content = load_image(options.content, stylized.shape[:2], options.resize)
    for name, value in evaluate(stylized, content, load_image(options.style), networks, options.weights).items():
        print(f"{name} {value:.6g}")


def run_info(options: argparse.Namespace) -> None:
    """styleid info"""
    engine = _core.info()
    print(f"styleid {_core.__version__}")
    print(f"oneDNN {engine['onednn']} ({engine['onednn_threading']})")
    threads, source = default_threads()
    print(f"CPU: {engine['isa']} (of {', '.join(engine['isas'])})")
    print(f"threads by default: {threads} ({source})")
    print(
        f"bfloat16: {'computed natively' if engine['native_bfloat16'] else 'not native; float32 is the better choice'}"
    )
    print(*_cuda.report(), sep="\n")
    model = _load(options)
    unet = model.config["unet"]
    print(f"model: {model.source}")
    print(f"  computed in {model.dtype} on {model.device}, {model.threads} threads; weights take {model.memory / 1e6:.0f} MB")
    print(f"  images: {model.image_size}x{model.image_size}; others are padded to multiples of {model.image_multiple}")
    print(
        f"  widths {list(unet['channels'])}; predicts {unet['prediction']}; context of {unet['context_size']} numbers"
    )
    print(f"  self-attention in decoder layers {', '.join(map(str, model.attention_layers))}")
    if model.recommended:
        print(f"  recommends {_listing(model.recommended)}")
    print(f"  prompts: {'any' if model.config['text'] else 'the empty one only'}")
    free, whose = free_memory()
    print(f"  a transfer with {options.steps} steps takes {predict_memory(model, steps=options.steps)}")
    print(f"  {free / 1e9:.2f} GB are free {whose}")
    _print_estimate(model, options.steps)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "transfer": run_transfer,
    "invert": run_invert,
    "inject": run_inject,
    "sweep": run_sweep,
    "evaluate": run_evaluate,
    "info": run_info,
}


def _print_estimate(model: Model, steps: int) -> None:
    """Times one evaluation; a transfer is 3 * steps of them, but for a few, and little else."""
    side = model.config["unet"]["sample_size"]
    latents = np.zeros((1, model.config["unet"]["in_channels"], side, side), np.float32)
    model.predict_noise(latents, 1)  # the first one of a size also prepares the engine
    start = time.perf_counter()
    model.predict_noise(latents, 1)
    seconds = time.perf_counter() - start
    print(f"  one evaluation takes {seconds:.2f} s; a transfer with {steps} steps about {3 * steps * seconds:.0f} s")


def _load(options: argparse.Namespace) -> Model:
    return load_model(
        options.model,
        options.dtype,
        options.device,
        threads=options.threads,
        prediction=options.prediction,
        loras=options.lora,
        vae=options.vae,
        tiling=TILINGS[options.tiling],
        ema=options.ema,
    )


def _check_inputs(options: argparse.Namespace, inputs: Sequence[str]) -> None:
    """ValueError where the output would take the place of something that is read."""
    if options.overwrite or not os.path.exists(options.output):
        return
    for path in inputs:
        if os.path.exists(path) and os.path.samefile(path, options.output):
            raise ValueError(f"{options.output}: is read as well; with --overwrite it is replaced")


def _open(path: str) -> Image.Image:
    return Image.fromarray(load_image(path))


def _open_masks(mix: dict[str, Any], count: int) -> dict[str, Any]:
    """The arguments of `Mix`, with images in place of the names of their files. ValueError for another number of them."""
    for name, flag in ("masks", "--mask"), ("style_masks", "--style-mask"):
        if mix[name] is not None and len(mix[name]) != count:
            raise ValueError(f"{flag}: expected {count}, one per style, got {len(mix[name])}")
    opened = {name: mix[name] and [_open(path) for path in mix[name]] for name in ("masks", "style_masks")}
    return mix | opened


def _mix(mix: dict[str, Any], sizes: Sequence[tuple[int, ...]], how: str) -> Mix:
    """Masks are the brightness of images that are cut as those that they belong to, the content and the styles."""

    def brightness(mask: Image.Image, size: tuple[int, ...]) -> NDArray[np.float64]:
        grey: NDArray[np.float64] = to_array(mask, "mask", (size[0], size[1]), how).mean(axis=2) / 255
        return grey

    masks = mix["masks"] and [brightness(mask, sizes[0]) for mask in mix["masks"]]
    style_masks = mix["style_masks"] and [
        brightness(mask, size) for mask, size in zip(mix["style_masks"], sizes[1:], strict=True)
    ]
    return Mix(mix["weights"], masks, style_masks)


def _say_recommended(options: argparse.Namespace, model: Model, settings: dict[str, Any]) -> None:
    own = {name: value for name, value in model.recommended.items() if settings[name] is None}
    if own and not options.quiet:
        print(f"styleid: as the model recommends: {_listing(own)}", file=sys.stderr)


def _listing(settings: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _show_progress(options: argparse.Namespace) -> bool:
    return not options.quiet and sys.stderr.isatty()
