"""CIE L*a*b* against values computed by hand, and images that keep their colours."""

import numpy as np
import pytest
from conftest import random_image

import styleid
from styleid.colours import from_lab, to_lab


@pytest.mark.parametrize(
    "rgb, lab",
    [  # from the definition, with the white point of the sRGB matrix
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    np.testing.assert_allclose(to_lab(np.uint8([[rgb]]))[0, 0], lab, atol=0.03)


def test_lab_and_back():
    pixels = random_image(0, 64, 64)
    np.testing.assert_allclose(255 * from_lab(to_lab(pixels)), pixels, atol=1e-9)
    np.testing.assert_allclose(to_lab(pixels), to_lab(np.float32(pixels / 255)), atol=1e-4)


def test_own_colours_change_nothing():
    np.testing.assert_array_equal(styleid.keep_colours(random_image(0), random_image(0)), random_image(0))


def test_more_than_8_bits_are_kept():
    fine = np.linspace(0, 1, 3 * 1024, dtype=np.float32).reshape(32, 32, 3)
    kept = styleid.keep_colours(fine, fine)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, fine, atol=1e-6)


def test_luminance_of_one_and_colours_of_the_other():
    stylized, content = np.full((2, 2, 3), 128, np.uint8), np.full((2, 2, 3), (150, 120, 100), np.uint8)
    kept = to_lab(styleid.keep_colours(stylized, content))
    np.testing.assert_allclose(kept[..., 0], to_lab(stylized)[..., 0], atol=0.5)
    np.testing.assert_allclose(kept[..., 1:], to_lab(content)[..., 1:], atol=0.7)


def test_different_sizes():
    with pytest.raises(ValueError, match=r"^content: the shape is \(16, 16, 3\), but stylized's is \(8, 8, 3\)"):
        styleid.keep_colours(random_image(0, 8, 8), random_image(0))
