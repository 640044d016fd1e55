"""Images in and out: every way of giving one, every way of getting it wrong."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from styleid import load_image, save_image, to_array
from styleid.images import check_output, check_size, pad


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


# ---- arrays ----


def test_uint8_is_taken_as_it_is():
    image = noise(5, 7, 3)
    assert to_array(image).dtype == np.uint8
    np.testing.assert_array_equal(to_array(image), image)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_floating_point_becomes_float32(dtype):
    image = (noise(4, 6, 3) / 255).astype(dtype)
    out = to_array(image)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_allclose(out, image.astype(np.float64), atol=1e-7)


def test_uint16_is_scaled():
    np.testing.assert_array_equal(to_array(np.array([[0, 65535]], np.uint16))[0, :, 0], np.float32([0, 1]))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_grey_is_repeated(shape, dtype):
    grey = (noise(*shape) / (1 if dtype == np.uint8 else 255)).astype(dtype)
    out = to_array(grey)
    assert out.shape == (4, 6, 3) and out.dtype == dtype
    for channel in range(3):
        np.testing.assert_array_equal(out[..., channel], grey.reshape(4, 6))


def test_alpha_is_laid_on_white():
    image = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    expected = np.array([[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]) / 255
    np.testing.assert_allclose(to_array(image), expected, atol=1e-6)
    np.testing.assert_allclose(to_array(image / 255), expected, atol=1e-6)


def test_opaque_alpha_changes_nothing():
    image = noise(3, 4, 4)
    image[..., 3] = 255
    out = to_array(image)
    assert out.dtype == np.uint8 and out.flags.c_contiguous
    np.testing.assert_array_equal(out, image[..., :3])


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::2],
        lambda a: a[..., ::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[:1], a.shape),
    ],
)
def test_any_strides(view):
    image = view(noise(6, 8, 3))
    out = to_array(image)
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize(
    "image",
    [
        None,
        3,
        [[1, 2], [3, 4]],
        b"png",
        np.zeros((4, 4, 3), np.int32),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), complex),
        np.zeros((4, 4, 3), object),
        np.zeros((4, 4), "U1"),
    ],
)
def test_wrong_type(image):
    with pytest.raises(TypeError, match="^style: expected"):
        to_array(image, "style")


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (4, 0), (4, 4, 0)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="^style: "):
        to_array(np.zeros(shape, np.uint8), "style")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255])
def test_numbers_outside_the_range(bad):
    image = np.full((4, 4, 3), 0.5)
    image[2, 1, 0] = bad
    with pytest.raises(ValueError, match=r"^style: .*\[0, 1\]"):
        to_array(image, "style")


def test_huge_array_is_refused_before_it_is_touched():
    with pytest.raises(ValueError, match="^style: 1000000 x 1000000 pixels"):
        to_array(np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)), "style")


# ---- Pillow's images and files ----


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes(mode):
    rgb = Image.fromarray(noise(6, 5, 3))
    image = rgb.convert("L").convert(mode) if mode in ("1", "LA") else rgb.convert(mode)
    np.testing.assert_array_equal(to_array(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey(kind, tmp_path):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = tmp_path / "grey"
    Image.fromarray(grey).save(path, format=kind)
    np.testing.assert_array_equal(load_image(path)[0, :, 1], [0, 1, 128, 255])


def test_32_bit_grey_holds_16_bits_or_is_refused():
    assert to_array(Image.fromarray(np.array([[65535]], np.int32)))[0, 0, 0] == 255
    with pytest.raises(ValueError, match="65536"):
        to_array(Image.fromarray(np.array([[65536]], np.int32)))


def test_floating_point_grey(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "grey.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.tif")[0, :, 0], [0, 128, 255])
    with pytest.raises(ValueError, match="floating point"):
        to_array(Image.fromarray(np.array([[np.nan]], np.float32)))


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=1)
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png"), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    upright = noise(4, 6, 3)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "photo.png"), upright)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(tmp_path / "film.gif")[0, 0], [255, 0, 0])


def test_paths_of_all_kinds(tmp_path):
    image = noise(4, 4, 3)
    save_image(tmp_path / "a.png", image)
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(to_array(path), image)


# ---- sizes ----


def test_crop_and_resize_as_in_the_paper(tmp_path):
    """Centre-crop to a square, then Lanczos."""
    image = noise(50, 83, 3)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    square = Image.fromarray(image).crop((16, 0, 66, 50))  # 16.5 rounded half to even
    expected = np.asarray(square.resize((32, 32), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(load_image(path, 32), expected)


@pytest.mark.parametrize("size", [(16, 48), (48, 16), (32, 32), (1, 1), (200, 8)])
def test_other_proportions(size, tmp_path):
    """The middle of the image stays in the middle, undistorted."""
    image = np.zeros((60, 60, 3), np.uint8)
    image[20:40, 20:40] = 255
    save_image(tmp_path / "a.png", image)
    out = load_image(tmp_path / "a.png", size)
    assert out.shape == (*size, 3)
    if min(size) > 1:
        assert out[size[0] // 2, size[1] // 2, 0] > 200 and out[0, 0, 0] < 50


@pytest.mark.parametrize(
    "size, shape", [((16, 48), (16, 16)), ((48, 16), (32, 16)), (32, (32, 16)), (1, (1, 1)), (60, (60, 30))]
)
def test_fit(size, shape, tmp_path):
    """All of the image, undistorted: a square in it stays one."""
    image = np.zeros((60, 30, 3), np.uint8)
    image[20:40, 5:25] = 255
    save_image(tmp_path / "a.png", image)
    out = load_image(tmp_path / "a.png", size, "fit")
    height, width = check_size(size)
    scale = min(height / 60, width / 30)
    assert out.shape == (max(1, round(60 * scale)), max(1, round(30 * scale)), 3)
    inside = out[..., 0] > 127
    if scale > 0.3:
        assert abs(inside.any(axis=1).sum() - inside.any(axis=0).sum()) <= 1


def test_stretch(tmp_path):
    image = noise(50, 83, 3)
    save_image(tmp_path / "a.png", image)
    expected = np.asarray(Image.fromarray(image).resize((20, 70), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", (70, 20), "stretch"), expected)


@pytest.mark.parametrize("resize", ["crop", "fit", "stretch"])
def test_all_kinds_of_images_are_resized_alike(resize, tmp_path):
    image = 96 + noise(50, 83, 3) // 4  # the filter overshoots, but not so far
    save_image(tmp_path / "a.png", image)
    expected = load_image(tmp_path / "a.png", (40, 20), resize)
    for form in (image, Image.fromarray(image), tmp_path / "a.png", image[..., ::-1][..., ::-1]):
        np.testing.assert_array_equal(to_array(form, "image", (40, 20), resize), expected)
    out = to_array(image / 255, "image", (40, 20), resize)
    assert out.dtype == np.float32 and out.flags.c_contiguous and out.min() >= 0 and out.max() <= 1
    assert np.abs(out * 255 - expected).max() < 1.1  # 8 bits are rounded after each of the two directions


def test_nothing_is_resized_unasked():
    image = noise(5, 7, 3)
    for resize in "crop", "fit", "stretch":
        np.testing.assert_array_equal(to_array(image, resize=resize), image)
    with pytest.raises(ValueError, match="^resize: expected one of"):
        to_array(image, resize="pad")


@pytest.mark.parametrize("height, width", [(16, 32), (17, 32), (9, 5), (1, 1), (1, 20), (31, 47)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_padding_mirrors(height, width, dtype):
    """The pixel at n - 1 + i is that at n - 1 - i, back and forth where the image is small."""
    image = noise(height, width, 3).astype(dtype) / (255 if dtype == np.float32 else 1)
    image = image.astype(dtype)
    out = pad(image, 16)
    assert out.shape == (-(-height // 16) * 16, -(-width // 16) * 16, 3) and out.dtype == dtype

    def mirror(i, n):
        i %= max(1, 2 * (n - 1))
        return min(i, 2 * (n - 1) - i)

    rows, columns = ([mirror(i, n) for i in range(size)] for n, size in zip((height, width), out.shape))
    np.testing.assert_array_equal(out, image[rows][:, columns])
    if (height, width) == (16, 32):
        assert out is image


@pytest.mark.parametrize("size", [0, -1, (0, 5), (5, 1 << 17)])
def test_size_out_of_range(size):
    with pytest.raises(ValueError, match="^size: "):
        check_size(size)


@pytest.mark.parametrize("size", [1.5, "512", (1, 2, 3), (1,), (2.0, 2), None])
def test_size_of_a_wrong_type(size):
    with pytest.raises(TypeError, match="^size: "):
        check_size(size)


# ---- damaged and hostile files ----


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7])
def test_truncated_image(kind, keep, tmp_path):
    data = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(data, format=kind)
    (tmp_path / "a").write_bytes(data.getvalue()[: int(data.tell() * keep)])
    with pytest.raises(ValueError, match="^" + str(tmp_path / "a")):
        load_image(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04pickle", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(1000)])
def test_not_a_image(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="not an image"):
        load_image(tmp_path / "a.png")


def test_decompression_bomb(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match="bomb"):
        load_image(tmp_path / "bomb.png")


def test_too_many_pixels(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", noise(20, 20, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="20 x 20 pixels"):
        load_image(tmp_path / "a.png")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none.png")


# ---- writing ----


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".tiff", ".bmp"])
def test_round_trip(suffix, tmp_path):
    image = noise(9, 7, 3)
    save_image(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(load_image(tmp_path / f"a{suffix}"), image)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_jpeg_is_close(tmp_path):
    image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    save_image(tmp_path / "a.jpg", image)
    assert abs(load_image(tmp_path / "a.jpg").astype(int) - image).max() < 4


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    save_image(path, noise(4, 4, 3))
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save_image(path, np.zeros((4, 4, 7), np.uint8))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save_image(tmp_path / "a.png", noise(4, 4, 3))
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["out", "out.txt", "out.gif", "nowhere/out.png", "folder.png", "/proc/out.png"])
def test_outputs_that_cannot_be(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises((ValueError, OSError)):
        check_output(tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.png"]


def test_checking_an_output_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "out.png")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_path():
    with pytest.raises(TypeError, match="not BytesIO"):
        load_image(io.BytesIO(b"abc"))


def test_a_header_that_promises_more_than_any_memory(tmp_path):
    boxes = struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A), struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
    path = tmp_path / "a.jp2"
    path.write_bytes(b"".join(boxes) + struct.pack(">I4sQ", 1, b"jp2h", 1 << 62))
    with pytest.raises(ValueError, match="a.jp2: not"):
        load_image(path)


def test_pixels_before_the_begin_of_the_file(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    place = data.index(struct.pack("<HHI", 273, 4, 1))  # StripOffsets, an unsigned number
    data[place : place + 12] = struct.pack("<HHIi", 273, 9, 1, -8)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ValueError, match="a.tif: not usable as an image: .*Invalid argument"):
        load_image(tmp_path / "a.tif")
