"""The method on images: invert, inject_styles, and transfer = inject_styles(invert, invert).

Chung, Hyun, Heo: Style Injection in Diffusion, CVPR 2024. The steps themselves are in the engine, csrc/style.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.images import ImageLike, Pixels, padded_size
from styleid.inversions.cache import Cache, key_of
from styleid.inversions.file import KEEP
from styleid.inversions.inversion import Inversion
from styleid.inversions.recording import Recipe, run_inversions
from styleid.memory import check_memory, of_inversion, of_transfer
from styleid.method import initial as initial_latents
from styleid.method.masks import Float64, over_padding, pixel_shares, regions, visible
from styleid.method.options import (
    PARTS,
    Accuracy,
    Chosen,
    Hooks,
    Injection,
    Kept,
    Mix,
    OnStep,
    Options,
    Resize,
    Start,
    Steps,
    Storage,
    Text,
)
from styleid.method.plan import (
    Allowed,
    Sampling,
    default_layers,
    listed,
    model_of,
    named,
    plan_inversion,
    plan_sampling,
    prepare,
    prompt_of,
    without,
)
from styleid.method.rates import LayersByStep, Rate
from styleid.models.model import Model
from styleid.progress import Progress, Report, part, reporter

INVERT = Text, Storage, Hooks, Accuracy, Resize
INJECT = Text, Mix, Start, Hooks
TRANSFER = Text, Mix, Start, Storage, Hooks, Accuracy, Resize


def invert(
    image: ImageLike,
    model: Model | None = None,
    *,
    steps: int = 50,
    schedule: str = "paper",
    layers: Iterable[int] | None = None,
    keep: str = "both",
    progress: Progress = None,
    options: Options = (),
) -> Inversion:
    r"""Inverts an image by DDIM and keeps attention features on the way (steps 1 and 2 of the method).

    At every evaluation the noise estimate e moves the latent z from its level a to z' at the next level b:

    $$x_0 = (z - \sqrt{1 - a} e) / \sqrt{a}$$

    $$z' = \sqrt{b} x_0 + \sqrt{1 - b} e$$

    Args:
        image: an array (H, W, 3), (H, W) or (H, W, 4), uint8, uint16 or floating point in [0, 1]; a PIL.Image; or the
            path of a file. Arrays keep their size, the others get the model's native one, see `styleid.Resize`
        model: what `styleid.load_model` returned; None: the default model
        steps: evaluations, 2 to 1000
        schedule: which timesteps they are at: "paper", "diffusers" or "corrected", see docs/algorithm.md
        layers: decoder layers to keep features of. None: those that the model recommends, else those that the schedule
            injects (paper: 6-11)
        keep: "both", "query" (enough for a content), "keys" (keys and values: enough for a style) or "none"
        progress: True for a bar that counts evaluations, False for none, None for one in a terminal or a notebook only,
            or a function that is called with (step, total)
        options: one option or a list of options: `styleid.Text` (prompts), `Storage` (where features are, a cache),
            `Hooks`, `Accuracy`, `Resize`

    Returns:
        the latents of all steps, float32 (steps + 1, C, h, w), with the features

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
        MemoryError: it would take more memory than is free, see `styleid.predict_memory`
        OSError: the disk is full, or there is another obstacle to a file
    """
    chosen, evaluated, kept = Chosen(options, "invert", INVERT), Steps(steps, schedule), Kept(layers, keep)
    text = without(chosen.get(Text), "content_prompt", "style_prompt")
    model = model_of(model)
    prompt = prompt_of(model, text, text.prompt or "")
    recipe = plan_inversion(model, evaluated, kept.layers, prompt, chosen, chosen.get(Hooks))
    pixels = prepare(image, model, "image", chosen.get(Resize))
    with reporter(progress, "inversion") as report:
        return _invert_one(recipe, pixels, keep, chosen.get(Storage), report)


def inject_styles(
    content: Inversion,
    style: Inversion | list[Inversion] | tuple[Inversion, ...],
    model: Model | None = None,
    *,
    gamma: Rate | None = None,
    temperature: Rate | None = None,
    layers: LayersByStep | None = None,
    adain: bool = True,
    inject: bool | str = True,
    progress: Progress = None,
    options: Options = (),
) -> NDArray[np.uint8]:
    r"""Samples an image from two inversions: the content's, with the style's injected (steps 3 to 5 of the method).

    The sampling starts from AdaIN of the content's and the style's latents zT, with means and standard deviations of
    each channel:

    $$z_T = \mathrm{std}(z_T^s) (z_T^c - \mathrm{mean}(z_T^c)) / \mathrm{std}(z_T^c) + \mathrm{mean}(z_T^s)$$

    In the chosen layers, at every timestep t, the attention with heads of d channels becomes, with `gamma` and
    `temperature`,

    $$\tilde{Q} = \gamma Q_t^c + (1 - \gamma) Q_t^{cs}$$

    $$\mathrm{softmax}(\mathrm{temperature} \cdot \tilde{Q} (K_t^s)^T / \sqrt{d}) V_t^s$$

    where $Q_t^c$ is the query that the content's inversion kept, $Q_t^{cs}$ the sampling's own, and $K_t^s$ and $V_t^s$ are the
    style's key and value.

    Args:
        content: an inversion that kept queries, if they are injected
        style: an inversion that kept keys and values, if they are injected, or several: then queries attend to the keys
            of all. The sizes of the images may differ
        model: the model of all inversions; None: the one that made `content`, or the default one if it was loaded
        gamma: 0 to 1, how much of the content's queries is preserved: one number; an array that broadcasts to
            (steps, decoder layers), in the order of the inversion's timesteps; or a function of (fraction, layer),
            where fraction goes from 0 at the largest timestep to 1 at the smallest, such as `styleid.decreasing` makes.
            None: what the model recommends, else the paper's 0.75
        temperature: above 0, sharpens the attention: given as gamma is. None: what the model recommends, else 1.5
        layers: decoder layers to inject into; None: those that `content` was inverted with. By step: a bool array that
            broadcasts to (steps, decoder layers), or a function of (fraction, layer), as for gamma
        adain: False: start from the content's zT as it is
        inject: True: queries of the content, keys and values of the style; False: no layer is touched; or a string of
            those letters of "qkv" that are injected, such as "kv" (as with gamma 0) or "v". What is not injected stays
            the layer's own. With keys or values alone, the style must have as many tokens as the content
        progress: True for a bar that counts evaluations, False for none, None for one in a terminal or a notebook only,
            or a function that is called with (step, total)
        options: one option or a list of options: `styleid.Text` (prompts), `Mix` (weights and masks of styles), `Start`
            (the initial latent), `Hooks`

    Returns:
        (H, W, 3) uint8 of the content's size

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; also for inversions of different
            models, schedules or numbers of steps
        MemoryError: it would take more memory than is free, see `styleid.predict_memory`
    """
    chosen = Chosen(options, "inject_styles", INJECT)
    injection = Injection(gamma, temperature, layers, adain, inject)
    text = without(chosen.get(Text), "content_prompt", "style_prompt")
    styles = listed(style)
    _check_inversions(content, styles)
    model = model_of(model or content.model)
    for name, inversion in [("content", content), *named("style", styles)]:
        inversion.check_model(model, name)
    known = content.context if text.prompt is None else None
    prompt = prompt_of(model, text, content.prompt if text.prompt is None else text.prompt, known)
    allowed = Allowed(content.layers, content.layers)
    sampling = plan_sampling(
        model, Steps(content.steps, content.schedule), injection, allowed, prompt, chosen, len(styles)
    )
    check_memory(of_inversion(model, content.size, content.steps, (), 0, model.dtype), model, "this sampling")
    with reporter(progress, "sampling") as report:
        return _sample(sampling, content, styles, report)


def transfer(
    content: ImageLike,
    style: ImageLike | list[ImageLike] | tuple[ImageLike, ...],
    model: Model | None = None,
    *,
    steps: int = 50,
    schedule: str = "paper",
    gamma: Rate | None = None,
    temperature: Rate | None = None,
    layers: LayersByStep | None = None,
    adain: bool = True,
    inject: bool | str = True,
    progress: Progress = None,
    options: Options = (),
) -> NDArray[np.uint8]:
    """Gives the content image the style of another image, or of several: the whole method.

    The result is that of `inject_styles(invert(content), invert(style))`, whose documentation has the equations. One
    style of the content's size is inverted in one batch with it.

    Args:
        content: an array (H, W, 3), (H, W) or (H, W, 4), uint8, uint16 or floating point in [0, 1]; a PIL.Image; or the
            path of a file. Arrays keep their size, the others get the model's native one, see `styleid.Resize`
        style: the same, or several in a list
        model: what `styleid.load_model` returned; None: the default model
        steps: evaluations of each inversion, 2 to 1000
        schedule: which timesteps they are at: "paper", "diffusers" or "corrected", see docs/algorithm.md
        gamma: 0 to 1, how much of the content's queries is preserved: a number, an array (steps, decoder layers) or a
            function of (fraction, layer), see `inject_styles`. None: what the model recommends, else the paper's 0.75
        temperature: above 0, sharpens the attention: given as gamma is. None: what the model recommends, else 1.5
        layers: decoder layers to inject into, or which of them at which step, see `inject_styles`. None: those that the
            model recommends, else the schedule's (paper: 6-11)
        adain: False: start from the content's zT as it is, and not from its AdaIN with the style's
        inject: True, False for no layer, or a string of those letters of "qkv" that are injected
        progress: True for a bar that counts evaluations, False for none, None for one in a terminal or a notebook only,
            or a function that is called with (step, total)
        options: one option or a list of options: `styleid.Text` (prompts), `Mix` (weights and masks of styles), `Start`
            (the initial latent), `Storage` (where features are, a cache), `Hooks` (of the sampling), `Accuracy`, `Resize`

    Returns:
        (H, W, 3) uint8 of the content's size

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
        MemoryError: it would take more memory than is free, see `styleid.predict_memory`
        OSError: a file cannot be read or written
    """
    chosen, evaluated = Chosen(options, "transfer", TRANSFER), Steps(steps, schedule)
    injection = Injection(gamma, temperature, layers, adain, inject)
    styles: list[ImageLike] = listed(style)
    model = model_of(model)
    facts = _core.schedule(model.engine, schedule, steps)
    text, resize, storage = chosen.get(Text), chosen.get(Resize), chosen.get(Storage)
    own = text.prompt or ""
    allowed = Allowed(model.attention_layers, default_layers(model, facts))
    sampling = plan_sampling(model, evaluated, injection, allowed, prompt_of(model, text, own), chosen, len(styles))
    texts = [own if other is None else other for other in (text.content_prompt, text.style_prompt)]
    recipes = [
        plan_inversion(model, evaluated, sampling.layers, prompt_of(model, Text(), one), chosen, Hooks())
        for one in texts
    ]
    images = [(prepare(content, model, "content", resize), "query")]
    images += [(prepare(one, model, name, resize), "keys") for name, one in named("style", styles)]
    sizes = [pixels.shape[:2] for pixels, _ in images]
    need = of_transfer(model, sizes[0], sizes[1:], steps, sampling.layers, recipes[0].feature_dtype, storage.features)
    check_memory(need, model, "this transfer", storage.features)
    with reporter(progress, "transfer") as report:
        total = len(images) * steps + sampling.evaluations
        together = len(styles) == 1 and storage.cache is None and texts[0] == texts[1]
        if together and len({padded_size(size, model.image_multiple) for size in sizes}) == 1:
            inversions = _invert_batch(recipes[0], images, part(report, 0, total, weight=2))
        else:
            inversions = [
                _invert_one(recipes[min(i, 1)], pixels, keep, storage, part(report, i * steps, total))
                for i, (pixels, keep) in enumerate(images)
            ]
        return _sample(sampling, inversions[0], inversions[1:], part(report, len(images) * steps, total))


# ---- inversions ----


def _invert_batch(recipe: Recipe, images: Sequence[tuple[Pixels, str]], report: Report) -> list[Inversion]:
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile(prefix="styleid-")) for _ in images if recipe.features == "disk"]
        return run_inversions(recipe, images, files, report)


def _invert_one(recipe: Recipe, pixels: Pixels, keep: str, storage: Storage, report: Report) -> Inversion:
    """Out of the cache, if there is one and it has it."""

    def run(file: BinaryIO | None) -> Inversion:
        size, kinds = pixels.shape[:2], len(KEEP[keep])
        need = of_inversion(
            recipe.model, size, recipe.steps, recipe.layers, kinds, recipe.feature_dtype, recipe.features
        )
        check_memory(need, recipe.model, "this inversion", recipe.features)
        if file is None:
            return _invert_batch(recipe, [(pixels, keep)], report)[0]
        return run_inversions(recipe, [(pixels, keep)], [file], report)[0]

    if storage.cache is None:
        return run(None)
    store = storage.cache if isinstance(storage.cache, Cache) else Cache(storage.cache)
    return store.get(key_of(pixels, recipe.model, recipe.settings(keep)), recipe.model, run, recipe.features == "disk")


def _check_inversions(content: Inversion, styles: Sequence[Inversion]) -> None:
    """Whether these are inversions, and made alike."""
    for name, inversion in [("content", content), *named("style", styles)]:
        if not isinstance(inversion, Inversion):
            raise TypeError(f"{name}: expected an Inversion, got {type(inversion).__name__}")
        for what in "fingerprint", "schedule", "steps":
            theirs, ours = getattr(inversion, what), getattr(content, what)
            if theirs != ours:
                raise ValueError(f"{name}: its {what} is {theirs}, but content's is {ours}; they must be the same")


# ---- sampling ----


def _sample(sampling: Sampling, content: Inversion, styles: Sequence[Inversion], report: Report) -> NDArray[np.uint8]:
    model, prompt, parts = sampling.model, sampling.prompt, sampling.parts
    _check_kept(sampling, content, styles)
    masks = [over_padding(mask, content.size, model) for mask in sampling.masks]
    style_masks = [over_padding(mask, one.size, model) for mask, one in zip(sampling.style_masks, styles, strict=True)]
    sizes = [one.latent_size for one in styles]
    image = _core.inject_styles(
        model.engine, _initial_latent(sampling, content, styles, masks, style_masks), prompt.context, sampling.steps,
        sampling.schedule, sampling.layers, content.data, [one.data for one in styles], sampling.shares, sampling.gamma,
        sampling.temperature, report, _releasing(sampling.hooks.on_step, [content, *styles]), prompt.negative_context,
        prompt.guidance, inject=parts,
        regions=regions(model, sampling.layers, masks, content.latent_size, style_masks, sizes),
        on_attention=sampling.hooks.on_attention, watched=sampling.watched, skip=sampling.skip, where=sampling.where,
    )  # fmt: skip
    return content.crop(image)


def _initial_latent(
    sampling: Sampling,
    content: Inversion,
    styles: Sequence[Inversion],
    masks: Sequence[Float64 | None],
    style_masks: Sequence[Float64 | None],
) -> NDArray[np.float32]:
    """What the sampling starts from: the content's latent of its level, or a mean of what `initial` makes of it and each
    style's."""
    initial, level = sampling.initial, sampling.level
    source, *latents = [np.ascontiguousarray(one.latents[level : level + 1]) for one in (content, *styles)]
    if isinstance(initial, str) and initial == "content":
        return source
    if isinstance(initial, str) and initial == "adain":
        initial = partial(_core.adain, epsilon=sampling.facts["adain_epsilon"])
        latents = [visible(latent, mask) for latent, mask in zip(latents, style_masks, strict=True)]
    if all(mask is None for mask in masks):
        return initial_latents.mix(initial, source, latents, sampling.shares)
    return initial_latents.mix(initial, source, latents, *pixel_shares(masks, sampling.shares, content.latent_size))


def _check_kept(sampling: Sampling, content: Inversion, styles: Sequence[Inversion]) -> None:
    """Of all layers, the inversions must have kept what is injected."""
    needs = [("content", content, PARTS[one]) for one in sampling.parts if one == "q"]
    needs += [
        (name, style, PARTS[one]) for one in sampling.parts if one != "q" for name, style in named("style", styles)
    ]
    for name, inversion, needed in needs:
        if needed not in KEEP[inversion.keep]:
            raise ValueError(
                f"{name}: needed are its {needed} features, but it was inverted with keep={inversion.keep!r}"
            )
        if missing := set(sampling.layers) - set(inversion.layers):
            raise ValueError(f"{name}: layers {sorted(missing)} are needed, but not among its {inversion.layers}")


def _releasing(on_step: OnStep | None, inversions: Sequence[Inversion]) -> OnStep | None:
    """on_step, and before it what the last step read of mapped features goes back."""
    mapped = [inversion for inversion in inversions if inversion.mapped]

    def release_first(step: int, steps: int, latents: NDArray[np.float32]) -> None:
        for inversion in mapped:
            inversion.release()
        if on_step is not None:
            on_step(step, steps, latents)

    return release_first if mapped else on_step
