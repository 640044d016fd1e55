"""Whole kinds of images, numbers and sources, as generated tables: each is taken for what it is, or refused by name."""

import io
import itertools
import os
import pathlib
import struct
import tempfile
import threading
import warnings
import zlib
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFile

import styleid
from styleid import load_image, save_image, to_array
from styleid.images import check_output, check_size
from styleid.numbers import number, whole

H, W = 5, 7


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(params=["usual", "strict"])
def strictness(request):
    """Also where NumPy raises at every rounding to 0, and warnings are errors."""
    if request.param == "usual":
        yield
        return
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- arrays ----

TAKEN = ["u1", "u2", "f2", "f4", "f8", "g"]
REFUSED = ["i1", "i2", "i4", "i8", "u4", "u8", "?", "c8", "c16", "O", "U1", "S1", "V3", "M8[s]", "m8[s]"]
ORDERS = ["<", ">", "="]
LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "every second": lambda a: np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)[::2, ::2],
    "upside down": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "mirrored": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "channels reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "planes": lambda a: (
        np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1) if a.ndim == 3 else a.T.copy().T
    ),
    "misaligned": lambda a: misaligned(a),
    "in a larger one": lambda a: np.pad(a, [(2, 3), (1, 1)] + [(0, 0)] * (a.ndim - 2))[2 : 2 + H, 1 : 1 + W],
}


def misaligned(array):
    data = np.zeros(array.nbytes + 1, np.uint8)
    view = np.frombuffer(data.data, array.dtype, array.size, 1).reshape(array.shape)
    view[...] = array
    return view


def of_dtype(levels, dtype):
    """The 8-bit levels in another type."""
    if dtype.kind == "u":
        return (levels.astype(np.uint64) * (257 if dtype.itemsize == 2 else 1)).astype(dtype)
    return (levels / np.array(255, dtype)).astype(dtype)


def expected_of(levels):
    """(H, W, 3) in [0, 1], on white."""
    pixels = levels.reshape(*levels.shape[:2], -1) / 255
    if pixels.shape[2] == 4:
        pixels = 1 - (1 - pixels[..., :3]) * pixels[..., 3:]
    return np.broadcast_to(pixels, (*levels.shape[:2], 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype, order", [*itertools.product(TAKEN, ORDERS)])
def test_arrays(dtype, order, layout, strictness):
    for shape in (H, W), (H, W, 1), (H, W, 3), (H, W, 4):
        levels = noise(*shape)
        array = LAYOUTS[layout](of_dtype(levels, np.dtype(dtype).newbyteorder(order)))
        array.flags.writeable = False
        before = array.tobytes()
        out = to_array(array, "style")
        assert out.dtype in (np.uint8, np.float32) and out.shape == (H, W, 3) and out.flags.c_contiguous
        assert out.dtype.isnative and array.tobytes() == before
        scale = 255 if out.dtype == np.uint8 else 1
        np.testing.assert_allclose(out / np.float64(scale), expected_of(levels), atol=1.2e-3 if dtype == "f2" else 1e-6)
        if len(shape) == 3:
            assert to_array(array, "style", size=4).shape == (4, 4, 3)


@pytest.mark.parametrize("dtype", REFUSED)
def test_dtypes_that_are_no_image(dtype, strictness):
    with pytest.raises(TypeError, match="^style: expected uint8, uint16 or floating point"):
        to_array(np.zeros((H, W, 3), dtype), "style")


@pytest.mark.parametrize("smallest", [5e-324, 1e-300, 1e-46, 1e-40])
def test_numbers_that_float32_does_not_hold(smallest, strictness):
    assert to_array(np.full((H, W, 3), smallest)).max() < 1e-39


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, -1e-30, np.nextafter(1, 2), 255])
def test_numbers_outside(bad, strictness):
    array = np.zeros((H, W, 3))
    array[1, 1, 1] = bad
    with pytest.raises(ValueError, match=r"^style: .*\[0, 1\]"):
        to_array(array, "style")


def test_other_kinds_of_arrays(tmp_path):
    levels = noise(H, W, 3)
    np.save(tmp_path / "a.npy", levels)
    np.testing.assert_array_equal(to_array(np.load(tmp_path / "a.npy", mmap_mode="r")), levels)
    np.testing.assert_array_equal(to_array(np.ma.array(levels)), levels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(levels[..., 0])
    np.testing.assert_array_equal(to_array(matrix)[..., 1], levels[..., 0])
    np.testing.assert_array_equal(to_array(levels.view(np.recarray)), levels)
    with pytest.raises(ValueError, match="^image: some of its pixels are masked"):
        to_array(np.ma.masked_less(levels, 100))


@pytest.mark.parametrize(
    "shape", [(), (3,), (0, 0), (0, 4, 3), (4, 0, 3), (4, 4, 0), (4, 4, 2), (4, 4, 5), (1, 4, 4, 3)]
)
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f8"])
def test_shapes_that_are_no_image(shape, dtype, strictness):
    with pytest.raises(ValueError, match="^style: "):
        to_array(np.zeros(shape, dtype), "style")


# ---- Pillow's images ----


def transparent(mode):
    """Two pixels in a mode, of which the second is transparent where the mode can say so, and what they are on white."""
    colour = Image.fromarray(np.array([[[200, 100, 50], [10, 20, 30]]], np.uint8))
    grey = Image.fromarray(np.array([[90, 30]], np.uint8))
    alpha = Image.fromarray(np.array([[255, 0]], np.uint8))
    if mode in ("RGBA", "RGBa"):
        image = colour.copy()
        image.putalpha(alpha)
        return image if mode == "RGBA" else image.convert("RGBa"), [[[200, 100, 50], [255, 255, 255]]]
    if mode in ("LA", "La"):
        image = Image.merge("LA", (grey, alpha))
        return image if mode == "LA" else image.convert("La"), [[[90] * 3, [255] * 3]]
    if mode in ("P", "PA"):
        image = Image.new("P", (2, 1))
        image.putpalette([200, 100, 50, 10, 20, 30])
        image.putpixel((1, 0), 1)
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(alpha)
        else:
            image.info["transparency"] = 1
        return image, [[[200, 100, 50], [255] * 3]]
    if mode == "L":
        grey.info["transparency"] = 30
        return grey, [[[90] * 3, [255] * 3]]
    if mode == "RGB":
        colour.info["transparency"] = (10, 20, 30)
        return colour, [[[200, 100, 50], [255] * 3]]
    if mode == "1":
        return grey.point(lambda level: 255 * (level > 50)).convert("1"), [[[255] * 3, [0] * 3]]
    if mode == "F":
        return Image.fromarray(np.array([[0.2, 1]], np.float32)), [[[51] * 3, [255] * 3]]
    if mode == "I" or mode.startswith("I;16"):
        array = np.array([[90 * 257, 30 * 257]], {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2"))
        image = Image.frombytes(mode, (2, 1), array.tobytes())
        image.info["transparency"] = 30 * 257
        return image, [[[90] * 3, [255] * 3]]
    image = colour.convert(mode)
    return image, np.asarray(image.convert("RGB")).tolist()


MODES = [
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "I;16L", "I;16B",
    "F",
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, strictness):
    if mode == "LAB":
        pytest.importorskip("PIL.ImageCms")
        image = Image.new("LAB", (2, 1), (128, 128, 128))
        expected = np.asarray(image.convert("RGB"))
    else:
        image, expected = transparent(mode)
    before = image.tobytes(), image.mode, dict(image.info)
    out = to_array(image, "style")
    assert out.dtype == np.uint8
    np.testing.assert_allclose(out, expected, atol=1 if mode in ("RGBa", "La") else 0)
    assert (image.tobytes(), image.mode, dict(image.info)) == before
    assert to_array(image, "style", size=(3, 2)).shape == (3, 2, 3)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_images_of_no_pixels(size):
    with pytest.raises(ValueError, match="^style: the image is empty"):
        to_array(Image.new("RGB", size), "style")


def test_a_closed_image(tmp_path):
    save_image(tmp_path / "a.png", noise(H, W, 3))
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(ValueError, match="^style: "):
        to_array(image, "style")


def png(width, height, depth, colour, rows, *chunks):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    for kind, content in chunks:
        data += chunk(kind, content)
    return data + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")


def test_transparent_colours_of_16_bits(tmp_path, strictness):
    grey = png(2, 1, 16, 0, [struct.pack(">HH", 90 * 257, 30 * 257)], (b"tRNS", struct.pack(">H", 30 * 257)))
    (tmp_path / "g.png").write_bytes(grey)
    np.testing.assert_array_equal(load_image(tmp_path / "g.png"), [[[90] * 3, [255] * 3]])
    row = struct.pack(">6H", 200 * 257, 100 * 257, 50 * 257, 10 * 257, 20 * 257, 30 * 257)
    colour = png(2, 1, 16, 2, [row], (b"tRNS", struct.pack(">HHH", 10 * 257, 20 * 257, 30 * 257)))
    (tmp_path / "c.png").write_bytes(colour)
    np.testing.assert_array_equal(load_image(tmp_path / "c.png"), [[[200, 100, 50], [255] * 3]])


@pytest.mark.parametrize(
    "exif", [b"garbage", b"Exif\0\0garbage", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"", b"Exif\0\0"]
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_exif_that_cannot_be_read(kind, exif, tmp_path, strictness):
    levels = np.full((16, 16, 3), 77, np.uint8)
    path = tmp_path / "a"
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "PNG":
        rows = [bytes(levels[row].tobytes()) for row in range(16)]
        path.write_bytes(png(16, 16, 8, 2, rows, (b"eXIf", exif)))
    else:
        with open(path, "wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.fromarray(levels).save(file, format=kind, **options | ({"exif": exif} if kind != "TIFF" else {}))
    np.testing.assert_array_equal(load_image(path), levels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_orientations_of_all_kinds_of_values(kind, tmp_path):
    for value in (0, 9, 1000, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        Image.fromarray(noise(16, 8, 3)).save(tmp_path / "a", format=kind, exif=exif)
        assert load_image(tmp_path / "a").shape == (16, 8, 3)


# ---- sources ----


class Path:
    """A path of the user's own class."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize(
    "name", ["a.png", "ünïcödé 字.png", "with space.png", "a" * 250 + ".png", "-o.png", b"\xff\xfe.png"]
)
def test_paths(name, tmp_path, strictness):
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), os.fsencode(name)))
    levels = noise(H, W, 3)
    for form in path, pathlib.Path(path), Path(path), Path(os.fsencode(path)):
        save_image(form, levels)
        check_output(form)
        np.testing.assert_array_equal(load_image(form), levels)
        np.testing.assert_array_equal(to_array(form), levels)
    np.testing.assert_array_equal(load_image(os.fsencode(path)), levels)


def sources(tmp_path):
    save_image(tmp_path / "a.png", noise(H, W, 3))
    with open(tmp_path / "a.png", "rb") as file:
        yield file
        yield io.BytesIO(file.read())
    with tempfile.TemporaryFile() as file:
        yield file
    with tempfile.SpooledTemporaryFile() as file:
        yield file
    yield from (
        None,
        3,
        3.5,
        [[1]],
        (1, 2),
        {},
        object(),
        bytearray(b"x"),
        memoryview(b"x"),
        np.float32(1),
        Image,
        True,
    )


def test_what_is_no_source(tmp_path):
    """Pillow opens file objects: Image.open(file) is taken."""
    for source in sources(tmp_path):
        with pytest.raises(TypeError, match="^path: expected the path of a file, not "):
            load_image(source)
        with pytest.raises(TypeError, match="^style: expected a NumPy array, a PIL.Image or a path"):
            to_array(source, "style")
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(to_array(Image.open(file)), noise(H, W, 3))


@pytest.mark.parametrize("function", [load_image, lambda path: save_image(path, noise(H, W, 3)), check_output])
def test_names_with_a_zero_byte(function):
    with pytest.raises(ValueError, match="^path: .*zero byte"):
        function("a\0.png")


def test_pipes(tmp_path):
    levels = noise(H, W, 3)
    save_image(tmp_path / "a.png", levels)
    os.mkfifo(tmp_path / "pipe")
    data = (tmp_path / "a.png").read_bytes()
    for content, works in (data, True), (data[:50], False), (b"", False):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
        writer.start()
        try:
            if works:
                np.testing.assert_array_equal(load_image(tmp_path / "pipe"), levels)
            else:
                with pytest.raises(ValueError, match="pipe: not"):
                    load_image(tmp_path / "pipe")
        finally:
            writer.join()


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_devices(path):
    with pytest.raises(ValueError, match=f"{path}: neither a file nor a pipe"):
        load_image(path)


def test_folders_and_links(tmp_path):
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError):
        load_image(tmp_path / "loop")
    save_image(tmp_path / "a.png", noise(H, W, 3))
    (tmp_path / "link").symlink_to(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "link"), noise(H, W, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_images_where_the_user_takes_them(kind, keep, tmp_path, monkeypatch):
    """PIL.ImageFile.LOAD_TRUNCATED_IMAGES: an image of the right size, or the usual error."""
    data = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(data, format=kind)
    (tmp_path / "a").write_bytes(data.getvalue()[: int(len(data.getvalue()) * keep)])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    try:
        assert load_image(tmp_path / "a").shape == (64, 64, 3)
    except ValueError as error:
        assert str(error).startswith(str(tmp_path / "a"))


# ---- writing ----


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing(suffix, layout, tmp_path, strictness):
    for shape in (H, W), (H, W, 1), (H, W, 3), (H, W, 4):
        levels = noise(*shape)
        array = LAYOUTS[layout](levels)
        path = tmp_path / f"a{suffix}"
        if shape == (H, W, 4) and suffix in (".jpg", ".jpeg", ".bmp"):
            with pytest.raises(ValueError, match="^image: (JPEG|BMP) files hold no transparency"):
                save_image(path, array)
            continue
        save_image(path, array)
        if suffix not in (".jpg", ".jpeg"):
            stored = np.asarray(Image.open(path).convert("RGBA" if shape == (H, W, 4) else "RGB"))
            wanted = np.broadcast_to(levels.reshape(H, W, -1), stored.shape)
            opaque = wanted[..., 3] > 0 if shape == (H, W, 4) else np.ones((H, W), bool)
            np.testing.assert_array_equal(stored[opaque], wanted[opaque])


@pytest.mark.parametrize(
    "error, image, message",
    [
        (TypeError, np.zeros((H, W, 3)), "expected uint8 from 0 to 255, got float64"),
        (TypeError, np.zeros((H, W, 3), np.float32), "got float32"),
        (TypeError, np.zeros((H, W, 3), bool), "got bool"),
        (TypeError, np.zeros((H, W, 3), np.uint16), "got uint16"),
        (TypeError, np.zeros((H, W, 3), np.int64), "got int64"),
        (TypeError, np.zeros((H, W, 3), object), "got object"),
        (TypeError, None, "expected a NumPy array or a PIL.Image, got NoneType"),
        (TypeError, [[0]], "got list"),
        (TypeError, "a.png", "got str"),
        (ValueError, np.zeros((3, H, W), np.uint8), r"channels last.*\(3, 5, 7\).*moveaxis"),
        (ValueError, np.zeros((1, H, W), np.uint8), "channels last"),
        (ValueError, np.zeros((4, H, W), np.uint8), "channels last"),
        (ValueError, np.zeros((H, W, 2), np.uint8), "expected the shape"),
        (ValueError, np.zeros((1, H, W, 3), np.uint8), "expected the shape"),
        (ValueError, np.zeros((3,), np.uint8), "expected the shape"),
        (ValueError, np.zeros((), np.uint8), "expected the shape"),
        (ValueError, np.zeros((0, W, 3), np.uint8), "expected the shape"),
    ],
)
def test_what_cannot_be_written(error, image, message, tmp_path):
    save_image(tmp_path / "a.png", noise(H, W, 3))
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(error, match=f"^image: .*{message}"):
        save_image(tmp_path / "a.png", image)
    assert (tmp_path / "a.png").read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_images_larger_than_a_format_holds(tmp_path):
    with pytest.raises(ValueError, match="^image: 20000 x 1 pixels cannot be written as WEBP"):
        save_image(tmp_path / "a.webp", np.zeros((1, 20000, 3), np.uint8))
    assert os.listdir(tmp_path) == []


def test_pillows_images_are_written(tmp_path):
    save_image(tmp_path / "a.jpg", transparent("RGBA")[0])
    save_image(tmp_path / "a.png", transparent("P")[0])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), transparent("P")[1])


# ---- numbers ----

WHOLE = [
    3,
    np.int8(3),
    np.uint8(3),
    np.int16(3),
    np.int32(3),
    np.int64(3),
    np.uint64(3),
    np.array(3),
    np.array(3, ">i4"),
]
REAL = [
    3.0, np.float16(3), np.float32(3), np.float64(3), np.longdouble(3), np.array(3.0), np.array(3, ">f4"), Fraction(3), Decimal(3),
]  # fmt: skip
NONE = [
    True,
    np.True_,
    np.array(True),
    "3",
    b"3",
    None,
    3j,
    np.complex64(3),
    [3],
    (3,),
    {},
    np.array([3]),
    SimpleNamespace(),
    np.str_("3"),
]


@pytest.mark.parametrize("value", WHOLE + REAL, ids=repr)
def test_numbers(value, strictness):
    result = number("gamma", value, 0, 5)
    assert type(result) is float and result == 3


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers(value, strictness):
    assert type(whole("steps", value, 0, 5)) is int and whole("steps", value, 0, 5) == 3
    assert check_size(value) == (3, 3) and check_size((value, value)) == (3, 3) == check_size([value, value])


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_what_is_no_number(value, strictness):
    with pytest.raises(TypeError, match="^gamma: expected a number"):
        number("gamma", value)
    with pytest.raises(TypeError, match="^steps: expected a whole number"):
        whole("steps", value, 0, 5)
    with pytest.raises(TypeError, match="^size: expected a whole number"):
        check_size((value, 3))


@pytest.mark.parametrize("value", REAL, ids=repr)
def test_what_is_no_whole_number(value, strictness):
    with pytest.raises(TypeError, match="^steps: expected a whole number"):
        whole("steps", value, 0, 5)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), np.float32("-inf"), Decimal("nan"), Decimal("sNaN"), Decimal("1e400"), 10**400, 10**5000, -(10**400),
     Fraction(10**400), np.longdouble("inf"), 6, -1, np.int8(-1), 5.0000001],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_numbers_out_of_range(value, strictness):
    with pytest.raises(ValueError, match="^gamma: expected a number from 0 to 5"):
        number("gamma", value, 0, 5)
    if isinstance(value, (int, np.integer)):
        with pytest.raises(ValueError, match="^steps: expected 0 to 5"):
            whole("steps", value, 0, 5)


def test_sizes_as_arrays():
    assert check_size(np.array([3, 4])) == (3, 4)
    for size in np.array([3, 4, 5]), np.array([[3, 4]]), np.array([3.0, 4.0]), np.array([]):
        with pytest.raises(TypeError, match="^size: "):
            check_size(size)


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_numbers_of_a_model(value, model, shared_folder, strictness):
    assert styleid.load_model(shared_folder, dtype="float32", threads=value).threads == 3
    latents = np.zeros((1, 4, 8, 8), np.float32)
    np.testing.assert_array_equal(model.predict_noise(latents, value), model.predict_noise(latents, 3))
    np.testing.assert_array_equal(model.encode(noise(16, 16, 3), seed=value), model.encode(noise(16, 16, 3), seed=3))


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_what_is_no_number_of_a_model(value, model, shared_folder):
    latents = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(TypeError, match="^timestep: "):
        model.predict_noise(latents, value)
    if value is not None:
        with pytest.raises(TypeError, match="^threads: "):
            styleid.load_model(shared_folder, threads=value)
        with pytest.raises(TypeError, match="^seed: "):
            model.encode(noise(16, 16, 3), seed=value)
    with pytest.raises(TypeError, match="^loras: "):
        styleid.load_model(shared_folder, loras=[("a", value)])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "g", "i1", "i2", "u2", ">i4", "i8", "u8"])
@pytest.mark.parametrize("layout", ["C", "Fortran", "reversed", "broadcast", "read-only", "list"])
def test_latents(dtype, layout, model, strictness):
    """Numbers of any type and layout, converted to float32."""
    latents = np.random.default_rng(0).integers(-3, 4, (1, 4, 8, 8)).astype(np.int8)
    if "u" in dtype:
        latents = abs(latents)
    expected = model.decode(latents.astype(np.float32))
    array = latents.astype(dtype)
    form = {
        "C": lambda: array,
        "Fortran": lambda: np.asfortranarray(array),
        "reversed": lambda: array[..., ::-1].copy()[..., ::-1],
        "broadcast": lambda: np.broadcast_to(array, (1, *array.shape[1:])),
        "read-only": lambda: np.frombuffer(array.tobytes(), dtype).reshape(array.shape),
        "list": lambda: array.tolist(),
    }[layout]()
    np.testing.assert_array_equal(model.decode(form), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39, -1e39])
def test_latents_that_are_no_numbers(value, model, strictness):
    latents = np.zeros((1, 4, 8, 8))
    latents[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="^latent: "):
        model.decode(latents)
    with pytest.raises(ValueError, match="^latents: "):
        model.predict_noise(latents, 1)


def test_colours_are_kept_under_strict_settings(strictness):
    for content in noise(H, W, 3), np.zeros((H, W, 3), np.uint8), np.full((H, W, 3), 255, np.uint8):
        np.testing.assert_array_equal(styleid.keep_colours(content, content), content)
    assert styleid.keep_colours(np.full((H, W, 3), 5e-324), noise(H, W, 3)).shape == (H, W, 3)


# ---- the whole method ----


@pytest.mark.parametrize(
    "value", [Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.array(0.5, ">f8"), np.longdouble(0.5)], ids=repr
)
def test_rates(value, model, strictness):
    content, style = (styleid.invert(noise(16, 16, 3, seed=seed), model, steps=3) for seed in (0, 1))
    expected = styleid.inject_styles(content, style, model, gamma=0.5, temperature=0.5)
    for form in value, np.array([[value] * model.layer_count]), lambda fraction, layer: value:
        out = styleid.inject_styles(content, style, model, gamma=form, temperature=form)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("error, value", [
    (TypeError, "0.5"), (TypeError, True), (TypeError, 0.5j), (TypeError, [[0.5], [0.5, 0.5]]), (TypeError, object()),
    (TypeError, lambda fraction, layer: None), (ValueError, np.nan), (ValueError, -0.1), (ValueError, Fraction(3, 2)),
    (ValueError, Decimal("nan")), (ValueError, [0.5, 10**400]),
])  # fmt: skip
def test_what_is_no_rate(error, value, model, strictness):
    content, style = (styleid.invert(noise(16, 16, 3, seed=seed), model, steps=3) for seed in (0, 1))
    with pytest.raises(error, match="^gamma: "):
        styleid.inject_styles(content, style, model, gamma=value)


@pytest.mark.parametrize("temperature", [0, 1e-60, 5e-324, 1e39, np.inf])
def test_temperatures_that_float32_does_not_hold(temperature, model, strictness):
    with pytest.raises(ValueError, match="^temperature: "):
        styleid.transfer(noise(16, 16, 3), noise(16, 16, 3), model, steps=3, temperature=temperature)


def test_the_method_under_strict_settings(model, strictness):
    content, style = (styleid.invert(noise(16, 16, 3, seed=seed), model, steps=3) for seed in (0, 1))
    for initial in "adain", "content", "style", "quantiles", "frequencies":
        styleid.inject_styles(content, style, model, options=styleid.Start(initial=initial))
    mix = styleid.Mix(weights=[1, 2.0], masks=[1e-200 * np.eye(16) + np.eye(16, k=1), np.tri(16)])
    styleid.inject_styles(content, [style, content], model, options=mix)
    for level in 0.0, 5e-324, 1.0:
        styleid.transfer(np.full((16, 16, 3), level), noise(16, 16, 3), model, steps=3)
    content.reconstruct()
    for content in noise(16, 16, 3), np.zeros((16, 16, 3), np.uint8):
        styleid.metrics.evaluate(content, content, content)
