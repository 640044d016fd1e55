"""Keeping the content's colours: CIE L*a*b* with the luminance of one image and the colours of another."""

import numpy as np
from numpy.typing import NDArray

from styleid.images import ImageLike, Pixels, to_array

Float64 = NDArray[np.float64]

# IEC 61966-2-1: linear sRGB to CIE XYZ. The white point is the matrix's own, so that greys have a = b = 0.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)
KNEE = 6 / 29


def keep_colours(stylized: ImageLike, content: ImageLike) -> Pixels:
    """The stylized image's luminance with the content's colours: L* of the one, a* and b* of the other.

    Colours outside sRGB are clamped; a result of 8 bits is rounded, so that an image with its own colours is itself.

    Args:
        stylized, content: images of one size, as `styleid.to_array` takes them

    Returns:
        (H, W, 3): uint8, or where `stylized` has more than 8 bits float32 in [0, 1]

    Raises:
        TypeError, ValueError: as `styleid.to_array`; sizes that differ
    """
    light, colour = to_array(stylized, "stylized"), to_array(content, "content")
    if light.shape != colour.shape:
        raise ValueError(f"content: the shape is {colour.shape}, but stylized's is {light.shape}")
    lab = to_lab(light)
    lab[..., 1:] = to_lab(colour)[..., 1:]
    x = from_lab(lab)
    return np.rint(255 * x).astype(np.uint8) if light.dtype == np.uint8 else x.astype(np.float32)


def to_lab(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> Float64:
    """sRGB (H, W, 3), uint8 or float in [0, 1], as CIE L*a*b* (CIE 15): L* = 116 f(Y) - 16, a* = 500 (f(X) - f(Y)),
    b* = 200 (f(Y) - f(Z)), X, Y, Z relative to white, f(t) = t^(1/3) and a line below (6/29)^3."""
    encoded = pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(np.float64)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ TO_XYZ.T / WHITE
    x, y, z = np.moveaxis(np.where(relative > KNEE**3, np.cbrt(relative), relative / (3 * KNEE**2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: Float64) -> Float64:
    """CIE L*a*b* (H, W, 3) as sRGB, clamped to [0, 1]: the inverse of `to_lab`."""
    y = (lab[..., 0] + 16) / 116
    roots = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    relative = np.where(roots > KNEE, roots**3, 3 * KNEE**2 * (roots - 4 / 29))
    linear = np.clip((relative * WHITE) @ np.linalg.inv(TO_XYZ).T, 0, 1)
    encoded: Float64 = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded.clip(0, 1)
