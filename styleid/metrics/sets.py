"""Measures of features, whatever network they come from: distances of two sets, and of two maps."""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

EXTRAPOLATION_START, EXTRAPOLATION_POINTS = 5000, 15
ROWS_AT_ONCE = 1024  # of a matrix of positions x positions


def frechet_distance(features: ArrayLike, reference: ArrayLike) -> float:
    r"""The Frechet distance of the normal distributions that two sets of features have (FID; Heusel et al., NIPS 2017):

    $$|m_1 - m_2|^2 + \mathrm{tr}(S_1) + \mathrm{tr}(S_2) - 2 \mathrm{tr}((S_1 S_2)^{1/2})$$

    with the means m and unbiased covariances S. With $S_1 = A^T A$ and $S_2 = B^T B$, the last trace is the sum of the
    singular values of $A B^T$, which is exact also where covariances are singular, as they are for fewer images than
    features.

    Args:
        features, reference: (n, d) and (m, d) numbers, n and m at least 2

    Raises:
        ValueError: other shapes, NaN or infinity
    """
    (mean1, root1), (mean2, root2) = (
        _moments(_set(x, name)) for x, name in ((features, "features"), (reference, "reference"))
    )
    if mean1.shape != mean2.shape:
        raise ValueError(f"reference: has {mean2.size} features each, but features has {mean1.size}")
    crossed = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    return float(((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * crossed)


def extrapolated_distance(
    features: ArrayLike,
    reference: ArrayLike,
    start: int | None = None,
    points: int = EXTRAPOLATION_POINTS,
    seed: int = 0,
) -> float:
    r"""FID for infinitely many images (Chong and Forsyth, CVPR 2020): a in the least-squares fit

    $$\mathrm{FID}_N = a + b / N$$

    where FID_N is `frechet_distance` of N random pairs (the same places of both sets), for `points` evenly spaced N from
    `start` to all. art-fid starts at 5000; where it is given fewer pairs, such as the paper's 800, every FID_N is that of
    all pairs, and so is its result.

    Args:
        features, reference: (n, d) numbers, n at least 4
        start: the smallest N; None: 5000 as in art-fid, or n / 2 where there are no more pairs than that
        seed: of the choice of pairs

    Raises:
        ValueError: other shapes, NaN or infinity, or too few for `start` and `points`
    """
    first, second = _set(features, "features"), _set(reference, "reference")
    count = len(first)
    if len(second) != count:
        raise ValueError(f"reference: expected as many as features, {count}, got {len(second)}")
    if start is None:
        start = EXTRAPOLATION_START if count > EXTRAPOLATION_START else count // 2
    if not 2 <= start < count or points < 2:
        raise ValueError(f"start, points: expected 2 to {count - 1}, and at least 2, got {start} and {points}")
    random = np.random.default_rng(seed)
    sizes = np.linspace(start, count, points).astype(int)
    chosen = (random.permutation(count)[:size] for size in sizes)
    distances = [frechet_distance(first[places], second[places]) for places in chosen]
    return float(np.polynomial.Polynomial.fit(1 / sizes, distances, 1)(0))


def art_fid(lpips: float, fid: float) -> float:
    r"""$(1 + \mathrm{lpips}) (1 + \mathrm{fid})$ of the pairs' mean LPIPS and of all images' FID: Wright and Ommer, ArtFID
    (GCPR 2022)."""
    return (1 + lpips) * (1 + fid)


def structural_distance(features: ArrayLike, reference: ArrayLike) -> float:
    r"""CFSD, the content feature structural distance (Chung, Hyun, Heo, CVPR 2024), of feature maps of two images:

    $$\sum_i \mathrm{KL}(S_i | S'_i), \quad S_{ij} = \mathrm{softmax}_j(F_i \cdot F_j / c^2)$$

    over the positions i, where F (positions, c) are the features. S is of `reference`, the content, and S' of `features`,
    the result. As in the authors' evaluation it is the sum and not the mean over positions; `cfsd` takes it of VGG-19's
    relu3_1. With the difference d of the logits, the summands are computed without cancellation as

    $$\mathrm{KL}_i = \sum_j S_{ij} d_{ij} + \log(\sum_j S_{ij} \exp(-d_{ij}))$$

    Args:
        features, reference: (c, h, w) numbers of the same shape

    Raises:
        ValueError: other shapes, NaN or infinity
    """
    ours, theirs = (_map(x, name) for x, name in ((features, "features"), (reference, "reference")))
    if ours.shape != theirs.shape:
        raise ValueError(f"reference: expected the shape of features, {ours.shape}, got {theirs.shape} (positions, c)")
    total = 0.0
    for begin in range(0, len(ours), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        logits = theirs[rows] @ theirs.T
        differences = logits - ours[rows] @ ours.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        scale = shares.sum(axis=1, dtype=np.float64)
        mean = _row_sums(shares, differences) / scale
        ratio = _row_sums(shares, np.expm1(-differences)) / scale
        total += float((mean + np.log1p(ratio)).sum())
    return total


def _row_sums(weights: NDArray[np.float32], values: NDArray[np.float32]) -> Float64:
    products: NDArray[np.float32] = weights * values
    sums: Float64 = products.sum(axis=1, dtype=np.float64)
    return sums


def _moments(features: Float64) -> tuple[Float64, Float64]:
    """The mean (d,), and a root A of the covariance A^T A, of at most d rows."""
    mean = features.mean(axis=0)
    root: Float64 = (features - mean) / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:
        root = cast(Float64, np.linalg.qr(root, mode="r"))
    return mean, root


def _set(values: ArrayLike, name: str) -> Float64:
    features = _finite(values, name)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] == 0:
        raise ValueError(f"{name}: expected the shape (n, d) with n at least 2, got {features.shape}")
    return features


def _map(values: ArrayLike, name: str) -> NDArray[np.float32]:
    """(positions, c) float32, divided by c."""
    features = _finite(values, name)
    if features.ndim != 3 or features.size == 0:
        raise ValueError(f"{name}: expected the shape (c, h, w), got {features.shape}")
    channels = len(features)
    return np.ascontiguousarray((features.reshape(channels, -1).T / channels).astype(np.float32))


def _finite(values: ArrayLike, name: str) -> Float64:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected an array of numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinity")
    return array.astype(np.float64)
