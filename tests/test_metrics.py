"""Metrics against their formulae, written out another way or by hand."""

import numpy as np
import pytest
from conftest import random_image
from scipy import ndimage

from styleid import metrics

SAME = random_image(0, 24, 32)


def test_psnr_by_hand():
    black = np.zeros((4, 4, 3), np.uint8)
    assert metrics.psnr(black, black) == np.inf
    assert metrics.psnr(black, black + 255) == 0
    assert metrics.psnr(black, np.full((4, 4, 3), 0.1)) == pytest.approx(20)


def test_ssim_of_equal_and_constant_images():
    assert metrics.ssim(SAME, SAME) == pytest.approx(1)
    a, b = np.full((16, 16, 3), 0.5), np.full((16, 16, 3), 0.25)
    assert metrics.ssim(a, b) == pytest.approx((2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4))


def test_ssim_by_scipy():
    """scipy's Gaussian of the same extent, its borders cut off."""
    noisy = np.uint8(random_image(1, 24, 32) * 0.3 + SAME * 0.7)
    x, y = SAME / 255, noisy / 255

    def blur(image):
        blurred = [ndimage.gaussian_filter(image[..., c], 1.5, truncate=3.5) for c in range(3)]
        return np.stack(blurred, -1)[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    sxx, syy, sxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    expected = ((2 * mx * my + 1e-4) * (2 * sxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (sxx + syy + 9e-4))).mean()
    assert metrics.ssim(SAME, noisy) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.99


def test_gradient_correlation():
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 200
    assert metrics.gradient_correlation(SAME, SAME) == pytest.approx(1)
    assert metrics.gradient_correlation(step, 255 - step) == pytest.approx(1)  # magnitudes
    assert metrics.gradient_correlation(step, np.roll(step, 4, axis=1)) < 0.5
    assert metrics.gradient_correlation(step, np.zeros_like(step)) == 0
    x, y = (
        np.hypot(*np.gradient(i @ [0.299, 0.587, 0.114])).ravel() for i in (SAME / 255, random_image(1, 24, 32) / 255)
    )
    assert metrics.gradient_correlation(SAME, random_image(1, 24, 32)) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_histogram_of_one_colour():
    """A grey image has u = v = 0 everywhere: each bin by the product of the two kernels."""
    histogram = metrics.rgb_uv_histogram(np.full((2, 2, 3), 0.5))
    kernel = 1 / (1 + (np.linspace(-3, 3, 64) / 0.02) ** 2)
    expected = np.outer(kernel, kernel)
    np.testing.assert_allclose(histogram, np.stack([expected / (3 * expected.sum())] * 3), rtol=1e-9)


def test_histogram_of_two_colours_by_hand():
    """Pixels add up by their intensity; u of a channel is its logarithm less the first other one's."""
    image = np.float32([[[0.8, 0.4, 0.2], [0.1, 0.1, 0.3]]])
    bins, expected = np.linspace(-3, 3, 64), np.zeros((3, 64, 64))
    for pixel in image[0]:
        pixel = pixel.astype(float)
        for c, (d, e) in enumerate(((1, 2), (0, 2), (0, 1))):
            u, v = np.log((pixel[c] + 1e-6) / (pixel[d] + 1e-6)), np.log((pixel[c] + 1e-6) / (pixel[e] + 1e-6))
            ku, kv = (1 / (1 + ((x - bins) / 0.02) ** 2) for x in (u, v))
            expected[c] += np.sqrt((pixel**2).sum() + 1e-6) * np.outer(ku, kv)
    np.testing.assert_allclose(metrics.rgb_uv_histogram(image), expected / expected.sum(), rtol=1e-9)


def test_histogram_loss():
    red, blue = np.uint8([[[255, 20, 20]]]), np.uint8([[[20, 20, 255]]])
    assert metrics.histogram_loss(SAME, SAME) == 0
    assert metrics.histogram_loss(SAME, SAME[:, ::-1]) == pytest.approx(0, abs=1e-7)  # positions do not count
    assert 0.9 < metrics.histogram_loss(red, blue) <= 1
    large = np.repeat(np.repeat(red, 260, axis=0), 300, axis=1)
    assert metrics.histogram_loss(large, red) == pytest.approx(0, abs=1e-7)  # nor do sizes


@pytest.mark.torch
def test_histogram_of_large_images():
    """Half the size is the mean of 2 x 2 pixels; other sizes are interpolated as PyTorch does without smoothing."""
    large = random_image(2, 512, 512)
    half = (large / 255).reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(metrics.rgb_uv_histogram(large), metrics.rgb_uv_histogram(half), atol=1e-9)
    torch = pytest.importorskip("torch")
    image = random_image(3, 300, 200) / 255
    planes = torch.tensor(image.transpose(2, 0, 1)[np.newaxis])
    expected = torch.nn.functional.interpolate(planes, (256, 256), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(metrics.images._reduced(image), expected.numpy().transpose(1, 2, 0), atol=1e-12)


def test_evaluate():
    content, style = random_image(0, 24, 32), random_image(1, 16, 16)
    values = metrics.evaluate(content, content, style)
    assert values["ssim"] == pytest.approx(1) and values["psnr"] == np.inf
    assert values["histogram_loss"] == metrics.histogram_loss(content, style) > 0


def test_errors():
    for measure in (metrics.psnr, metrics.ssim, metrics.gradient_correlation):
        with pytest.raises(ValueError, match="^reference: the shape is"):
            measure(SAME, SAME[:20])
    with pytest.raises(ValueError, match="^image: expected at least 11 pixels"):
        metrics.ssim(SAME[:10], SAME[:10])
