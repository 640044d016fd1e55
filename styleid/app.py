"""A page to play with: `styleid app`, made with Gradio (`pip install "styleid[app]"`).

Inversions are kept from one run to the next, so that a changed gamma, temperature or layer costs one sampling.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.images import load_image, save_image
from styleid.inversions.inversion import Inversion
from styleid.metadata import Metadata
from styleid.method.calls import inject_styles, invert
from styleid.method.options import Hooks
from styleid.method.preview import Preview
from styleid.models.loading import load_model
from styleid.models.model import Model

if TYPE_CHECKING:
    import gradio  # type: ignore[import-not-found, unused-ignore]

Image = NDArray[np.uint8]

KEPT_BYTES = 4 << 30  # of inversions
LONGEST_QUEUE = 8  # visitors who wait for their turn
LARGEST_FILE = "32mb"
HEIGHT = 360  # pixels of an image on the page
GRID_GAMMAS = (0.3, 0.6, 0.9)
GRID_TEMPERATURES = (1.0, 1.5, 2.0)


class Cancelled(Exception):
    """The visitor has cancelled the run."""


@dataclass(frozen=True)
class Settings:
    """What a visitor chose on the page."""

    model: str
    steps: int
    schedule: str
    gamma: float
    temperature: float
    layers: tuple[int, ...]
    adain: bool


class Workshop:
    """The models and the kept inversions behind a page. One run at a time: the page's queue sees to that."""

    def __init__(self, sources: Sequence[str], load: Callable[[str], Model] = load_model) -> None:
        self.sources = list(sources)
        self._load = load
        self._models: dict[str, Model] = {}
        self._inversions: OrderedDict[tuple[object, ...], Inversion] = OrderedDict()

    def model(self, source: str) -> Model:
        """One of `sources`, loaded at its first use. ValueError for others: no visitor names files to load."""
        if source not in self.sources:
            raise ValueError(f"model: expected one of {self.sources}, got {source!r}")
        if source not in self._models:
            self._models[source] = self._load(source)
        return self._models[source]

    def inversion(self, path: str, kind: str, settings: Settings, report: Callable[[int, int], None]) -> Inversion:
        """The inversion of the image in a file, as a content (kind "query") or as a style ("keys")."""
        model = self.model(settings.model)
        image = load_image(path, size=model.image_size)
        content = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        key = (content, kind, settings.model, settings.steps, settings.schedule)
        kept = self._inversions.pop(key, None)
        if kept is None or not set(settings.layers) <= set(kept.layers):
            layers = sorted({*settings.layers, *(kept.layers if kept else ())})
            kept = invert(
                image,
                model,
                steps=settings.steps,
                schedule=settings.schedule,
                layers=layers,
                keep=kind,
                progress=report,
            )
        self._inversions[key] = kept
        while len(self._inversions) > 2 and sum(one.nbytes for one in self._inversions.values()) > KEPT_BYTES:
            self._inversions.popitem(last=False)
        return kept

    def transfer(
        self,
        content: str,
        style: str,
        settings: Settings,
        report: Callable[[str, float], None],
        show: Callable[[Image], None] | None = None,
    ) -> Image:
        """The content in the style. report(what, fraction) is called before every evaluation, and may raise."""

        def stage(what: str) -> Callable[[int, int], None]:
            return lambda step, total: report(what, step / total)

        model = self.model(settings.model)
        report("loading", 0)
        of_content = self.inversion(content, "query", settings, stage("content"))
        of_style = self.inversion(style, "keys", settings, stage("style"))
        hooks = Hooks()
        if show is not None:
            every = max(1, settings.steps // 8)
            hooks = Hooks(on_step=Preview(lambda step, steps, image: show(image), of_content, model, every=every))
        return inject_styles(
            of_content,
            of_style,
            model,
            gamma=settings.gamma,
            temperature=settings.temperature,
            layers=settings.layers,
            adain=settings.adain,
            inject=bool(settings.layers),
            progress=stage("sampling"),
            options=hooks,
        )


def _in_thread(work: Callable[[Callable[[Any], None]], Any]) -> Iterator[Any]:
    """What `work` sends, as it comes, then what it returns. Once this is closed, the next send raises `Cancelled`."""
    sent: queue.Queue[tuple[str, Any]] = queue.Queue()
    stopped = threading.Event()

    def send(value: Any) -> None:
        if stopped.is_set():
            raise Cancelled
        sent.put(("value", value))

    def run() -> None:
        try:
            sent.put(("result", work(send)))
        except Exception as error:  # shown on the page, whatever it is
            sent.put(("error", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            what, value = sent.get()
            if what == "error":
                raise value
            yield value
            if what == "result":
                return
    finally:
        stopped.set()
        thread.join()


def _settings(workshop: Workshop, *values: Any) -> Settings:
    model, steps, schedule, gamma, temperature, layers, adain = values
    chosen = tuple(sorted(int(layer) for layer in layers))
    known = workshop.model(model).attention_layers
    if not set(chosen) <= set(known):
        raise ValueError(f"layers: expected some of {list(known)}, got {list(chosen)}")
    return Settings(model, int(steps), schedule, float(gamma), float(temperature), chosen, bool(adain))


def _controls(gr: Any, model: Model, sources: list[str]) -> list[Any]:
    """What a visitor chooses, in the order of `_settings`; `model` says what is usual."""
    with gr.Row():
        gamma = gr.Slider(
            0, 1, model.recommended.get("gamma", 0.75), step=0.05, label="gamma: how much content is kept"
        )
        temperature = gr.Slider(0.5, 3, model.recommended.get("temperature", 1.5), step=0.1, label="temperature")
        steps = gr.Slider(2, 100, 20, step=1, label="steps")
    with gr.Row():
        known = [str(layer) for layer in model.attention_layers]
        usual = [str(layer) for layer in model.recommended.get("layers", range(6, 12)) if str(layer) in known]
        layers = gr.CheckboxGroup(known, value=usual, label="layers that are injected")
        adain = gr.Checkbox(True, label="AdaIN of the initial latent")
        schedule = gr.Dropdown(list(_core.SCHEDULES), value="corrected", label="schedule")
        chosen = gr.Dropdown(sources, value=sources[0], label="model")
    return [chosen, steps, schedule, gamma, temperature, layers, adain]


def _check_images(gr: Any, content: str | None, style: str | None) -> None:
    for name, path in (("a content image", content), ("a style image", style)):
        if path is None:
            raise gr.Error(f"Choose {name} first.")


def build(workshop: Workshop) -> gradio.Blocks:
    """The page. ImportError that names the extra where Gradio is missing."""
    try:
        import gradio as gr  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError('the page needs Gradio: pip install "styleid[app]"') from error

    first = workshop.model(workshop.sources[0])
    results = Path(mkdtemp(prefix="styleid-app-"))

    def run(content: str, style: str, *values: Any) -> Iterator[tuple[Any, Any, str]]:
        _check_images(gr, content, style)

        def work(send: Callable[[Any], None]) -> tuple[Image, str]:
            settings = _settings(workshop, *values)
            image = workshop.transfer(
                content,
                style,
                settings,
                lambda what, fraction: send((gr.skip(), f"{what}: {fraction:.0%}")),
                lambda shown: send((shown, gr.skip())),
            )
            return image, settings_text(settings)

        last: tuple[Any, Any] = (None, "")
        try:
            for last in _in_thread(work):
                yield last[0], gr.skip(), last[1]
        except (ValueError, MemoryError, OSError) as error:
            raise gr.Error(str(error)) from error
        path = results / f"{hashlib.blake2b(last[0].tobytes(), digest_size=8).hexdigest()}.png"
        save_image(path, last[0], Metadata(settings={"made by": "styleid app", "settings": last[1]}))
        yield last[0], str(path), last[1]

    def grid(content: str, style: str, *values: Any) -> Iterator[tuple[Any, str]]:
        _check_images(gr, content, style)
        settings = _settings(workshop, *values)
        made: list[tuple[Image, str]] = []

        def work(send: Callable[[Any], None]) -> str:
            for gamma in GRID_GAMMAS:
                for temperature in GRID_TEMPERATURES:
                    one = replace(settings, gamma=gamma, temperature=temperature)
                    label = f"gamma {gamma}, T {temperature}"
                    made.append((workshop.transfer(content, style, one, labelled(send, label)), label))
            return "gamma changes from row to row, the temperature from column to column"

        try:
            for text in _in_thread(work):
                yield list(made), text
        except (ValueError, MemoryError, OSError) as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title="styleid", analytics_enabled=False) as page:
        gr.Markdown("# styleid\nThe style of one image on the content of another, by a pretrained diffusion model.")
        with gr.Row():
            content = gr.Image(
                label="Content", type="filepath", sources=["upload", "clipboard"], height=HEIGHT, elem_id="content"
            )
            style = gr.Image(
                label="Style", type="filepath", sources=["upload", "clipboard"], height=HEIGHT, elem_id="style"
            )
            result = gr.Image(label="Result", interactive=False, height=HEIGHT, format="png", elem_id="result")
        status = gr.Markdown("", elem_id="status")
        with gr.Row():
            start = gr.Button("Run", variant="primary", elem_id="run")
            cancel = gr.Button("Cancel", elem_id="cancel")
            every = gr.Button("Grid of gamma and temperature", elem_id="grid")
        controls = _controls(gr, first, workshop.sources)
        gallery = gr.Gallery(label="Grid", columns=len(GRID_TEMPERATURES), object_fit="contain", elem_id="gallery")
        download = gr.File(label="Download", interactive=False, elem_id="download")
        inputs = [content, style, *controls]
        shared: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "engine"}
        running = start.click(run, inputs, [result, download, status], **shared)
        gridding = every.click(grid, inputs, [gallery, status], **shared)
        cancel.click(lambda: "cancelled", None, status, cancels=[running, gridding])
    page.queue(max_size=LONGEST_QUEUE)
    return page


def labelled(send: Callable[[Any], None], label: str) -> Callable[[str, float], None]:
    """A report that says which result of several it is about."""
    return lambda what, fraction: send(f"{label}: {what} {fraction:.0%}")


def settings_text(settings: Settings) -> str:
    """One line that says how a result was made."""
    layers = ", ".join(map(str, settings.layers)) or "none"
    return (
        f"{settings.model}: {settings.steps} steps ({settings.schedule}), gamma {settings.gamma:g}, temperature "
        f"{settings.temperature:g}, layers {layers}, AdaIN {'on' if settings.adain else 'off'}"
    )


def serve(sources: Sequence[str], host: str = "127.0.0.1", port: int = 7860, browser: bool = False) -> None:
    """Serves the page until Ctrl-C. Nothing of this machine but uploaded images and results can be read through it."""
    build(Workshop(sources)).launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        max_file_size=LARGEST_FILE,
        allowed_paths=[],
        show_error=True,
        footer_links=[],
    )
