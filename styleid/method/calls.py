"""The method on pictures: invert, inject_styles, and transfer = both.

Chung, Hyun, Heo: Style Injection in Diffusion, CVPR 2024. The steps themselves are in the engine, csrc/style.
"""

import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryFile
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.images import Picture, Pixels, Size, pad, padded_size, to_array
from styleid.inversions.cache import Cache, key_of
from styleid.inversions.file import KEEP
from styleid.inversions.inversion import Inversion
from styleid.inversions.recording import FEATURES, draft_of, run_inversions
from styleid.memory import check_memory, of_inversion, of_transfer
from styleid.method import initial as initial_latents
from styleid.method.initial import Initial
from styleid.method.logits import LogitStatistics
from styleid.method.masks import Float64, Masks, over_padding, pixel_shares, read_masks, regions, visible
from styleid.method.rates import LayersByStep, Rate, layers_by_step, per_step_and_layer
from styleid.models.loading import default_model
from styleid.models.model import Model
from styleid.progress import Progress, part, reporter

Float32 = NDArray[np.float32]
OnStep = Callable[[int, int, Float32], object]
OnAttention = Callable[
    [int, int, Float32, Float32, Float32], tuple[Float32 | None, Float32 | None, Float32 | None] | None
]
T = TypeVar("T")

PARTS = {"q": "query", "k": "key", "v": "value"}  # of the attention: what `inject` can name


def invert(
    image: Picture,
    model: Model | None = None,
    steps: int = 50,
    schedule: str = "paper",
    layers: Iterable[int] | None = None,
    keep: str = "both",
    prompt: str = "",
    progress: Progress = False,
    feature_dtype: str = "auto",
    on_step: OnStep | None = None,
    cache: str | os.PathLike[str] | Cache | None = None,
    negative_prompt: str = "",
    guidance: float = 1.0,
    on_attention: OnAttention | None = None,
    size: Size | None = None,
    resize: str = "crop",
    features: str = "memory",
    refine: int = 0,
    seed: int | None = None,
) -> Inversion:
    """DDIM inversion of a picture, keeping attention features on the way (steps 1 and 2 of the method).

    At every evaluation the noise estimate e at level a moves the latent to the next level b:
    x0 = (z - sqrt(1 - a) e) / sqrt(a), then z = sqrt(b) x0 + sqrt(1 - b) e.

    Args:
        image: an array (H, W, 3), (H, W) or (H, W, 4), uint8, uint16 or floating point in [0, 1], a PIL.Image, or the
            path of a file
        model: None: the default model
        steps: evaluations, 2 to 1000
        schedule: "paper", "diffusers" or "corrected"
        layers: decoder layers to keep features of; None: those that the schedule injects (paper: 6-11)
        keep: "both", "query" (enough for a content), "keys" (keys and values: enough for a style) or "none"
        prompt: the text that the picture is inverted under; the paper's is empty
        progress: True for a bar, or a function that is called with (step, total)
        feature_dtype: "float32", "bfloat16" (half the memory), or "auto": what the model computes in
        on_step: called as on_step(step, steps, latents) before every evaluation and, with step = steps, after the last
            one; latents (1, C, h, w) float32 are what is evaluated next, and may be changed in place
        cache: a folder, or a `styleid.Cache`, that keeps inversions from one run to the next; not with hooks
        negative_prompt, guidance: as in `inject_styles`; features are kept of the evaluation under `prompt`. Above 1 an
            inversion strays from what the sampling can undo, so the paper's 1 is what `transfer` always takes here
        on_attention: called as on_attention(step, layer, query, key, value) before each self-attention of `layers`, after
            its features were kept; step counts the timesteps upwards, as in `Inversion.query`, and is `steps` at
            the level above them, where `refine` may look. The arrays are float32,
            query (tokens, channels), key and value (keys, channels), the heads' channels one after the other. It returns
            None, and changes in place count, or (query, key, value) of such shapes, where key and value may have any
            number of rows, and None stands for what was given. A bfloat16 model's are converted, and rounded back
        size: the side of a square, or (height, width). None: arrays and PIL.Images keep their own size, files get the
            model's native one. Where a side is no multiple of `model.image_multiple`, the engine sees the picture
            mirrored at its right and lower border, and results are cut to its size again
        resize: "crop", "fit" or "stretch", see `styleid.load_image`
        features: where they are kept: "memory"; "disk": in a file, from which they are mapped, the entry of `cache` or
            else a nameless one in the temporary folder (environment variable TMPDIR); "recompute": nowhere, they are
            evaluated again whenever they are asked for, at the cost of most of an evaluation. All give the same results
        refine: k: after every move from z to z' = M(z, e), k times z' = M(z, e(z', t')), with t' the timestep of the level
            that it leads to: the fixed point is what the sampling's move leads back to z. k more evaluations a step. Where
            a schedule samples at t' in this step, as "diffusers" does, features are kept of the last one
        seed: of a sample of the VAE's posterior in place of its mean, see `Model.encode`

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
        MemoryError: it would take more memory than is free, see `styleid.predict_memory`
        OSError: the disk is full, or there is another obstacle to a file
    """
    model = _model(model)
    plan = _core.schedule(model.engine, schedule, steps)
    chosen = plan["layers"] if layers is None else _layers(layers, model.attention_layers)
    if keep not in KEEP:
        raise ValueError(f"keep: expected one of {list(KEEP)}, got {keep!r}")
    dtype = model.dtype if feature_dtype == "auto" else feature_dtype
    context = _context(model, "prompt", prompt)
    negative = _negative_context(model, context, negative_prompt, guidance)
    pixels = _pixels(image, model, "image", size, resize)
    _check_features(features)
    if features == "recompute" and on_attention is not None:
        raise ValueError("features: those that on_attention takes part in cannot be recomputed")
    if features == "recompute" and refine and schedule == "diffusers":
        raise ValueError("features: those of a refined inversion with the schedule 'diffusers' cannot be recomputed")
    draft = draft_of(
        model, pixels, plan["timesteps"], schedule, chosen, keep, prompt, context, dtype, features == "recompute"
    )
    draft = replace(draft, negative_prompt=negative_prompt, guidance=float(guidance))

    def run(file: BinaryIO | None) -> Inversion:
        need = of_inversion(model, pixels.shape[:2], steps, chosen, len(KEEP[keep]), dtype, features)
        check_memory(need, model, "this inversion")
        with reporter(progress, "inversion") as report:
            files = [] if file is None else [file]
            return run_inversions([draft], [pixels], files, negative, report, on_step, on_attention, refine, seed)[0]

    if cache is None and features == "disk":
        with TemporaryFile(prefix="styleid-") as file:
            return run(file)
    if cache is None:
        return run(None)
    for name, hook in (("on_step", on_step), ("on_attention", on_attention)):
        if hook is not None:
            raise ValueError(f"cache: an inversion with {name} cannot be kept, because what {name} does is not known")
    settings = {
        "steps": operator.index(steps), "schedule": schedule, "layers": list(chosen), "keep": keep, "prompt": prompt,
        "feature_dtype": dtype, "negative_prompt": negative_prompt, "guidance": float(guidance),
        "recompute": features == "recompute", "refine": operator.index(refine), "seed": seed,
    }  # fmt: skip
    store = cache if isinstance(cache, Cache) else Cache(cache)
    return store.get(key_of(pixels, model, settings), model, run, features == "disk")


def inject_styles(
    content: Inversion,
    style: Inversion | list[Inversion] | tuple[Inversion, ...],
    model: Model | None = None,
    gamma: Rate = 0.75,
    temperature: Rate = 1.5,
    adain: bool = True,
    inject: bool | str = True,
    layers: LayersByStep | None = None,
    progress: Progress = False,
    weights: Sequence[float] | None = None,
    initial: Initial | None = None,
    on_step: OnStep | None = None,
    prompt: str | None = None,
    negative_prompt: str = "",
    guidance: float = 1.0,
    masks: Masks | None = None,
    style_masks: Masks | None = None,
    on_attention: OnAttention | None = None,
    strength: float = 1.0,
    statistics: LogitStatistics | None = None,
) -> NDArray[np.uint8]:
    """Samples a picture from two inversions: the content's with the style's injected (steps 3 to 5 of the method).

    The initial latent is AdaIN of both zT. In the chosen layers, at every timestep t:
    attention = softmax(temperature * Q K^T / sqrt(d)) V with Q = gamma * Q_t^c + (1 - gamma) * Q_t^cs and K, V of
    the style.

    Args:
        content: an inversion that kept queries, if they are injected
        style: an inversion that kept keys and values, if they are injected, or several: then queries attend to the keys
            of all. The sizes of the pictures may differ
        model: the model of all inversions; None: the one that made `content`, or the default one if it was loaded
        gamma: 0 to 1, how much of the content's queries is preserved: one number; an array that broadcasts to
            (steps, decoder layers), in the order of the inversion's timesteps; or a function of (fraction, layer),
            where fraction goes from 0 at the largest timestep to 1 at the smallest, such as `styleid.decreasing` makes
        temperature: above 0, sharpens the attention: given as gamma is
        adain: False: start from the content's zT as it is
        inject: True: queries of the content, keys and values of the style; False: no layer is touched; or a string of
            those letters of "qkv" that are injected, such as "kv" (as with gamma 0) or "v". What is not stays the
            layer's own, also where it is the keys alone or the values alone, which then must be of one number
        layers: decoder layers to inject into; None: those that `content` was inverted with. By step: a bool array that
            broadcasts to (steps, decoder layers), or a function of (fraction, layer), as for gamma
        progress: True for a bar, or a function that is called with (step, total)
        weights: with several styles, the share of each; None: equal. log(weight) is added to the logits of a style's
            keys, and the initial latent is the mean with these weights: two styles are interpolated by (1 - s, s)
        initial: the initial latent in place of what `adain` says: "adain", "content", "style", "quantiles",
            "frequencies", or a function of the content's and the style's zT, see `styleid.method.initial`
        on_step: as in `invert`; here latents are the sampling's, zT first and z0 last
        prompt: the text that the picture is sampled under; None: the one that `content` was inverted under
        negative_prompt: what `guidance` leads away from
        guidance: g in e = e_negative + g (e_prompt - e_negative), where both evaluations get the same features (Ho and
            Salimans, Classifier-free diffusion guidance, 2022). 1: the prompt's evaluation alone, as in the paper
        masks: where in the content a style is injected, see `styleid.method.masks`: an array (H, W) over the content, or, with
            several styles, a list of one for each; None, also in the list: everywhere. Where the masks leave something
            over, that share of the attention, and of the initial latent, is the content's, as without any injection
        style_masks: the same over the styles' pictures: which part of each is looked at; AdaIN, too, takes its
            statistics there
        on_attention: as in `invert`; step counts downwards, and the arrays are what is injected: of several styles, keys
            and values one after the other, whose weights and masks apply as long as their number is the same. With
            inject=False they are the layers' own, and `layers` may be any that have self-attention
        strength: above 0, at most 1: below 1 the sampling is the last k = round(strength * steps) evaluations, at least one,
            from the latents that the inversions had at that level in place of zT
        statistics: a `styleid.LogitStatistics`, which is filled with statistics of all self-attention's logits

    Returns:
        (H, W, 3) uint8 of the content's size

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; also for inversions of different
            models, schedules or numbers of steps
        MemoryError: it would take more memory than is free, see `styleid.predict_memory`
    """
    styles = list(style) if isinstance(style, (list, tuple)) else [style]
    shares = _shares(weights, len(styles))
    _check_inversions(content, styles)
    model = _model(model or content.model)
    for name, inversion in [("content", content), *_named("style", styles)]:
        inversion.check_model(model, name)
    context = content.context if prompt is None else _context(model, "prompt", prompt)
    negative = _negative_context(model, context, negative_prompt, guidance)
    parts = _parts(inject)
    layers, where = layers_by_step(
        layers, content.layers if parts else model.attention_layers, content.steps, model.layer_count
    )
    chosen = _kept_layers(content, styles, layers, parts, model) if parts or on_attention else ()
    plan = _core.schedule(model.engine, content.schedule, content.steps)
    content_masks, style_masks = (
        read_masks(name, given, len(styles)) for name, given in (("masks", masks), ("style_masks", style_masks))
    )
    placed = (
        [over_padding(mask, content.size, model) for mask in content_masks],
        [over_padding(mask, one.size, model) for mask, one in zip(style_masks, styles, strict=True)],
    )
    if initial is None:
        initial = "adain" if adain else "content"
    skip, level = _start(strength, content, len(plan["sampling"]))
    latent = _initial_latent(initial, content, styles, shares, plan["adain_epsilon"], *placed, level)
    sizes = [one.latent_size for one in styles]
    need = of_inversion(model, content.image_size(model), content.steps, (), 0, model.dtype)
    check_memory(need, model, "this sampling")
    temperatures = per_step_and_layer("temperature", temperature, content.steps, model.layer_count)
    watched = None
    if statistics is not None:
        injected = np.zeros(temperatures.shape, bool)
        injected[:, list(chosen if parts else ())] = True
        used = np.where(injected if where is None else injected & (where != 0), temperatures, 1.0)
        on_attention = statistics.observe(model, used, on_attention, chosen)
        watched = model.attention_layers
    with reporter(progress, "sampling") as report:
        z0 = _core.sample(
            model.engine,
            latent,
            context,
            content.steps,
            content.schedule,
            chosen,
            content.data,
            [one.data for one in styles],
            shares,
            per_step_and_layer("gamma", gamma, content.steps, model.layer_count),
            temperatures,
            report,
            _releasing(on_step, [content, *styles]),
            negative,
            guidance,
            inject=parts,
            regions=regions(model, chosen, placed[0], content.latent_size, placed[1], sizes),
            on_attention=on_attention,
            watched=watched,
            skip=skip,
            where=where,
        )
    return content.crop(model.engine.decode(z0, plan["truncate"])[0])


def transfer(
    content: Picture,
    style: Picture | list[Picture] | tuple[Picture, ...],
    model: Model | None = None,
    steps: int = 50,
    schedule: str = "paper",
    gamma: Rate = 0.75,
    temperature: Rate = 1.5,
    layers: LayersByStep | None = None,
    adain: bool = True,
    inject: bool | str = True,
    progress: Progress = False,
    weights: Sequence[float] | None = None,
    initial: Initial | None = None,
    cache: str | os.PathLike[str] | Cache | None = None,
    prompt: str = "",
    content_prompt: str | None = None,
    style_prompt: str | None = None,
    negative_prompt: str = "",
    guidance: float = 1.0,
    masks: Masks | None = None,
    style_masks: Masks | None = None,
    size: Size | None = None,
    resize: str = "crop",
    features: str = "memory",
    strength: float = 1.0,
    refine: int = 0,
    seed: int | None = None,
) -> NDArray[np.uint8]:
    """Gives the content picture the style of the other, or of several: the whole method.

    The same as `inject_styles(invert(content), invert(style))`, faster for one style of the content's size: both
    inversions run as one batch. With `cache`, a picture that was inverted before is not inverted again. `prompt` is what
    the result is sampled under, and what `content_prompt` and `style_prompt`, of the inversions, are unless given;
    `negative_prompt` and `guidance` are the sampling's. Other arguments, result and errors are theirs; the result has
    the content's size.
    """
    model = _model(model)
    plan = _core.schedule(model.engine, schedule, steps)
    layers, where = layers_by_step(layers, plan["layers"], steps, model.layer_count)
    chosen = plan["layers"] if layers is None else _layers(layers, model.attention_layers)
    gamma = per_step_and_layer("gamma", gamma, steps, model.layer_count)
    temperature = per_step_and_layer("temperature", temperature, steps, model.layer_count)
    context = _context(model, "prompt", prompt)
    prompts = [prompt if own is None else own for own in (content_prompt, style_prompt)]
    for name, text in zip(("content_prompt", "style_prompt"), prompts, strict=True):
        _context(model, name, text)
    guided = _negative_context(model, context, negative_prompt, guidance) is not None
    parts = _parts(inject)
    styles = list(style) if isinstance(style, (list, tuple)) else [style]
    shares = _shares(weights, len(styles))
    content_pixels = _pixels(content, model, "content", size, resize)
    style_pixels = [_pixels(one, model, name, size, resize) for name, one in _named("style", styles)]
    placed = [read_masks(name, given, len(styles)) for name, given in (("masks", masks), ("style_masks", style_masks))]
    sizes = [pixels.shape[:2] for pixels in (content_pixels, *style_pixels)]
    kept = chosen if parts else ()
    _check_features(features)
    need = of_transfer(model, sizes[0], sizes[1:], steps, kept, model.dtype, features)
    check_memory(need, model, "this transfer")
    with reporter(progress, "transfer") as report:
        plain = initial is None and parts in ("", "qkv") and masks is None and style_masks is None
        plain = plain and where is None and strength == 1 and not refine and seed is None
        plain = plain and len(styles) == 1 and cache is None and prompts == [prompt, prompt] and not guided
        if plain and features != "disk":
            picture = _core.transfer(
                model.engine,
                pad(content_pixels, model.image_multiple),
                pad(style_pixels[0], model.image_multiple),
                context,
                steps,
                schedule,
                kept,
                gamma,
                temperature,
                adain,
                report,
                features == "recompute",
            )
            height, width = content_pixels.shape[:2]
            return np.ascontiguousarray(picture[:height, :width])
        total = (1 + len(styles)) * steps + len(plan["sampling"])
        pictures = [
            (content_pixels, "query", prompts[0]),
            *((pixels, "keys", prompts[1]) for pixels in style_pixels),
        ]
        if plain and len({padded_size(size, model.image_multiple) for size in sizes}) == 1:
            drafts = [
                draft_of(model, pixels, plan["timesteps"], schedule, kept, keep, prompt, context, model.dtype)
                for pixels, keep, _ in pictures
            ]
            both = [content_pixels, style_pixels[0]]
            with TemporaryFile(prefix="styleid-") as first, TemporaryFile(prefix="styleid-") as second:
                inversions = run_inversions(drafts, both, [first, second], report=part(report, 0, total, weight=2))
        else:
            inversions = [
                invert(
                    pixels,
                    model,
                    steps,
                    schedule,
                    chosen,
                    keep,
                    text,
                    part(report, i * steps, total),
                    cache=cache,
                    features=features,
                    refine=refine,
                    seed=seed,
                )
                for i, (pixels, keep, text) in enumerate(pictures)
            ]
        sampling = part(report, len(pictures) * steps, total)
        return inject_styles(
            inversions[0],
            inversions[1:],
            model,
            gamma,
            temperature,
            adain,
            inject,
            chosen if where is None else where.astype(bool),
            sampling,
            shares,
            initial,
            prompt=prompt,
            negative_prompt=negative_prompt if guided else "",
            guidance=guidance if guided else 1.0,
            masks=placed[0],
            style_masks=placed[1],
            strength=strength,
        )


def _releasing(on_step: OnStep | None, inversions: Sequence[Inversion]) -> OnStep | None:
    """on_step, and before it what the last step read of mapped features goes back."""
    mapped = [inversion for inversion in inversions if inversion.mapped]

    def release_first(step: int, steps: int, latents: Float32) -> None:
        for inversion in mapped:
            inversion.release()
        if on_step is not None:
            on_step(step, steps, latents)

    return release_first if mapped else on_step


def _check_features(features: str) -> None:
    if features not in FEATURES:
        raise ValueError(f"features: expected one of {list(FEATURES)}, got {features!r}")


def _start(strength: float, content: Inversion, evaluations: int) -> tuple[int, int]:
    """How many evaluations of the sampling are left out, and the index of the latents that it starts from.

    The evaluation of slot k - 1 takes a latent of its timestep's level: of "diffusers", whose moves lead up to it, the k-th
    of `Inversion.latents`, of the others the one before. All of the sampling starts from zT, as published.
    """
    if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise ValueError(f"strength: expected a number above 0 and at most 1, got {strength!r}")
    count = max(round(strength * content.steps), 1)
    if count == content.steps:
        return 0, count
    return evaluations - count, count if content.schedule == "diffusers" else count - 1


def _initial_latent(
    initial: Initial,
    content: Inversion,
    styles: Sequence[Inversion],
    shares: Sequence[float],
    epsilon: float,
    masks: Sequence[Float64 | None],
    style_masks: Sequence[Float64 | None],
    level: int,
) -> NDArray[np.float32]:
    """What the sampling starts from: the content's latent of that level, or a mean of what `initial` makes of it and each
    style's."""
    source, *latents = [np.ascontiguousarray(one.latents[level : level + 1]) for one in (content, *styles)]
    if isinstance(initial, str) and initial == "content":
        return source
    if isinstance(initial, str) and initial == "adain":
        initial = partial(_core.adain, epsilon=epsilon)
        latents = [visible(latent, mask) for latent, mask in zip(latents, style_masks, strict=True)]
    if all(mask is None for mask in masks):
        return initial_latents.mix(initial, source, latents, shares)
    return initial_latents.mix(initial, source, latents, *pixel_shares(masks, shares, content.latent_size))


def _model(model: Model | None) -> Model:
    if model is None:
        return default_model()
    if not isinstance(model, Model):
        raise TypeError(f"model: expected what styleid.load_model returns, got {type(model).__name__}")
    return model


def _context(model: Model, name: str, text: str) -> NDArray[np.float32]:
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected str, got {type(text).__name__}")
    return model.encode_prompt(text)


def _negative_context(
    model: Model, context: NDArray[np.float32], negative_prompt: str, guidance: float
) -> NDArray[np.float32] | None:
    """What guidance leads away from; None, and a warning if it was asked for, where it would change nothing."""
    if not isinstance(guidance, (int, float, np.integer, np.floating)) or isinstance(guidance, bool):
        raise TypeError(f"guidance: expected a number, got {type(guidance).__name__}")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance: expected a finite number, got {guidance}")
    negative = _context(model, "negative_prompt", negative_prompt)
    if guidance == 1:
        if negative_prompt:
            warnings.warn("negative_prompt: has no effect while guidance is 1", stacklevel=3)
        return None
    if np.array_equal(negative, context):
        warnings.warn("guidance: has no effect while prompt and negative_prompt are the same", stacklevel=3)
        return None
    return negative


def _pixels(image: Picture, model: Model, name: str, size: Size | None, resize: str) -> Pixels:
    """The picture in the size that results have. Files without a wish get the model's."""
    if size is None and isinstance(image, (str, os.PathLike)):
        size = model.image_size
    return to_array(image, name, size, resize)


def _layers(layers: Iterable[int], allowed: Sequence[int]) -> tuple[int, ...]:
    """The layers in ascending order; TypeError or ValueError if one is not allowed or comes twice."""
    try:
        chosen = sorted(map(operator.index, layers))
    except TypeError:
        raise TypeError(f"layers: expected whole numbers, got {layers!r}") from None
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(allowed):
        raise ValueError(f"layers: expected different ones out of {list(allowed)}, got {chosen}")
    return tuple(chosen)


def _parts(inject: bool | str) -> str:
    """The letters of what is injected."""
    if isinstance(inject, str):
        if not set(inject) <= set(PARTS):
            raise ValueError(f"inject: expected True, False or letters of {''.join(PARTS)!r}, got {inject!r}")
        return "".join(part for part in PARTS if part in inject)
    return "".join(PARTS) if inject else ""


def _kept_layers(
    content: Inversion, styles: Sequence[Inversion], layers: Iterable[int] | None, parts: str, model: Model
) -> tuple[int, ...]:
    """The layers to inject into, or to look at. Of all of them, the inversions must have kept what is injected."""
    allowed = content.layers if parts else model.attention_layers
    chosen = content.layers if layers is None else _layers(layers, allowed)
    needs = [("content", content, PARTS[part]) for part in parts if part == "q"]
    needs += [(name, style, PARTS[part]) for part in parts if part != "q" for name, style in _named("style", styles)]
    for name, inversion, needed in needs:
        if needed not in KEEP[inversion.keep]:
            raise ValueError(
                f"{name}: needed are its {needed} features, but it was inverted with keep={inversion.keep!r}"
            )
        if missing := set(chosen) - set(inversion.layers):
            raise ValueError(f"{name}: layers {sorted(missing)} are needed, but not among its {inversion.layers}")
    return chosen


def _named(name: str, values: Sequence[T]) -> list[tuple[str, T]]:
    """The values of an argument, one or several, with the names that error messages call them by."""
    return [(name if len(values) == 1 else f"{name}[{i}]", value) for i, value in enumerate(values)]


def _check_inversions(content: Inversion, styles: Sequence[Inversion]) -> None:
    """Whether these are inversions, and made alike."""
    for name, inversion in [("content", content), *_named("style", styles)]:
        if not isinstance(inversion, Inversion):
            raise TypeError(f"{name}: expected an Inversion, got {type(inversion).__name__}")
        for what in "fingerprint", "schedule", "steps":
            theirs, ours = getattr(inversion, what), getattr(content, what)
            if theirs != ours:
                raise ValueError(f"{name}: its {what} is {theirs}, but content's is {ours}; they must be the same")


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weight of each style, all together 1. ValueError also where there is no style."""
    if not count:
        raise ValueError("style: expected at least one, got none")
    shares = np.ones(count) if weights is None else np.asarray(weights)
    if shares.dtype.kind not in "fiu" or shares.shape != (count,) or not np.all((shares > 0) & np.isfinite(shares)):
        raise ValueError(f"weights: expected {count} positive numbers, one per style, got {weights!r}")
    return [float(share) for share in shares / shares.sum()]
