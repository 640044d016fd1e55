"""Statistics of the attention's logits, by an observer of the attention."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from styleid.inversions.inversion import Inversion
from styleid.models.loading import default_model
from styleid.models.model import Model

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

ROWS = 1024  # queries whose logits are in memory at once


class LogitStatistics:
    r"""An `on_attention` hook that gathers statistics of the attention's logits, over all queries, keys and heads:

    $$\mathrm{temperature} \cdot q_i \cdot k_j / \sqrt{d}$$

    The logarithms of weights and masks are not part of them. Mean and variances follow from the matrices $Q^T Q$ and
    $K^T K$, so that only the largest logit needs all logits.

    Args:
        content: the inversion that `inject_styles` is given, of whose steps the arrays are
        temperature: what is multiplied by: a number, or an array that broadcasts to (steps, decoder layers), as for
            `inject_styles`; layers that are shown without being injected have 1
        model: as for `inject_styles`

    Attributes: (steps, decoder layers) float64 arrays by the inversion's ascending timesteps, NaN where nothing was seen
        mean, std: of all logits
        deviation: the root of the mean over queries and heads of the variance over the keys; what all logits of a query
            share changes no softmax, so this is what makes it sharp
        largest: the largest logit

    >>> statistics = LogitStatistics(content, temperature=1.5)  # doctest: +SKIP
    >>> seen = styleid.Hooks(on_attention=statistics, layers=content.model.attention_layers)  # doctest: +SKIP
    >>> image = styleid.inject_styles(content, style, temperature=1.5, options=seen)  # doctest: +SKIP
    >>> statistics.deviation[:, 6]  # doctest: +SKIP
    """

    def __init__(self, content: Inversion, temperature: ArrayLike = 1.0, model: Model | None = None) -> None:
        self._model = model or content.model or default_model()
        content.check_model(self._model, "content")
        shape = content.steps, self._model.layer_count
        self._temperature = np.broadcast_to(np.asarray(temperature, np.float64), shape)
        self.mean, self.std, self.deviation, self.largest = (np.full(shape, np.nan) for _ in range(4))

    def __call__(self, step: int, layer: int, query: Float32, key: Float32, value: Float32) -> None:
        """As `inject_styles` calls it. Of a guided step, whose two evaluations are both shown, the prompt's counts."""
        if not np.isnan(self.mean[step, layer]):
            return
        heads = self._model.heads(layer)
        means, squares, deviations, largest = [], [], [], []
        for q, k in zip(split_heads(query, heads), split_heads(key, heads), strict=True):
            scale = self._temperature[step, layer] / np.sqrt(q.shape[1])
            centre = k.mean(axis=0)
            means.append(scale * q.mean(axis=0) @ centre)
            deviations.append(scale**2 * variance(q, k))
            squares.append(deviations[-1] + scale**2 * np.mean((q @ centre) ** 2))
            largest.append(scale * max((q[i : i + ROWS] @ k.T).max() for i in range(0, len(q), ROWS)))
        mean = float(np.mean(means))
        self.mean[step, layer] = mean
        self.std[step, layer] = np.sqrt(max(np.mean(squares) - mean**2, 0.0))
        self.deviation[step, layer] = np.sqrt(np.mean(deviations))
        self.largest[step, layer] = max(largest)


def variance(q: Float64, k: Float64) -> float:
    """The mean over the queries of the variance over the keys of the products q k of one head.

    With centred keys Kc, the sum of all squared deviations is the inner product of Q^T Q and Kc^T Kc: no matrix of
    queries x keys is made.
    """
    centred = k - k.mean(axis=0)
    return float(np.sum((q.T @ q) * (centred.T @ centred)) / (len(q) * len(k)))


def split_heads(features: Float32, heads: int) -> Float64:
    """(tokens, channels) -> (heads, tokens, channels of one)"""
    split: Float64 = features.reshape(len(features), heads, -1).swapaxes(0, 1).astype(np.float64)
    return split
