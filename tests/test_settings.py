"""What images say of how they were made, and that saying it again makes them again."""

import io
import json
import os
import sys

import numpy as np
import png
import pytest
from PIL import Image, ImageCms
from test_cli import complaint, output, place, run, transfer  # noqa: F401  place is a fixture

import styleid
from styleid.metadata import Metadata, photograph, read_settings

OPTIONS = ("--gamma", "0.9:0.3:linear", "--temperature", "1.25", "--layers", "6-7", "--keep-colours", "--no-adain")


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp", "out.tif"])
def test_made_again(place, name):  # noqa: F811
    assert transfer(*OPTIONS, "-o", name) == 0
    found = read_settings(name)
    assert found["styleid"] == styleid.__version__ and found["options"]["gamma"] == "0.9:0.3:linear"
    assert [one["path"] for one in found["inputs"]] == ["content.png", "style.png"]
    again = "again" + os.path.splitext(name)[1]
    assert run("transfer", "--like", name, "-o", again) == 0
    assert open(again, "rb").read() == open(name, "rb").read()


# ---- 16 bits ----


def read_16_bits(path):
    width, height, rows, facts = png.Reader(str(path)).asDirect()
    assert facts["bitdepth"] == 16 and facts["planes"] == 3
    return np.vstack([np.uint16(row) for row in rows]).reshape(height, width, 3)


def float_result(**settings):
    """What the decoder gives for the latent at the end, in [0, 1]."""
    model, latents = styleid.load_model("model"), []
    hooks = styleid.Hooks(on_step=lambda step, steps, z: latents.append(z.copy()))
    styleid.transfer("content.png", "style.png", model, steps=3, **settings, options=hooks)
    x = (model.engine.decode_float(latents[-1])[0].transpose(1, 2, 0) + 1) / 2
    return x.clip(0, 1)


def test_16_bits(place):  # noqa: F811
    assert transfer("--bits", 16, "-o", "deep.png") == 0
    pixels = read_16_bits("deep.png")
    np.testing.assert_array_equal(pixels, np.rint(65535 * np.float64(float_result())))
    assert len(np.unique(pixels)) > 256
    assert transfer() == 0
    assert np.abs(pixels / 257 - output() - 0.5).max() <= 0.51  # the published program does not round its 8 bits
    assert read_settings("deep.png")["options"]["bits"] == "16"
    assert run("transfer", "--like", "deep.png", "-o", "again.png") == 0
    assert open("again.png", "rb").read() == open("deep.png", "rb").read()
    assert run("transfer", "--like", "deep.png", "--bits", 8, "-o", "plain.png") == 0
    np.testing.assert_array_equal(output("plain.png"), output())


def test_16_bits_of_an_inverted_pair_and_of_previews(place):  # noqa: F811
    for name in "content", "style":
        assert run("invert", f"{name}.png", "-o", f"{name}.inv", "--model", "model", "--steps", 3) == 0
    assert run("inject", "content.inv", "style.inv", "-o", "deep.png", "--model", "model", "--bits", 16) == 0
    assert transfer("--bits", 16, "--preview", "preview.png", "-o", "previewed.png") == 0
    for name in "deep.png", "previewed.png":
        assert np.abs(read_16_bits(name) / 65535 - float_result()).max() < 1e-3


def test_16_bits_with_the_contents_colours(place):  # noqa: F811
    assert transfer("--bits", 16, "--keep-colours", "-o", "deep.png") == 0
    kept = styleid.keep_colours(float_result(), styleid.load_image("content.png", 16))
    np.testing.assert_array_equal(read_16_bits("deep.png"), np.rint(65535 * np.float64(kept)))


def test_16_bits_keep_what_a_photograph_says(place):  # noqa: F811
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    Image.open("content.png").save("content.png", exif=exif, icc_profile=srgb_profile())
    assert transfer("--bits", 16, "-o", "deep.png") == 0
    written = Image.open("deep.png")
    assert written.getexif()[0x010F] == "A camera" and written.info["srgb"] == 0 and "icc_profile" not in written.info
    np.testing.assert_array_equal(np.asarray(written), read_16_bits("deep.png") >> 8)  # as Pillow reads it


@pytest.mark.parametrize(
    "options, message",
    [
        (["-o", "out.jpg"], "bits: 16 are written to .png files only, got out.jpg"),
        (["-o", "out.tif"], "bits: 16 are written to .png files only, got out.tif"),
        (["--bits", "12"], "--bits"),
    ],
)
def test_where_there_are_no_16_bits(place, capsys, options, message):  # noqa: F811
    assert transfer("--bits", "16", *options) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays_of_16_bits(tmp_path, dtype):
    x = np.random.default_rng(0).random((5, 7, 3))
    scale = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    image = (x * scale).astype(dtype)
    styleid.save_image(tmp_path / "a.png", image, bits=16)
    np.testing.assert_array_equal(read_16_bits(tmp_path / "a.png"), np.rint(65535 * (image / scale)))
    assert np.abs(styleid.load_image(tmp_path / "a.png") - 255 * x).max() <= 2
    with pytest.raises(ValueError, match="^bits: expected 8 or 16, got 10"):
        styleid.save_image(tmp_path / "a.png", image, bits=10)
    with pytest.raises(ValueError, match="^image: floating-point pixels must lie"):
        styleid.save_image(tmp_path / "a.png", np.full((2, 2, 3), np.nan), bits=16)


def test_flags_take_precedence(place):  # noqa: F811
    assert transfer(*OPTIONS) == 0
    assert run("transfer", "style.png", "content.png", "--like", "out.png", "--gamma", "0.2", "-o", "other.png") == 0
    made = read_settings("other.png")
    assert made["options"]["gamma"] == "0.2" and made["options"]["temperature"] == "1.25"
    assert [one["path"] for one in made["inputs"]] == ["style.png", "content.png"]


def test_a_settings_file(place):  # noqa: F811
    assert transfer(*OPTIONS) == 0
    with open("settings.toml", "w") as file:
        file.write(
            'gamma = "0.9:0.3:linear"\ntemperature = 1.25\nlayers = "6-7"\nkeep-colours = true\nno-adain = true\n'
        )
    before = output()
    assert transfer("--settings", "settings.toml", "-o", "other.png") == 0
    np.testing.assert_array_equal(output("other.png"), before)


@pytest.mark.parametrize(
    "text, message",
    [
        ("gamma = ", "settings.toml: "),
        ("gamma = {a = 1}", "gamma: expected a text"),
        ("warmth = 3", "unrecognized arguments"),
    ],
)
def test_wrong_settings_files(place, capsys, text, message):  # noqa: F811
    with open("settings.toml", "w") as file:
        file.write(text)
    assert transfer("--settings", "settings.toml") == 2
    assert message in complaint(capsys)


def test_other_inputs_and_models_are_refused(place, shared_folder, capsys):  # noqa: F811
    assert transfer() == 0
    capsys.readouterr()
    assert run("transfer", "--like", "content.png", "-o", "again.png") == 2
    assert "does not say how it was made" in complaint(capsys)
    os.replace("content.png", "elsewhere.png")
    assert run("transfer", "--like", "out.png", "-o", "again.png") == 2
    assert "content.png, which is not there" in complaint(capsys)
    os.replace("style.png", "content.png")
    assert run("transfer", "--like", "out.png", "-o", "again.png") == 2
    assert "another file by now" in complaint(capsys)
    assert (
        run("transfer", "elsewhere.png", "elsewhere.png", "--like", "out.png", "--model", "default", "-o", "x.png") == 2
    )
    assert "fingerprint" in complaint(capsys)


def test_folders_and_patterns(place, capsys):  # noqa: F811
    os.mkdir("images")
    for name in "content", "style":
        Image.open(f"{name}.png").save(f"images/{name}.bmp")
    settings = "--model", "model", "--steps", "3"
    assert run("transfer", "images", "images/*.bmp", "-o", "results", "--json", *settings) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["output"] for row in rows] == [
        f"results/{content}_{style}.png" for content in ("content", "style") for style in ("content", "style")
    ]
    assert transfer() == 0
    np.testing.assert_array_equal(output("results/content_style.png"), output())
    assert run("transfer", "images", "style.png", "-o", "one.png", *settings) == 2
    assert run("transfer", "no*.png", "style.png", "-o", "one.png", *settings) == 2


def test_streams(place, capfdbinary, monkeypatch):  # noqa: F811
    assert transfer() == 0
    capfdbinary.readouterr()
    with open("content.png", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert run("transfer", "-", "style.png", "-o", "-", "--model", "model", "--steps", "3", "--quiet") == 0
    written = Image.open(io.BytesIO(capfdbinary.readouterr().out))
    np.testing.assert_array_equal(np.asarray(written), output())


def test_previews_and_latents(place):  # noqa: F811
    assert transfer() == 0
    assert transfer("--preview", "preview.png", "--save-latents", "latents.npz", "-o", "other.png") == 0
    np.testing.assert_array_equal(output("other.png"), output())
    assert output("preview.png").shape == output().shape
    latents = np.load("latents.npz")["latents"]
    assert len(latents) == 3 and np.isfinite(latents).all()  # two evaluations of the paper's schedule, and z0


# ---- what a photograph brings along ----


def srgb_profile():
    """sRGB's, as LittleCMS writes it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_exif_is_kept(place):  # noqa: F811
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0132] = "A camera", 1, "2026:01:01 00:00:00"
    Image.open("content.png").save("photo.jpg", exif=exif)
    profile = srgb_profile()
    Image.open("content.png").save("content.png", exif=exif, icc_profile=profile)
    for name in "out.png", "out.jpg", "out.webp":
        assert transfer("-o", name) == 0
        written = Image.open(name)
        assert written.getexif()[0x010F] == "A camera" and 0x0112 not in written.getexif()
        assert written.info["icc_profile"] == profile
        assert read_settings(name)["options"]["steps"] == "3"


def test_damaged_metadata_is_left_out(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for name in "a.png", "a.jpg", "a.webp":
        path = tmp_path / name
        styleid.save_image(
            path, image, Metadata({"a": 1}, exif=b"Exif\0\0damaged", icc_profile=b"\0" * 16 + b"RGB damaged")
        )
        np.testing.assert_array_equal(styleid.load_image(path), image)
    assert photograph(tmp_path / "nowhere.png") == Metadata()


def test_colour_profiles_are_applied(tmp_path):
    """A profile with a gamma of 1: its middle grey is much lighter in sRGB."""
    linear = linear_profile()
    Image.new("RGB", (4, 4), (64, 64, 64)).save(tmp_path / "linear.png", icc_profile=linear)
    pixels = styleid.load_image(tmp_path / "linear.png")
    assert abs(int(pixels[0, 0, 0]) - 137) <= 2  # 255 (1.055 (64 / 255)^(1 / 2.4) - 0.055)
    styleid.save_image(tmp_path / "again.png", pixels, Metadata(icc_profile=linear))
    again = np.asarray(Image.open(tmp_path / "again.png"))
    assert abs(int(again[0, 0, 0]) - 64) <= 1


def linear_profile():
    """sRGB's profile with the curves of its three channels replaced by straight lines."""
    data = bytearray(srgb_profile())
    count = int.from_bytes(data[128:132], "big")
    for entry in range(count):
        tag = 132 + 12 * entry
        if bytes(data[tag : tag + 4]) in (b"rTRC", b"gTRC", b"bTRC"):
            offset, size = (int.from_bytes(data[tag + at : tag + at + 4], "big") for at in (4, 8))
            data[offset : offset + size] = (b"curv" + bytes(8)).ljust(size, b"\0")[:size]
    return bytes(data)
