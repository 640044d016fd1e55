"""What a notebook shows."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import random_image
from PIL import Image

import styleid


@pytest.fixture(scope="module")
def inversion(model):
    return styleid.invert(random_image(0, 16, 32), model, steps=3)


def decoded(shown):
    return np.asarray(Image.open(io.BytesIO(shown._repr_png_())))


def test_an_image():
    image = random_image(0, 16, 32)
    for same in image, Image.fromarray(image), (image / 255).astype(np.float32):
        np.testing.assert_array_equal(decoded(styleid.show(same)), image)


def test_a_row_with_titles(inversion):
    image = random_image(1, 24, 20)
    shown = decoded(styleid.show([inversion, image], ["inversion", "style"]))
    np.testing.assert_array_equal(shown[-24:, -20:], image)
    np.testing.assert_array_equal(shown[-24:-8, :32], inversion.thumbnail())


def test_bad_images(inversion):
    with pytest.raises(ValueError, match="^images: expected at least one"):
        styleid.show([])
    with pytest.raises(ValueError, match="^titles: expected one for each of 1 images, got 2"):
        styleid.show(random_image(0), ["a", "b"])
    with pytest.raises(TypeError, match="^images: "):
        styleid.show(3)
    with pytest.raises(ValueError, match="^images: an inversion that was loaded"):
        styleid.show(replace(inversion, model=None))


def test_an_inversion(inversion):
    text = replace(inversion, prompt="<b>")._repr_html_()
    png = base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])
    assert png == inversion._repr_png_()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), inversion.thumbnail())
    assert "16 x 32 pixels" in text and "&lt;b&gt;" in text and "<b>" not in text


def test_no_model_is_loaded_to_show_one(inversion):
    loaded = replace(inversion, model=None)
    assert (
        loaded.thumbnail() is None
        and loaded._repr_png_() is None
        and "<img" not in loaded._repr_html_()
        and "<table>" in loaded._repr_html_()
    )
