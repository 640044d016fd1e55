"""styleid transfer: one result, or all of several contents and styles."""

import argparse
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.cli.common import Latents, check_inputs, load, mix, open_image, open_masks, say_recommended, show_progress
from styleid.cli.parser import arguments_of, read_options
from styleid.cli.settings import check_model, describe, inputs_like
from styleid.colours import keep_colours
from styleid.files.disk import check_writable, write_whole
from styleid.images import Pixels, check_output, save_image
from styleid.metadata import photograph
from styleid.method.calls import inject_styles, invert, transfer
from styleid.method.options import Accuracy, Hooks, Injection, Mix, Option, Resize, Start, Steps, Storage, Text
from styleid.method.plan import prepare
from styleid.method.preview import Preview
from styleid.models.model import Model
from styleid.study.inputs import list_images

STREAM = "-"


@dataclass(frozen=True)
class Job:
    """One result: its files."""

    content: str
    styles: tuple[str, ...]
    output: str


def run_transfer(options: argparse.Namespace) -> None:
    """styleid transfer CONTENT STYLE -o OUT"""
    with ExitStack() as stack:
        jobs = _jobs(options, stack)
        _check(options, jobs)
        settings = arguments_of(options, Steps) | arguments_of(options, Injection)
        resize, storage = read_options(options, Resize), read_options(options, Storage)
        accuracy = read_options(options, Accuracy)
        told: list[Option] = [*(read_options(options, kind) for kind in (Start, Text)), accuracy]
        images = {path: open_image(path) for job in jobs for path in (job.content, *job.styles)}
        masks = open_masks(arguments_of(options, Mix), len(jobs[0].styles))
        model = load(options)
        if options.like:
            check_model(options.like, model)
        say_recommended(options, model, settings | {"seed": accuracy.seed})
        if len(jobs) > 1 and storage.cache is None:
            storage = replace(storage, cache=stack.enter_context(TemporaryDirectory(prefix="styleid-")))
        for number, job in enumerate(jobs, 1):
            start = time.monotonic()
            paths = (job.content, *job.styles)
            pixels = [prepare(images[path], model, path, resize) for path in paths]
            chosen = [*told, storage, mix(masks, [one.shape[:2] for one in pixels], resize.how)]
            image = _stylize(options, model, pixels, settings, chosen)
            if options.keep_colours:
                image = keep_colours(image, pixels[0])
            _write(options, model, job, image)
            _report(options, job, image, time.monotonic() - start, (number, len(jobs)))


# ---- which results ----


def _jobs(options: argparse.Namespace, stack: ExitStack) -> list[Job]:
    """All results, in the order in which they are made. Raises ValueError where the arguments do not fit each other."""
    words = [options.content, *options.style] if options.content is not None else []
    if not words and options.like:
        words = inputs_like(options.like)
    if len(words) < 2:
        raise ValueError("the following arguments are required: CONTENT, STYLE (see styleid transfer --help)")
    streams = sum(word == STREAM for word in words)
    if streams > 1:
        raise ValueError("-: only one image can come through the input")
    words = [_spool(stack) if word == STREAM else word for word in words]
    contents = _expand(words[0])
    styles = [(style,) for style in _expand(words[1])] if len(words) == 2 else [tuple(words[1:])]
    into_folder = os.path.isdir(options.output) and not Path(options.output).suffix
    if len(contents) * len(styles) == 1 and not into_folder:
        return [Job(contents[0], styles[0], options.output)]
    if options.output == STREAM or Path(options.output).suffix:
        raise ValueError(f"--output: expected a folder for {len(contents) * len(styles)} images, got {options.output}")
    for flag in "preview", "save_latents":
        if getattr(options, flag):
            raise ValueError(
                f"--{flag.replace('_', '-')}: for one result only, and these are {len(contents) * len(styles)}"
            )
    jobs = [
        Job(content, style, str(Path(options.output) / f"{_stem(content)}_{'+'.join(map(_stem, style))}.png"))
        for content in contents
        for style in styles
    ]
    if len({job.output for job in jobs}) < len(jobs):
        raise ValueError("several images have one name: the results would overwrite each other; rename them")
    os.makedirs(options.output, exist_ok=True)
    return jobs


def _expand(word: str) -> list[str]:
    """The images that an argument names: a file, those of a folder, or those that a pattern fits."""
    if os.path.isdir(word):
        return [str(path) for path in list_images(word, word)]
    if os.path.lexists(word) or not glob.has_magic(word):
        return [word]
    found = sorted(glob.glob(word))
    if not found:
        raise ValueError(f"{word}: no file has such a name")
    return found


def _stem(path: str) -> str:
    return Path(path).stem[:100]


def _spool(stack: ExitStack) -> str:
    """The standard input as a file, because it is read more than once."""
    file = stack.enter_context(NamedTemporaryFile(prefix="styleid-"))
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.flush()
    return file.name


def _check(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Raises errors before the work starts that would otherwise come after it."""
    given = arguments_of(options, Mix)
    masks = [*(given["masks"] or ()), *(given["style_masks"] or ())]
    for job in jobs:
        if job.output != STREAM:
            check_output(job.output, options.bits)
            check_inputs(
                argparse.Namespace(output=job.output, overwrite=options.overwrite), [job.content, *job.styles, *masks]
            )
    if options.preview:
        check_output(options.preview)
    if options.save_latents:
        check_writable(options.save_latents)


# ---- one result ----


def _stylize(
    options: argparse.Namespace, model: Model, pixels: list[Any], settings: dict[str, Any], chosen: list[Option]
) -> Pixels:
    latents = Latents()
    if options.preview:
        image = _previewed(options, model, pixels, settings, chosen, latents)
    else:
        hooks = Hooks(on_step=latents if options.save_latents or options.bits == 16 else None)
        content, *styles = pixels
        image = transfer(content, styles, model, **settings, progress=show_progress(options), options=[*chosen, hooks])
    if options.save_latents:
        facts = _core.schedule(model.engine, settings["schedule"], settings["steps"])
        with write_whole(options.save_latents) as file:
            np.savez(file, latents=np.concatenate(latents.seen), timesteps=facts["timesteps"])
    return latents.image(model, image.shape) if options.bits == 16 else image


def _previewed(
    options: argparse.Namespace,
    model: Model,
    pixels: list[Any],
    settings: dict[str, Any],
    chosen: list[Option],
    latents: Latents,
) -> NDArray[np.uint8]:
    """Makes a result by both halves of the method, because previews need the content's inversion."""
    progress = show_progress(options)
    text = next(one for one in chosen if isinstance(one, Text))
    of_invert = [one for one in chosen if isinstance(one, (Storage, Accuracy))]
    of_inject = [one for one in chosen if isinstance(one, (Start, Mix))]
    inverting = {name: settings[name] for name in ("steps", "schedule")}
    layers = settings["layers"]

    def inverted(image: Any, keep: str, prompt: str | None) -> Any:
        told = Text(prompt if prompt is not None else text.prompt)
        return invert(
            image, model, **inverting, layers=layers, keep=keep, progress=progress, options=[told, *of_invert]
        )

    content = inverted(pixels[0], "query", text.content_prompt)
    styles = [inverted(style, "keys", text.style_prompt) for style in pixels[1:]]
    preview = Preview(lambda step, steps, image: save_image(options.preview, image), content, model)

    def on_step(step: int, steps: int, z: NDArray[np.float32]) -> None:
        latents(step, steps, z)
        preview(step, steps, z)

    told = [Text(text.prompt or "", text.negative, text.guidance), Hooks(on_step=on_step), *of_inject]
    injecting = {name: value for name, value in settings.items() if name not in inverting}
    return inject_styles(content, styles, model, **injecting, progress=progress, options=told)


def _write(options: argparse.Namespace, model: Model, job: Job, image: Pixels) -> None:
    paths = [job.content, *job.styles]
    metadata = replace(photograph(job.content), settings=describe(options, model, paths))
    if job.output != STREAM:
        save_image(job.output, image, metadata, options.bits)
        return
    with TemporaryDirectory(prefix="styleid-") as folder:
        path = Path(folder) / "image.png"
        save_image(path, image, metadata, options.bits)
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()


def _report(options: argparse.Namespace, job: Job, image: Pixels, seconds: float, counted: tuple[int, int]) -> None:
    stream = sys.stderr if job.output == STREAM else sys.stdout
    height, width = image.shape[:2]
    if options.json:
        row = {"output": job.output, "content": job.content, "styles": list(job.styles)}
        print(
            json.dumps(row | {"width": width, "height": height, "seconds": round(seconds, 3)}), file=stream, flush=True
        )
    elif not options.quiet:
        which = f" ({counted[0]} of {counted[1]})" if counted[1] > 1 else ""
        print(f"wrote {job.output}{which}: {width} x {height} pixels in {seconds:.1f} s", file=stream, flush=True)
