"""The command line: styleid transfer | invert | inject | sweep | evaluate | info."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.disk import check_writable
from styleid.images import RESIZE, Size, check_output, load_image, save_image
from styleid.inversions.file import KEEP, SCHEDULES
from styleid.inversions.inversion import Inversion
from styleid.inversions.recording import FEATURES
from styleid.memory import free_memory, predict_memory
from styleid.method.calls import inject_styles, invert, transfer
from styleid.method.initial import NAMES
from styleid.method.rates import SHAPES, Rate, parse_rate
from styleid.metrics import evaluate
from styleid.models.loading import load_model
from styleid.models.model import Model
from styleid.processors import default_threads
from styleid.study.protocol import evaluate_results, table_text
from styleid.study.sweep import sweep, write_table

OK, USER_ERROR, INTERRUPTED = 0, 2, 130
TILINGS: dict[str, str | bool] = {"auto": "auto", "on": True, "off": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for the user's errors, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.run(options)
    except KeyboardInterrupt:
        print("styleid: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MemoryError as error:
        return _fail(error if str(error) else "not enough memory; try a smaller --size, or --dtype bfloat16")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (ValueError, ImportError) as error:
        return _fail(error)
    return OK


def _fail(error: object) -> int:
    print(f"styleid: error: {error}", file=sys.stderr)
    return USER_ERROR


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"styleid: warning: {message}", file=sys.stderr)


def run_transfer(options: argparse.Namespace) -> None:
    """styleid transfer CONTENT STYLE -o OUT"""
    check_output(options.output)
    model = _load(options)
    content = _load_image(options.content, options, model)
    styles = [_load_image(style, options, model) for style in options.style]
    picture = transfer(
        content,
        [*styles],
        model,
        options.steps,
        options.schedule,
        *_settings(options, model),
        options.adain,
        options.injection,
        _show_progress(options),
        options.weights,
        options.initial,
        options.cache,
        options.prompt,
        options.content_prompt,
        options.style_prompt,
        options.negative_prompt,
        options.guidance,
        masks=_load_masks("--mask", options.mask, [content.shape[:2]] * len(styles), options.resize),
        style_masks=_load_masks(
            "--style-mask", options.style_mask, [style.shape[:2] for style in styles], options.resize
        ),
        features=options.features,
        strength=options.strength,
        refine=options.refine,
        seed=options.seed,
    )
    save_image(options.output, picture)


def _load_masks(
    name: str, paths: Sequence[str] | None, sizes: Sequence[Size], resize: str = "crop"
) -> list[NDArray[np.float64]] | None:
    """One mask per style: the brightness of pictures that are cut as those that they belong to."""
    if paths is None:
        return None
    if len(paths) != len(sizes):
        raise ValueError(f"{name}: expected {len(sizes)}, one per style, got {len(paths)}")
    return [load_image(path, size, resize).mean(axis=2) / 255 for path, size in zip(paths, sizes, strict=True)]


def _settings(options: argparse.Namespace, model: Model) -> tuple[Rate, Rate, list[int] | None]:
    """gamma, temperature and layers: what was asked for, else the model's own recommendation, else the paper's."""
    own: dict[str, Any] = {name: value for name, value in model.recommended.items() if getattr(options, name) is None}
    if own and not options.quiet:
        text = ", ".join(f"{name} {value}" for name, value in own.items())
        print(f"styleid: as the model recommends: {text}", file=sys.stderr)
    gamma = own.get("gamma", 0.75) if options.gamma is None else options.gamma
    temperature = own.get("temperature", 1.5) if options.temperature is None else options.temperature
    return gamma, temperature, own.get("layers") if options.layers is None else options.layers


def run_invert(options: argparse.Namespace) -> None:
    """styleid invert IMAGE -o FILE"""
    check_writable(options.output)
    model = _load(options)
    invert(
        _load_image(options.image, options, model),
        model,
        options.steps,
        options.schedule,
        options.layers,
        options.keep,
        options.prompt,
        _show_progress(options),
        cache=options.cache,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        features=options.features,
        refine=options.refine,
        seed=options.seed,
    ).save(options.output)


def run_inject(options: argparse.Namespace) -> None:
    """styleid inject CONTENT STYLE -o OUT"""
    check_output(options.output)
    model = _load(options)
    gamma, temperature, layers = _settings(options, model)
    content = Inversion.load(options.content, mapped=True)
    styles = [Inversion.load(style, mapped=True) for style in options.style]
    size, *style_sizes = [inversion.image_size(model) for inversion in (content, *styles)]
    picture = inject_styles(
        content,
        styles,
        model,
        gamma,
        temperature,
        options.adain,
        options.injection,
        layers,
        _show_progress(options),
        options.weights,
        options.initial,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        masks=_load_masks("--mask", options.mask, [size] * len(styles)),
        style_masks=_load_masks("--style-mask", options.style_mask, style_sizes),
        strength=options.strength,
    )
    save_image(options.output, picture)


def run_sweep(options: argparse.Namespace) -> None:
    """styleid sweep CONTENTS STYLES -o DIR"""
    rows = sweep(
        [options.contents],
        [options.styles],
        options.output,
        _load(options),
        gamma=options.gamma,
        temperature=options.temperature,
        initial=options.initial,
        steps=options.steps,
        schedule=options.schedule,
        layers=options.layers,
        size=options.size,
        resize=options.resize,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        features=options.features,
        progress=_show_progress(options),
    )
    parquet = "and table.parquet" if find_spec("pyarrow") else "(and, where PyArrow is installed, table.parquet)"
    print(f"{len(rows)} pictures in {options.output}, listed in table.csv {parquet}")


def run_evaluate(options: argparse.Namespace) -> None:
    """styleid evaluate STYLIZED CONTENT STYLE, three pictures or three folders"""
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
    model = _load(options)
    unet = model.config["unet"]
    print(f"model: {model.source}")
    print(f"  computed in {model.dtype} by {model.threads} threads; weights take {model.memory / 1e6:.0f} MB")
    print(
        f"  pictures: {model.image_size}x{model.image_size}; others are padded to multiples of {model.image_multiple}"
    )
    print(
        f"  widths {list(unet['channels'])}; predicts {unet['prediction']}; context of {unet['context_size']} numbers"
    )
    print(f"  self-attention in decoder layers {', '.join(map(str, model.attention_layers))}")
    if model.recommended:
        print(f"  recommends {', '.join(f'{name} {value}' for name, value in model.recommended.items())}")
    print(f"  prompts: {'any' if model.config['text'] else 'the empty one only'}")
    free, whose = free_memory()
    print(f"  a transfer with {options.steps} steps takes {predict_memory(model, steps=options.steps)}")
    print(f"  {free / 1e9:.2f} GB are free {whose}")
    _print_estimate(model, options.steps)


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
        threads=options.threads,
        prediction=options.prediction,
        loras=options.lora,
        vae=options.vae,
        tiling=TILINGS[options.tiling],
        ema=options.ema,
    )


def _load_image(path: str, options: argparse.Namespace, model: Model) -> NDArray[np.uint8]:
    return load_image(path, model.image_size if options.size is None else options.size, options.resize)


def _show_progress(options: argparse.Namespace) -> bool:
    return not options.quiet and sys.stderr.isatty()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for all other errors."""
        self.exit(USER_ERROR, f"styleid: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="styleid",
        description="The style of one picture on the content of another (Chung, Hyun, Heo, CVPR 2024), on the CPU.",
    )
    parser.add_argument("--version", action="version", version=f"styleid {_core.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    picture = "a picture file; see --size and --resize"

    command = commands.add_parser("transfer", help="the whole method: two pictures in, one out")
    command.add_argument("content", metavar="CONTENT", help=picture)
    command.add_argument("style", metavar="STYLE", nargs="+", help=f"{picture}; or several")
    _add_output(command, "the picture to write: .png, .jpg, .webp, .tif or .bmp")
    command.add_argument("--prompt", default="", help="text to invert and sample under (empty, as in the paper)")
    command.add_argument("--content-prompt", help="text to invert the content under (that of --prompt)")
    command.add_argument("--style-prompt", help="text to invert the style under (that of --prompt)")
    _add_guidance(command)
    _add_inversion(command)
    _add_layers(command)
    _add_injection(command)
    _add_cache(command)
    _add_features(command)
    _add_engine(command)
    command.set_defaults(run=run_transfer)

    command = commands.add_parser("invert", help="invert a picture once, to inject it many times")
    command.add_argument("image", metavar="IMAGE", help=picture)
    _add_output(command, "the inversion to write (safetensors)")
    command.add_argument("--keep", choices=KEEP, default="both", help="query: for contents; keys: for styles")
    command.add_argument("--prompt", default="", help="text to invert under; empty as in the paper unless given")
    _add_guidance(command)
    _add_inversion(command)
    _add_layers(command)
    _add_cache(command)
    _add_features(command)
    _add_engine(command)
    command.set_defaults(run=run_invert)

    command = commands.add_parser("inject", help="a picture from two inversions")
    command.add_argument("content", metavar="CONTENT", help="the content's inversion")
    command.add_argument("style", metavar="STYLE", nargs="+", help="the style's inversion, or those of several")
    _add_output(command, "the picture to write: .png, .jpg, .webp, .tif or .bmp")
    command.add_argument("--prompt", help="text to sample under (the content's)")
    _add_guidance(command)
    _add_layers(command)
    _add_injection(command)
    _add_engine(command)
    command.set_defaults(run=run_inject)

    command = commands.add_parser("sweep", help="all contents with all styles and settings; goes on where it stopped")
    command.add_argument("contents", metavar="CONTENTS", help="a folder of pictures, or one picture")
    command.add_argument("styles", metavar="STYLES", help="a folder of pictures, or one picture")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder of the results")
    command.add_argument("--prompt", default="", help="text to invert and sample under (empty, as in the paper)")
    _add_guidance(command)
    _add_inversion(command, refine=False)
    _add_layers(command)
    command.add_argument("--gamma", type=_list, default=["0.75"], help="as for transfer, several with commas (0.75)")
    command.add_argument(
        "--temperature", type=_list, default=["1.5"], help="as for transfer, several with commas (1.5)"
    )
    command.add_argument(
        "--initial", type=_list, default=["adain"], help="as for transfer, several with commas (adain)"
    )
    _add_features(command)
    _add_engine(command)
    command.set_defaults(run=run_sweep)

    command = commands.add_parser("evaluate", help="measures of a result, or of the paper's protocol")
    command.add_argument("stylized", metavar="STYLIZED", help="the result; or the folder of a sweep's results")
    command.add_argument(
        "content", metavar="CONTENT", help="its content, which gets the result's size; or the folder of contents"
    )
    command.add_argument("style", metavar="STYLE", help="its style; or the folder of styles")
    command.add_argument(
        "--networks",
        action="store_true",
        help="also LPIPS and CFSD and, of folders, FID and ArtFID: PyTorch and weights",
    )
    command.add_argument("--weights", metavar="DIR", help="the folder of these weights (found or downloaded otherwise)")
    command.add_argument(
        "--fid",
        choices=("art", "inception"),
        default="art",
        help="the network: ArtFID's, as in the paper (art), or FID's",
    )
    _add_resize(command)
    command.add_argument("-o", "--output", metavar="CSV", help="of folders: the table to write")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run_evaluate)

    command = commands.add_parser("info", help="versions, CPU, the model, and how long a transfer takes")
    command.add_argument("--steps", type=int, default=50, help="of the estimate (50)")
    _add_engine(command)
    command.set_defaults(run=run_info)
    return parser


def _add_output(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=text)


def _add_guidance(command: argparse.ArgumentParser) -> None:
    text = "how much of the prompt, against --negative-prompt (1: the prompt alone)"
    command.add_argument("--guidance", type=float, default=1.0, help=text)
    command.add_argument("--negative-prompt", default="", help="text that --guidance leads away from (empty)")


def _add_inversion(command: argparse.ArgumentParser, refine: bool = True) -> None:
    command.add_argument("--steps", type=int, default=50, help="DDIM steps, 2 to 1000 (50)")
    command.add_argument("--schedule", choices=SCHEDULES, default="paper", help="which timesteps (paper)")
    if refine:
        command.add_argument("--refine", type=int, default=0, metavar="K", help="K more evaluations a step (0)")
        command.add_argument("--seed", type=int, help="of a sample of the VAE's posterior (its mean)")
    command.add_argument("--size", type=_size, help="N, or HEIGHTxWIDTH (the model's native size)")
    _add_resize(command)


def _add_resize(command: argparse.ArgumentParser) -> None:
    text = "crop: the largest centred part; fit: all of it, in its own proportions; stretch: all of it, in those of the size"
    command.add_argument("--resize", choices=RESIZE, default="crop", help=f"how pictures get their size ({text}; crop)")


def _add_injection(command: argparse.ArgumentParser) -> None:
    shapes = f"or FROM:TO:SHAPE, decreasing over the steps, SHAPE one of {', '.join(SHAPES)}"
    command.add_argument(
        "--gamma", type=_rate, help=f"0 to 1: preserves the content's queries (the model's, else 0.75); {shapes}"
    )
    command.add_argument(
        "--temperature", type=_rate, help="above 0: sharpens the attention (the model's, else 1.5); or as for gamma"
    )
    command.add_argument("--weights", type=_numbers, help="with several styles: the share of each, such as 1,3 (equal)")
    for name, picture in (("--mask", "the content"), ("--style-mask", "the style")):
        command.add_argument(
            name,
            metavar="FILE",
            action="append",
            help=f"a picture, bright where in {picture} to inject; with several styles one for each (everywhere)",
        )
    start = command.add_mutually_exclusive_group()
    start.add_argument("--no-adain", dest="adain", action="store_false", help="keep the content's initial latent")
    start.add_argument("--initial", choices=NAMES, help="what the initial latent is made by (adain)")
    command.add_argument(
        "--strength", type=float, default=1.0, help="above 0: the part of the steps that is sampled (1)"
    )
    parts = command.add_mutually_exclusive_group()
    parts.add_argument(
        "--no-injection", dest="injection", action="store_false", default=True, help="touch no attention layer"
    )
    parts.add_argument("--inject", dest="injection", help="what is injected: some letters of qkv (qkv)")


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cache", metavar="DIR", help="a folder that keeps inversions for the next time")


def _add_features(command: argparse.ArgumentParser) -> None:
    text = "where attention features are kept: recompute: nowhere, which takes least memory and more time (memory)"
    command.add_argument("--features", choices=FEATURES, default="memory", help=text)


def _add_layers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--layers", type=_layers, help="decoder layers, such as 6-11 or 7,8,9 (the schedule's)")


def _add_engine(command: argparse.ArgumentParser) -> None:
    model = "a folder, a file, or a name on the hub of a Stable Diffusion model (the small model shipped)"
    command.add_argument("--model", default="default", help=model)
    command.add_argument("--prediction", choices=("epsilon", "v_prediction"), help="for files that do not say")
    command.add_argument(
        "--lora",
        metavar="FILE[:WEIGHT]",
        type=_lora,
        action="append",
        default=[],
        help="a change of the model, merged with a weight (1)",
    )
    command.add_argument("--vae", help="a VAE in place of the model's own: a folder, a file, or a name on the hub")
    command.add_argument(
        "--tiling", choices=TILINGS, default="auto", help="the VAE in tiles (auto: above 768x768 pixels)"
    )
    command.add_argument("--ema", action="store_true", help="running means of the UNet's weights, of a single file")
    command.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    command.add_argument("--threads", type=int, help="threads to compute with (what the process may use: see styleid info)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _lora(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a colon of the path


def _size(text: str) -> Size:
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected N or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _list(text: str) -> list[str]:
    """0.3,0.75"""
    return text.split(",")


def _numbers(text: str) -> list[float]:
    """1,3"""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,3, got {text!r}") from None


def _rate(text: str) -> Rate:
    """0.75, or 0.9:0.5:cosine"""
    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or FROM:TO:SHAPE, got {text!r}: {error}") from None


def _layers(text: str) -> list[int]:
    """6-11, or 7,8,9, or both."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not int(first) <= int(last) < 1000:
            raise argparse.ArgumentTypeError(f"expected numbers such as 6-11 or 7,8,9, got {text!r}")
        layers += range(int(first), int(last) + 1)
    return layers
