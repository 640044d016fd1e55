"""Figures of the method, and the numbers behind them. They need Matplotlib: pip install "styleid[viz]".

Functions named plot_* return a matplotlib.figure.Figure, which a notebook shows and its savefig() writes; the others return
NumPy arrays. In all of them

- a step is an index of `Inversion.timesteps`, a layer the number of a decoder layer whose features the inversions kept
- a point is a pair (row, column) of fractions of an image, the padding of its inversion included (docs/images.md): (0, 0) is
  its top left corner, (1, 1) its bottom right one
- model is the model of the inversions; None: the one that made them, or the default one for inversions from files
- progress is as for `styleid.inject_styles`, of each sampling that a figure is made from
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from styleid.inversions.file import level_size
from styleid.inversions.inversion import Inversion
from styleid.method.calls import inject_styles
from styleid.method.logits import LogitStatistics, split_heads, variance
from styleid.method.options import Hooks
from styleid.method.rates import Rate
from styleid.models.loading import default_model
from styleid.models.model import Model
from styleid.progress import Progress

Float64 = NDArray[np.float64]
Point = tuple[float, float]
Panels = NDArray[np.object_] | Sequence[Axes] | Sequence[Sequence[Axes]] | Axes  # as `Figure.subplots` returns them

PANEL = 1.8  # inches


# ---- numbers ----


def query_components(inversion: Inversion, step: int, layer: int) -> Float64:
    """The first three principal components of a layer's queries at a step, as colours.

    With $U S V^T$ the singular value decomposition of Q (tokens, channels) less its mean, these are the first columns of
    $U S$, each stretched to [0, 1]. The sign of a column is such that its entry of largest magnitude is positive.

    Returns:
        (h, w, 3) float64 in [0, 1]
    """
    queries = inversion.query(step, layer).astype(np.float64)
    left, sizes, _ = np.linalg.svd(queries - queries.mean(axis=0), full_matrices=False)
    components = left[:, :3] * sizes[:3]
    peaks = np.take_along_axis(components, np.abs(components).argmax(axis=0)[np.newaxis], axis=0)
    components *= np.where(peaks < 0, -1, 1)
    low, high = components.min(axis=0), components.max(axis=0)
    colours: Float64 = (components - low) / np.where(high > low, high - low, 1)
    return colours.reshape(*map_size(inversion, layer), 3)


def similarity(inversion: Inversion, step: int, layer: int, point: Point) -> Float64:
    """The cosine of the query at a point with all queries of its layer and step: (h, w) in [-1, 1]."""
    queries = inversion.query(step, layer).astype(np.float64)
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    cosines: Float64 = queries @ queries[_token(inversion, layer, point)]
    return cosines.reshape(map_size(inversion, layer))


def attention_map(
    content: Inversion,
    style: Inversion,
    step: int,
    layer: int,
    point: Point,
    temperature: float = 1.5,
    model: Model | None = None,
) -> Float64:
    r"""Where in the style the content's query at a point looks: the mean over the heads of

    $$\mathrm{softmax}(\mathrm{temperature} \cdot q^c (K^s)^T / \sqrt{d})$$

    with the query $q^c$ of the content alone (gamma = 1) and the keys $K^s$ of the style.

    Returns:
        (h, w) of the style's map, which adds up to 1
    """
    heads = head_count(content, layer, model)
    query = content.query(step, layer)[_token(content, layer, point)].reshape(heads, -1).astype(np.float64)
    keys = style.key(step, layer).reshape(-1, *query.shape)
    logits = temperature * np.einsum("hd,nhd->hn", query, keys) / np.sqrt(query.shape[1])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mean: Float64 = weights.mean(axis=0)
    return mean.reshape(map_size(style, layer))


def logit_deviation(queries: NDArray[np.float32], keys: NDArray[np.float32], heads: int) -> float:
    r"""How much attention logits vary over the keys:

    $$\sqrt{\mathrm{mean}_{q, h} \mathrm{var}_k (q \cdot k / \sqrt{d})}$$

    over queries q, heads h and keys k. The smaller it is, the flatter is the softmax; what all logits of a query share
    changes nothing. With centred keys $K_c$, the sum of all squared deviations is the inner product of $Q^T Q$ and
    $K_c^T K_c$, so that no matrix of queries x keys is made.

    Args:
        queries, keys: (tokens, channels), the heads' channels one after the other
    """
    pairs = zip(split_heads(queries, heads), split_heads(keys, heads), strict=True)
    return float(np.sqrt(np.mean([variance(q, k) / q.shape[1] for q, k in pairs])))


def map_size(inversion: Inversion, layer: int) -> tuple[int, int]:
    """(h, w) of a layer's feature maps."""
    kept = next((layers[layer] for layers in inversion.features.values() if layer in layers), None)
    if kept is None:  # evaluated again when asked for
        return (inversion.model or default_model()).layer_size(layer, inversion.latent_size)
    size = level_size(kept.shape[1], inversion.latent_size)
    assert size is not None  # a file's are checked when it is read
    return size


def head_count(inversion: Inversion, layer: int, model: Model | None = None) -> int:
    """The number of attention heads in a decoder layer."""
    return (model or inversion.model or default_model()).heads(layer)


# ---- figures ----


def plot_queries(
    inversion: Inversion,
    steps: Sequence[int],
    layers: Sequence[int],
    point: Point | None = None,
    axes: Panels | None = None,
) -> Figure:
    """Queries over layers (rows) and steps (columns), as in the paper's figure 2: principal components as colours, or,
    for a point, the similarity of its query with all others, marked by a cross.

    Args:
        inversion: that kept queries
        steps: the columns: indices of `Inversion.timesteps`
        layers: the rows
        point: whose query is compared with all others; None: the principal components are shown
        axes: layers x steps axes to draw into; None: those of a new figure
    """
    names = [f"layer {layer}" for layer in layers], [f"t = {inversion.timesteps[step]}" for step in steps]
    panels = _named_grid(*names, axes)
    for row, layer in zip(panels, layers, strict=True):
        for panel, step in zip(row, steps, strict=True):
            if point is None:
                panel.imshow(query_components(inversion, step, layer))
            else:
                seen = panel.imshow(similarity(inversion, step, layer, point), vmin=-1, vmax=1, cmap="coolwarm")
                _mark(panel, point, map_size(inversion, layer))
    figure = _figure_of(panels[0, 0])
    if point is not None:
        figure.colorbar(seen, ax=panels.ravel().tolist(), label="cosine", shrink=0.8, aspect=12 * len(layers))
    return figure


def logit_curves(
    content: Inversion,
    style: Inversion,
    layers: Sequence[int] | None = None,
    gamma: Rate | None = None,
    temperature: float = 1.5,
    model: Model | None = None,
    progress: Progress = None,
) -> dict[str, Float64]:
    """The deviation of the attention logits at every timestep, the mean of the layers (None: those of the content), in
    three samplings: without injection, with it, and with it and the temperature.

    Args:
        content, style, model, gamma, temperature, progress: as for `inject_styles`
        layers: decoder layers

    Returns:
        (steps,) float64 for each sampling, by its name; NaN where the schedule leaves a step out
    """
    chosen = list(content.layers if layers is None else layers)
    settings = {
        "own keys": (False, 1.0),
        "injected": (True, 1.0),
        f"injected, T = {temperature:g}": (True, temperature),
    }
    curves = {}
    for name, (inject, sharpened) in settings.items():
        seen = LogitStatistics(content, sharpened, model)
        rates = (gamma, sharpened) if inject else (None, None)
        inject_styles(
            content, style, model, gamma=rates[0], temperature=rates[1], layers=chosen, inject=inject, progress=progress,
            options=Hooks(on_attention=seen),
        )  # fmt: skip
        curves[name] = seen.deviation[:, chosen].mean(axis=1)
    return curves


def plot_logits(
    content: Inversion,
    style: Inversion,
    layers: Sequence[int] | None = None,
    temperature: float = 1.5,
    model: Model | None = None,
    gamma: Rate | None = None,
    ax: Axes | None = None,
    progress: Progress = None,
) -> Figure:
    """Draws `logit_curves` over the timesteps, as in the paper's figure 4.

    Args:
        content, style, layers, temperature, model, gamma, progress: as for `logit_curves`
        ax: the axes to draw into; None: those of a new figure
    """
    axes = Figure(figsize=(5, 3.4), layout="constrained").add_subplot() if ax is None else ax
    curves = logit_curves(content, style, layers, gamma, temperature, model, progress)
    for (name, curve), line in zip(curves.items(), ("-", "-", "--"), strict=True):
        axes.plot(content.timesteps, curve, line, label=name)
    axes.set_xlabel("timestep")
    axes.set_ylabel("deviation of the logits")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(curves), fontsize=8, frameon=False)
    return _figure_of(axes)


def plot_ablation(
    content: Inversion,
    style: Inversion,
    model: Model | None = None,
    axes: Panels | None = None,
    progress: Progress = None,
) -> Figure:
    """What each part of the method does, as in the paper's figure 5: both images as their inversions give them back, then
    results with K and V alone, with Q as well, with AdaIN as well, and with everything.

    Args:
        content, style, model, progress: as for `inject_styles`
        axes: six axes to draw into; None: those of a new figure
    """
    parts = {  # gamma, temperature, AdaIN
        "K, V": (0.0, 1.0, False),
        "+ Q": (0.75, 1.0, False),
        "+ AdaIN": (0.75, 1.0, True),
        "+ temperature": (0.75, 1.5, True),
    }
    images = {"content": content.reconstruct(model), "style": style.reconstruct(model)}
    images |= {
        name: inject_styles(content, style, model, gamma=gamma, temperature=temperature, adain=adain, progress=progress)
        for name, (gamma, temperature, adain) in parts.items()
    }
    panels = _grid(1, len(images), axes)[0]
    for panel, (name, image) in zip(panels, images.items(), strict=True):
        panel.imshow(image)
        panel.set_title(name, fontsize=9)
    return _figure_of(panels[0])


def plot_inversion(
    inversion: Inversion, count: int = 6, model: Model | None = None, axes: Panels | None = None
) -> Figure:
    """The latents from z0 to zT, decoded: `count` of them, evenly spaced.

    Args:
        inversion: whose latents they are
        count: how many
        model: that made the inversion; None: the one that it knows, else the default one
        axes: `count` axes to draw into; None: those of a new figure
    """
    model = model or inversion.model or default_model()
    chosen = np.linspace(0, inversion.steps, count).round().astype(int)
    panels = _grid(1, count, axes)[0]
    for panel, index in zip(panels, chosen, strict=True):
        panel.imshow(inversion.crop(model.decode(inversion.latents[index : index + 1])))
        panel.set_title(f"after {index} steps", fontsize=9)
    return _figure_of(panels[0])


def plot_grid(
    content: Inversion,
    style: Inversion,
    gammas: Sequence[float],
    temperatures: Sequence[float],
    model: Model | None = None,
    axes: Panels | None = None,
    progress: Progress = None,
) -> Figure:
    """Results by gamma (rows) and temperature (columns).

    Args:
        content, style, model, progress: as for `inject_styles`
        gammas, temperatures: numbers as for `inject_styles`
        axes: gammas x temperatures axes to draw into; None: those of a new figure
    """
    names = [f"gamma = {gamma:g}" for gamma in gammas], [f"T = {temperature:g}" for temperature in temperatures]
    panels = _named_grid(*names, axes)
    for row, gamma in zip(panels, gammas, strict=True):
        for panel, temperature in zip(row, temperatures, strict=True):
            image = inject_styles(content, style, model, gamma=gamma, temperature=temperature, progress=progress)
            panel.imshow(image)
    return _figure_of(panels[0, 0])


def plot_attention(
    content: Inversion,
    style: Inversion,
    step: int,
    layer: int,
    point: Point,
    temperature: float = 1.5,
    model: Model | None = None,
    axes: Panels | None = None,
) -> Figure:
    """The content with a point marked, the style, and the style under `attention_map` of that point.

    Args:
        content, style, step, layer, point, temperature, model: as for `attention_map`
        axes: three axes to draw into; None: those of a new figure
    """
    model = model or content.model or default_model()
    weights = attention_map(content, style, step, layer, point, temperature, model)
    first, second, third = panels = _grid(1, 3, axes)[0]
    for panel, inversion, name in ((first, content, "content"), (second, style, "style")):
        image = model.decode(inversion.latents[:1])  # the style's is the last
        panel.imshow(image)
        panel.set_title(name, fontsize=9)
        if inversion is content:
            _mark(panel, point, image.shape[:2])
    height, width = image.shape[:2]
    third.imshow(image)
    seen = third.imshow(
        weights, cmap="magma", alpha=0.6, interpolation="bilinear", extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )
    figure = _figure_of(panels[0])
    figure.colorbar(seen, ax=third, label="attention", shrink=0.8)
    third.set_title(f"layer {layer}, t = {content.timesteps[step]}", fontsize=9)
    return figure


def _token(inversion: Inversion, layer: int, point: Point) -> int:
    """The token of a layer's map that a point lies in."""
    if not all(0 <= fraction <= 1 for fraction in point):
        raise ValueError(f"point: expected (row, column) as fractions from 0 to 1, got {point!r}")
    height, width = map_size(inversion, layer)
    row, column = (min(int(part * side), side - 1) for part, side in zip(point, (height, width), strict=True))
    return row * width + column


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None  # only removed axes have none
    return figure


def _grid(rows: int, columns: int, axes: Panels | None) -> NDArray[np.object_]:
    """The given axes, or those of a new figure, without ticks."""
    if axes is None:
        figure = Figure(figsize=(PANEL * columns + 0.4, PANEL * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
    else:
        panels = np.array(axes, dtype=object)
        if panels.size != rows * columns:
            raise ValueError(f"axes: expected {rows} x {columns}, got {panels.size}")
        panels = panels.reshape(rows, columns)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    return panels


def _named_grid(rows: Sequence[str], columns: Sequence[str], axes: Panels | None) -> NDArray[np.object_]:
    panels = _grid(len(rows), len(columns), axes)
    for panel, name in zip(panels[:, 0], rows, strict=True):
        panel.set_ylabel(name, fontsize=9)
    for panel, name in zip(panels[0], columns, strict=True):
        panel.set_title(name, fontsize=9)
    return panels


def _mark(panel: Axes, point: Point, size: tuple[int, ...]) -> None:
    panel.plot(point[1] * size[1] - 0.5, point[0] * size[0] - 0.5, "x", color="black", markersize=8, markeredgewidth=2)
