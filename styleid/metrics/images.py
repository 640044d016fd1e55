"""Measures of a stylized image that need no network: colours against the style, structure against the content.

Images are (H, W, 3) as `styleid.to_array` takes them; all numbers are computed in float64 on the scale [0, 1].
"""

import numpy as np
from numpy.typing import NDArray

from styleid.images import ImageLike, to_array

Float64 = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
HISTOGRAM_SIDE = 256  # pixels; larger images are resized to a square of it
PIXELS_AT_ONCE = 4096  # of the histogram's kernels, which then fit a cache
HISTOGRAM_BINS, HISTOGRAM_RANGE, HISTOGRAM_FALLOFF = 64, 3.0, 0.02
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5


def psnr(image: ImageLike, reference: ImageLike) -> float:
    r"""The peak signal-to-noise ratio in dB over pixels and channels; infinite for equal images:

    $$10 \log_{10}(1 / \mathrm{mean}((x - y)^2))$$

    `image` and `reference` are (H, W, 3) of one size; ValueError for other sizes.
    """
    x, y = _pair(image, reference)
    error = float(np.mean((x - y) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(image: ImageLike, reference: ImageLike) -> float:
    r"""The structural similarity of `image` and `reference` (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004), -1 to 1;
    1 for equal images. It is the mean over channels and positions of

    $$(2 m_x m_y + C_1) (2 s_{xy} + C_2) / ((m_x^2 + m_y^2 + C_1) (s_x^2 + s_y^2 + C_2))$$

    with $C_1 = 0.01^2$ and $C_2 = 0.03^2$. The local means m and (co)variances s are weighted by an 11 x 11 Gaussian window
    of sigma 1.5, whose weights add up to 1, at the positions where it lies wholly inside the images. scikit-image's
    structural_similarity gives the same with gaussian_weights=True and use_sample_covariance=False. ValueError for sizes
    that differ, or below 11 x 11.
    """
    x, y = _pair(image, reference)
    if min(x.shape[:2]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"image: expected at least {2 * SSIM_RADIUS + 1} pixels each way, got {x.shape[:2]}")
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(structure / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def gradient_correlation(image: ImageLike, reference: ImageLike) -> float:
    """Pearson's correlation of the luma's gradient magnitudes: whether the image's edges are where the reference has them.

    Luma is that of BT.601; gradients are central differences (one-sided at the borders). The result is -1 to 1, and 0
    where either image has no gradients. ValueError for sizes that differ.
    """
    first, second = (np.hypot(*np.gradient(pixels @ LUMA)).ravel() for pixels in _pair(image, reference))
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt(first @ first * (second @ second))
    return float(first @ second / norm) if norm > 0 else 0.0


def histogram_loss(image: ImageLike, reference: ImageLike) -> float:
    r"""The distance of the colours of `image` and `reference`, 0 to 1: the Hellinger distance of their RGB-uv histograms
    (Afifi, Brubaker and Brown, HistoGAN, CVPR 2021; see `rgb_uv_histogram`):

    $$|\sqrt{H_1} - \sqrt{H_2}|_F / \sqrt{2}$$

    The images may have different sizes. TypeError and ValueError as for `styleid.to_array`.
    """
    roots = [np.sqrt(rgb_uv_histogram(each)) for each in (image, reference)]
    return float(np.linalg.norm(roots[0] - roots[1]) / np.sqrt(2))


def rgb_uv_histogram(image: ImageLike) -> Float64:
    r"""The RGB-uv histogram of HistoGAN, (3, 64, 64) float64: log-chromaticities of the image, weighted by intensity; its
    sum is 1.

    For channel c and the others d < e the coordinates are $u = \log(I_c / I_d)$ and $v = \log(I_c / I_e)$, with 1e-6 added
    to each I. Bins are the 64 points from -3 to 3 in each direction; a pixel counts in the bin at (p, q) as

    $$\sqrt{I_r^2 + I_g^2 + I_b^2} k(u - p) k(v - q), \quad k(x) = 1 / (1 + (x / 0.02)^2)$$

    An image with more than 256 pixels a side is resized to 256 x 256 (bilinear, without smoothing), as in StyleID's
    evaluation. TypeError and ValueError as for `styleid.to_array`.
    """
    pixels = _reduced(_floats(image, "image")).reshape(-1, 3)
    blocks = np.array_split(pixels, 1 + len(pixels) // PIXELS_AT_ONCE)
    histogram: Float64 = np.sum([_log_histogram(block) for block in blocks], axis=0)
    histogram /= histogram.sum()
    return histogram


def _log_histogram(pixels: Float64) -> Float64:
    """The RGB-uv histogram (3, 64, 64) of (n, 3) pixels, not yet divided by its sum."""
    intensity = np.sqrt((pixels**2).sum(axis=1) + 1e-6)[:, np.newaxis]
    logs = np.log(pixels + 1e-6)
    bins = np.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, HISTOGRAM_BINS)

    def kernel(channel: int, other: int) -> Float64:
        ratios = logs[:, channel, np.newaxis] - logs[:, other, np.newaxis]
        weights: Float64 = 1 / (1 + ((ratios - bins) / HISTOGRAM_FALLOFF) ** 2)
        return weights

    red_green, red_blue, green_blue = kernel(0, 1), kernel(0, 2), kernel(1, 2)
    # Bins are symmetric, so that the kernel of the inverse ratio is the same one backwards.
    pairs = (red_green, red_blue), (red_green[:, ::-1], green_blue), (red_blue[:, ::-1], green_blue[:, ::-1])
    # Not as matrix products: on a busy machine their threads wait for each other far longer than this takes.
    return np.stack([np.einsum("pu,pv->uv", intensity * u, v) for u, v in pairs])


def _floats(image: ImageLike, name: str) -> Float64:
    pixels = to_array(image, name)
    numbers: Float64 = pixels.astype(np.float64)
    if pixels.dtype == np.uint8:
        numbers /= 255
    return numbers


def _pair(image: ImageLike, reference: ImageLike) -> tuple[Float64, Float64]:
    x, y = _floats(image, "image"), _floats(reference, "reference")
    if x.shape != y.shape:
        raise ValueError(f"reference: the shape is {y.shape}, but image's is {x.shape}")
    return x, y


def _reduced(image: Float64) -> Float64:
    """At most 256 x 256 pixels: linear interpolation along both axes between the pixels' centres."""
    if max(image.shape[:2]) <= HISTOGRAM_SIDE:
        return image
    for axis in 0, 1:
        side = image.shape[axis]
        places = np.maximum((np.arange(HISTOGRAM_SIDE) + 0.5) * side / HISTOGRAM_SIDE - 0.5, 0)
        before = places.astype(int)
        share = (places - before).reshape((-1, 1) if axis else (-1, 1, 1))
        after = np.minimum(before + 1, side - 1)
        image = (1 - share) * image.take(before, axis) + share * image.take(after, axis)
    return image


def _blur(image: Float64) -> Float64:
    """The Gaussian window's means, where it fits, along both axes in turn."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    window = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    for axis in 0, 1:
        image = np.lib.stride_tricks.sliding_window_view(image, window.size, axis=axis) @ window
    return image
