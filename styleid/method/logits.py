"""Statistics of the attention's logits, gathered by the engine while it computes them."""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class LogitStatistics:
    """What `inject_styles` fills where it is given as `statistics`: of the logits temperature * q k / sqrt(d) of each
    evaluation's self-attention, injected or not, over all queries, keys and heads, without the logarithms of weights and
    masks. No matrix of queries x keys is made.

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
        self.take(np.zeros((0, 0, 5)))

    def take(self, numbers: Float64) -> None:
        """Sets all from the (steps, decoder layers, 5) numbers that `styleid._core.sample` fills as its `logits`."""
        count = np.where(numbers[..., 0] > 0, numbers[..., 0], np.nan)
        total, squares, of_means, largest = np.moveaxis(numbers[..., 1:], -1, 0)
        self.mean: Float64 = total / count
        self.std: Float64 = np.sqrt(np.maximum(squares / count - self.mean**2, 0))
        self.deviation: Float64 = np.sqrt(np.maximum(squares - of_means, 0) / count)
        self.largest: Float64 = np.where(numbers[..., 0] > 0, largest, np.nan)
