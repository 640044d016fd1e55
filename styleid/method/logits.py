"""Statistics of the attention's logits, by an observer of the attention."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from styleid.models.model import Model

Float32 = NDArray[np.float32]
OnAttention = Callable[
    [int, int, Float32, Float32, Float32], tuple[Float32 | None, Float32 | None, Float32 | None] | None
]
Float64 = NDArray[np.float64]

ROWS = 1024  # queries whose logits are in memory at once


class LogitStatistics:
    """What `inject_styles` fills where it is given as `statistics`: of the logits temperature * q k / sqrt(d) of each
    evaluation's self-attention, injected or not, over all queries, keys and heads, without the logarithms of weights and
    masks.

    Attributes: (steps, decoder layers) float64 arrays by the inversion's ascending timesteps, NaN where nothing was
    computed: a step that the sampling leaves out, a layer without self-attention
        mean, std: of all logits
        deviation: the root of the mean over queries and heads of the variance over the keys; what all logits of a query
            share changes no softmax, so this is what makes it sharp
        largest: the largest logit

    >>> statistics = LogitStatistics()
    >>> picture = styleid.inject_styles(content, style, statistics=statistics)  # doctest: +SKIP
    >>> statistics.deviation[:, 6]  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._reset((0, 0))

    def _reset(self, shape: tuple[int, ...]) -> None:
        self.mean, self.std, self.deviation, self.largest = (np.full(shape, np.nan) for _ in range(4))

    def observe(
        self, model: Model, temperatures: Float64, then: OnAttention | None, layers: Iterable[int]
    ) -> OnAttention:
        """An `on_attention` hook that fills the attributes.

        Args:
            model: the model that samples
            temperatures: (steps, decoder layers), 1 where nothing is injected
            then: a hook that it goes on with; None: none
            layers: those in which it does
        """
        shown = set(layers)
        self._reset(temperatures.shape)

        def see(step: int, layer: int, query: Float32, key: Float32, value: Float32) -> tuple[Float32 | None, Float32 | None, Float32 | None] | None:
            if np.isnan(self.mean[step, layer]):  # of a guided step, the prompt's evaluation is the first
                self._add(step, layer, *(split_heads(x, model.heads(layer)) for x in (query, key)), temperatures)
            return then(step, layer, query, key, value) if then and layer in shown else None

        return see

    def _add(self, step: int, layer: int, queries: Float64, keys: Float64, temperatures: Float64) -> None:
        """Means and variances follow from Q^T Q and K^T K; only the largest logit needs them all."""
        means, squares, deviations, largest = [], [], [], []
        for q, k in zip(queries, keys, strict=True):
            scale = temperatures[step, layer] / np.sqrt(q.shape[1])
            products, centre = q.T @ q * scale**2, k.mean(axis=0)
            variance = np.sum(products * ((k - centre).T @ (k - centre))) / (len(q) * len(k))
            means.append(scale * q.mean(axis=0) @ centre)
            deviations.append(variance)
            squares.append(variance + centre @ products @ centre / len(q))
            largest.append(scale * max((q[i : i + ROWS] @ k.T).max() for i in range(0, len(q), ROWS)))
        mean = float(np.mean(means))
        self.mean[step, layer] = mean
        self.std[step, layer] = np.sqrt(max(np.mean(squares) - mean**2, 0.0))
        self.deviation[step, layer] = np.sqrt(np.mean(deviations))
        self.largest[step, layer] = max(largest)


def split_heads(features: Float32, heads: int) -> Float64:
    """(tokens, channels) -> (heads, tokens, channels of one)"""
    split: Float64 = features.reshape(len(features), heads, -1).swapaxes(0, 1).astype(np.float64)
    return split
