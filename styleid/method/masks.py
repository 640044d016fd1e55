r"""Masks: where in the content a style is injected, and which part of the style is looked at.

A mask is an array (H, W) over an image, of any size: numbers in [0, 1], bool, or uint8 that is divided by 255. For style s,
$m_s(i)$ is the mean of the content's mask over the area of token i, $n_s(j)$ the mean of the style's mask over the area of
the style's token j, and $w_s$ the style's weight. The logits of query i with the keys of style s are

$$\mathrm{temperature} \cdot q_i \cdot k_j / \sqrt{d} + \log w_s + \log m_s(i) + \log n_s(j)$$

and with the cover $c(i) = \min(1, \sum_s m_s(i))$ the output at token i is

$$c(i) A(i) + (1 - c(i)) A_\mathrm{plain}(i)$$

where A is the injected attention, and the plain one is the layer's own, with its own queries and temperature 1. So a token
that no mask covers is not touched, and where several masks cover one, each style gets its share.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from styleid.images import pad, padded_size
from styleid.models.model import Model

if TYPE_CHECKING:
    from styleid._core import Regions

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Size = tuple[int, int]
Masks = ArrayLike | Sequence[ArrayLike | None]


def read_masks(name: str, masks: Masks | None, count: int) -> list[Float64 | None]:
    """One mask for each style; None stands for everywhere.

    Args:
        masks: one array where count is 1, or a list of one per style; None: everywhere

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
    """
    if masks is None:
        return [None] * count
    given = list(masks) if isinstance(masks, (list, tuple)) else [masks]
    if len(given) != count:
        raise ValueError(f"{name}: expected {count}, one per style, got {len(given)}")
    return [None if mask is None else _read(f"{name}[{i}]", mask) for i, mask in enumerate(given)]


def _read(name: str, mask: Any) -> Float64:
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: expected an array (H, W), got the shape {array.shape}")
    if array.dtype.kind not in "fb" and array.dtype != np.uint8:
        raise TypeError(f"{name}: expected numbers from 0 to 1, bool or uint8, got {array.dtype}")
    numbers: Float64 = array / 255 if array.dtype == np.uint8 else array.astype(np.float64)
    if not np.all((numbers >= 0) & (numbers <= 1)):  # which a NaN is not
        raise ValueError(f"{name}: expected numbers from 0 to 1, got {array.min()} to {array.max()}")
    if not numbers.any():
        raise ValueError(f"{name}: is 0 everywhere; leave the style out instead")
    return numbers


def area_mean(mask: Float64, size: Size) -> Float64:
    """The mean of a mask over each of (h, w) equal parts of it; parts may cut through pixels."""
    rows, columns = (_overlaps(old, new) for old, new in zip(mask.shape, size, strict=True))
    means: Float64 = rows @ mask @ columns.T
    return means


def over_padding(mask: Float64 | None, size: Size, model: Model) -> Float64 | None:
    """The mask over an image of a size, continued over the image's padding: mirrored, as the image is."""
    if mask is None or padded_size(size, model.image_multiple) == size:
        return mask
    return pad(area_mean(mask, size), model.image_multiple)


def _overlaps(old: int, new: int) -> Float64:
    """(new, old) shares: which part of each new cell comes from each old cell, where both divide an interval evenly."""
    first, last = (np.arange(new)[:, np.newaxis] + i for i in (0, 1))
    inside = np.minimum(last * old, (np.arange(old) + 1) * new) - np.maximum(first * old, np.arange(old) * new)
    shares: Float64 = np.maximum(inside, 0) / old
    return shares


def _on_grid(masks: Sequence[Float64 | None], size: Size) -> Float32:
    """(styles, h, w): m_s of each part of the content."""
    grids = [np.ones(size) if mask is None else area_mean(mask, size) for mask in masks]
    return np.stack(grids).astype(np.float32)


def _log(shares: Float32) -> Float32:
    with np.errstate(divide="ignore"):
        return np.log(shares)  # 0: never


def regions(
    model: Model,
    layers: Sequence[int],
    masks: Sequence[Float64 | None],
    size: Size,
    style_masks: Sequence[Float64 | None],
    style_sizes: Sequence[Size],
) -> "Regions | None":
    """The equations' terms by layer, as `styleid._core.sample` takes them; None where there are no masks.

    Args:
        size, style_sizes: (h, w) of the content's latents and of the styles'
    """
    if all(mask is None for mask in (*masks, *style_masks)):
        return None
    bias: dict[int, Float32] = {}
    cover: dict[int, Float32] = {}
    key_bias: list[dict[int, Float32]] = [{} for _ in style_masks]
    for layer in layers:
        shares = _on_grid(masks, model.layer_size(layer, size)).reshape(len(masks), -1)
        bias[layer] = _log(shares)
        covered = np.minimum(shares.sum(axis=0), np.float32(1))
        if np.any(covered < 1):
            cover[layer] = covered
        for terms, mask, style_size in zip(key_bias, style_masks, style_sizes, strict=True):
            if mask is not None:
                terms[layer] = _log(_on_grid([mask], model.layer_size(layer, style_size)).reshape(-1))
    return {"bias": bias, "cover": cover, "key_bias": key_bias}


def pixel_shares(masks: Sequence[Float64 | None], weights: Sequence[float], size: Size) -> tuple[Float32, Float32]:
    r"""How much the initial latents of the styles, and that of the content, count at each latent pixel.

    $r_s = c w_s m_s / \sum_s w_s m_s$ for style s, and $1 - c$ for the content

    Returns:
        (styles, h, w) and (h, w), which add up to 1
    """
    shares = _on_grid(masks, size)
    covered = np.minimum(shares.sum(axis=0), np.float32(1))
    weighted = shares * np.array(weights, np.float32)[:, np.newaxis, np.newaxis]
    total = weighted.sum(axis=0)
    return covered * weighted / np.where(total > 0, total, np.float32(1)), 1 - covered


def visible(latent: Float32, mask: Float64 | None) -> Float32:
    """The pixels of a (1, C, h, w) latent that its mask shows at least half as much as the pixel that it shows most:
    (1, C, 1, pixels)."""
    if mask is None:
        return latent
    shares = area_mean(mask, (latent.shape[2], latent.shape[3]))
    return np.ascontiguousarray(latent[:, :, shares >= shares.max() / 2][:, :, np.newaxis])
