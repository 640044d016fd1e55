"""Measures of stylized images: colours against the style, structure against the content, and whole sets of images.

Without a network's weights: `histogram_loss`, `ssim`, `psnr`, `gradient_correlation`, and, of features at hand,
`frechet_distance`, `extrapolated_distance`, `structural_distance`, `art_fid`. With PyTorch and published weights: `lpips`,
`cfsd`, `fid`, `inception_features`. `styleid.study.protocol` applies them to 20 x 40 = 800 pairs, as the paper does.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from styleid.images import ImageLike, to_array
from styleid.metrics.images import gradient_correlation, histogram_loss, psnr, rgb_uv_histogram, ssim
from styleid.metrics.learned import cfsd, fid, inception_features, lpips
from styleid.metrics.sets import art_fid, extrapolated_distance, frechet_distance, structural_distance
from styleid.metrics.weights import Folder

__all__ = [
    "art_fid",
    "cfsd",
    "evaluate",
    "extrapolated_distance",
    "fid",
    "frechet_distance",
    "gradient_correlation",
    "histogram_loss",
    "inception_features",
    "lpips",
    "psnr",
    "rgb_uv_histogram",
    "ssim",
    "structural_distance",
]

MEASURES: dict[str, tuple[str, Callable[[ImageLike, ImageLike], float]]] = {
    "histogram_loss": ("style", histogram_loss),
    "ssim": ("content", ssim),
    "psnr": ("content", psnr),
    "gradient_correlation": ("content", gradient_correlation),
}
PROTOCOL_SIDE = 512  # pixels of the shorter side, for LPIPS and FID


def evaluate(
    stylized: ImageLike, content: ImageLike, style: ImageLike, networks: bool = False, weights: Folder = None
) -> dict[str, float]:
    """All measures of one result: `histogram_loss` against the style, the others against the content.

    Args:
        stylized, content, style: (H, W, 3), as `styleid.to_array` takes them; content of the size of stylized
        networks: also `lpips`, of images that `at_protocol_size` has resized, and `cfsd`
        weights: as in `styleid.metrics.learned`

    Raises:
        TypeError, ValueError: as `styleid.to_array`; sizes that differ; weights that are not there
    """
    references = {"content": content, "style": style}
    values = {name: measure(stylized, references[which]) for name, (which, measure) in MEASURES.items()}
    if networks:
        values["lpips"] = lpips(at_protocol_size(stylized), at_protocol_size(content), weights)
        values["cfsd"] = cfsd(stylized, content, weights)
    return values


def at_protocol_size(image: ImageLike) -> ImageLike:
    """The image as StyleID's evaluation gives it to LPIPS and FID: the shorter side has 512 pixels (bilinear)."""
    pixels = to_array(image, "image")
    height, width = pixels.shape[:2]
    if min(height, width) == PROTOCOL_SIDE:
        return pixels
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * pixels).astype(np.uint8)
    longer = PROTOCOL_SIDE * max(height, width) // min(height, width)
    size = (longer, PROTOCOL_SIDE) if width > height else (PROTOCOL_SIDE, longer)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
