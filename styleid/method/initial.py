"""Initial latents: what the sampling starts from, made of the content's and the style's zT.

Each function takes (1, C, h, w) float32 latents and returns one of the content's size. The paper's is AdaIN. Any
function of this kind can be given to `inject_styles` as `initial`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from styleid.models.model import float32_array

Float32 = NDArray[np.float32]
Mixer = Callable[[Float32, Float32], ArrayLike]
Initial = str | Mixer


def style_only(content: Float32, style: Float32) -> Float32:
    """The style's latent, $z = z^s$: the content comes in by its queries alone."""
    _check_sizes(content, style)
    return style


def blend(share: float) -> Mixer:
    r"""A function that blends both latents by a share from 0, the content's, to 1, the style's:

    $$z = \sqrt{1 - \mathrm{share}} z^c + \sqrt{\mathrm{share}} z^s$$

    The roots keep the variance where both are independent and normal, as zT should be.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")

    def mix(content: Float32, style: Float32) -> Float32:
        _check_sizes(content, style)
        return np.float32(np.sqrt(1 - share)) * content + np.float32(np.sqrt(share)) * style

    return mix


def match_quantiles(content: Float32, style: Float32) -> Float32:
    r"""The content's order of the numbers with the style's distribution, for each channel of n numbers:

    $$z_i = Q^s((\mathrm{rank}(z^c_i) + 1/2) / n)$$

    $Q^s$ is the style's empirical quantile function, linear between the midpoints (k + 1/2) / m of its m sorted numbers.
    AdaIN matches the first two moments, this function matches all of them (histogram matching).
    """
    mixed = np.empty_like(content)
    for wanted, source, reference in zip(mixed[0], content[0], style[0], strict=True):
        order = np.argsort(source, axis=None, kind="stable")
        levels, known = ((np.arange(n) + 0.5) / n for n in (source.size, reference.size))
        wanted.flat[order] = np.interp(levels, known, np.sort(reference, axis=None))
    return mixed


def split_frequencies(cutoff: float = 0.1) -> Mixer:
    r"""A function that takes low frequencies of the style and high frequencies of the content, by the Fourier transform F:

    $$z = F^{-1}(H F(z^s) + (1 - H) F(z^c)), \quad H = \exp(-(f / \mathrm{cutoff})^2 / 2)$$

    The frequency f is in cycles per latent pixel, 0 to 0.5 in each direction; the cutoff is above 0.
    """
    if not cutoff > 0:
        raise ValueError(f"cutoff: expected a number above 0, got {cutoff}")

    def mix(content: Float32, style: Float32) -> Float32:
        _check_sizes(content, style)
        vertical, horizontal = (np.fft.fftfreq(side) for side in content.shape[2:])
        low = np.exp(-(vertical[:, np.newaxis] ** 2 + horizontal**2) / (2 * cutoff**2))
        spectrum = low * np.fft.fft2(style) + (1 - low) * np.fft.fft2(content)
        return np.fft.ifft2(spectrum).real.astype(np.float32)

    return mix


MIXERS: dict[str, Mixer] = {
    "style": style_only,
    "quantiles": match_quantiles,
    "frequencies": split_frequencies(),
}
NAMES = ("adain", "content", *MIXERS)  # the first by the engine's function


def check_initial(initial: Initial) -> None:
    """TypeError or ValueError for neither a known name nor a function."""
    if callable(initial) or (isinstance(initial, str) and initial in NAMES):
        return
    error = ValueError if isinstance(initial, str) else TypeError
    raise error(f"initial: expected one of {list(NAMES)} or a function of two latents, got {initial!r}")


def mix(
    initial: Initial,
    content: Float32,
    styles: Sequence[Float32],
    weights: Sequence[float] | Float32,
    rest: float | Float32 = 0.0,
) -> Float32:
    """The initial latent of a name or function; of several styles the mean of theirs.

    Args:
        weights: of each style: a number, or (h, w) numbers
        rest: the content's own weight. All add up to 1

    Raises:
        TypeError, ValueError: what the function gave is not like the content's
    """
    mixer = MIXERS[initial] if isinstance(initial, str) else initial
    mixed = np.float32(rest) * content
    for style, weight in zip(styles, weights, strict=True):
        latent = float32_array("initial", mixer(content.copy(), style.copy()), 4)
        if latent.shape != content.shape:
            raise ValueError(f"initial: the function gave the shape {latent.shape}, expected {content.shape}")
        mixed += np.float32(weight) * latent
    return mixed


def _check_sizes(content: Float32, style: Float32) -> None:
    if content.shape != style.shape:
        raise ValueError(f"initial: needs latents of one size, but content's is {content.shape}, style's {style.shape}")
