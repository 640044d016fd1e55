"""What each command does: everything that needs no model is checked first, then the model is loaded."""

import argparse
import time
from collections.abc import Callable

import numpy as np

from styleid import _core, _cuda
from styleid.cli.common import (
    Latents,
    check_inputs,
    listing,
    load,
    open_image,
    open_masks,
    say_recommended,
    show_progress,
)
from styleid.cli.common import mix as mix_of
from styleid.cli.parser import arguments_of, read_options
from styleid.cli.study_commands import run_evaluate, run_merge, run_reproduce, run_sweep
from styleid.cli.transfer import run_transfer
from styleid.files.disk import check_writable
from styleid.images import Pixels, check_output, save_image
from styleid.inversions.inversion import Inversion
from styleid.memory import free_memory
from styleid.method.calls import inject_styles, invert
from styleid.method.options import Accuracy, Hooks, Injection, Kept, Mix, Resize, Start, Steps, Storage, Text
from styleid.method.plan import predict_memory
from styleid.models.model import Model
from styleid.processors import default_threads


def run_invert(options: argparse.Namespace) -> None:
    """styleid invert IMAGE -o FILE"""
    check_writable(options.output)
    check_inputs(options, [options.image])
    settings = arguments_of(options, Steps) | arguments_of(options, Kept)
    chosen = [read_options(options, kind) for kind in (Text, Storage, Accuracy, Resize)]
    image = open_image(options.image)
    model = load(options)
    invert(image, model, **settings, progress=show_progress(options), options=chosen).save(options.output)


def run_inject(options: argparse.Namespace) -> None:
    """styleid inject CONTENT STYLE -o OUT"""
    check_output(options.output, options.bits)
    masks = arguments_of(options, Mix)
    check_inputs(options, [options.content, *options.style, *(masks["masks"] or ()), *(masks["style_masks"] or ())])
    settings = arguments_of(options, Injection)
    chosen = [read_options(options, kind) for kind in (Start, Text)]
    content, *styles = [Inversion.load(path, mapped=True) for path in (options.content, *options.style)]
    mix = mix_of(open_masks(masks, len(styles)), [one.size for one in (content, *styles)], "crop")
    model = load(options)
    say_recommended(options, model, settings | {"layers": content.layers})
    latents = Latents()
    told = [*chosen, mix, Hooks(on_step=latents if options.bits == 16 else None)]
    image: Pixels = inject_styles(content, styles, model, **settings, progress=show_progress(options), options=told)
    if options.bits == 16:
        image = latents.image(model, image.shape)
    save_image(options.output, image, bits=options.bits)


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
    model = load(options)
    unet = model.config["unet"]
    print(f"model: {model.source}")
    print(
        f"  computed in {model.dtype} on {model.device}, {model.threads} threads; weights take {model.memory / 1e6:.0f} MB"
    )
    print(f"  images: {model.image_size}x{model.image_size}; others are padded to multiples of {model.image_multiple}")
    print(
        f"  widths {list(unet['channels'])}; predicts {unet['prediction']}; context of {unet['context_size']} numbers"
    )
    print(f"  self-attention in decoder layers {', '.join(map(str, model.attention_layers))}")
    if model.recommended:
        print(f"  recommends {listing(model.recommended)}")
    print(f"  prompts: {'any' if model.config['text'] else 'the empty one only'}")
    free, whose = free_memory()
    print(f"  a transfer with {options.steps} steps takes {predict_memory(model, steps=options.steps)}")
    print(f"  {free / 1e9:.2f} GB are free {whose}")
    _print_estimate(model, options.steps)


def run_app(options: argparse.Namespace) -> None:
    """styleid app"""
    from styleid.app import serve  # Gradio takes seconds to import

    serve(options.model or ["default"], options.host, options.port, options.browser)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "transfer": run_transfer,
    "invert": run_invert,
    "inject": run_inject,
    "sweep": run_sweep,
    "evaluate": run_evaluate,
    "app": run_app,
    "merge": run_merge,
    "reproduce": run_reproduce,
    "info": run_info,
}


def _print_estimate(model: Model, steps: int) -> None:
    """Times one evaluation and tells what a transfer takes, which is little else than 3 * steps of them."""
    side = model.config["unet"]["sample_size"]
    latents = np.zeros((1, model.config["unet"]["in_channels"], side, side), np.float32)
    model.predict_noise(latents, 1)  # the first evaluation of a size also prepares the engine
    start = time.perf_counter()
    model.predict_noise(latents, 1)
    seconds = time.perf_counter() - start
    print(f"  one evaluation takes {seconds:.2f} s; a transfer with {steps} steps about {3 * steps * seconds:.0f} s")
