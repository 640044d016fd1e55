"""The entry point that reads images."""

import io
import zlib

import numpy as np
from PIL import Image

import styleid
from fuzz.files import reading
from fuzz.mutate import change_bytes


def image(place):
    """An image in one of the formats that are read. Half of the PNGs get right checksums again."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    rgb, rgba = (Image.fromarray(np.ascontiguousarray(noise[..., :channels])) for channels in (3, 4))
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK")} | {
        "RGBA": rgba,
        "LA": rgba.convert("LA"),
    }
    modes["I;16"] = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    kinds = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "GIF": ("P",), "BMP": ("1", "P", "RGB"),
        "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16"), "WEBP": ("RGB", "RGBA"), "PPM": ("1", "L", "RGB"), "TGA": ("L", "RGB", "RGBA"),
        "ICO": ("RGBA",), "JPEG2000": ("L", "RGB"), "AVIF": ("RGB",), "DIB": ("RGB",), "MPO": ("RGB",),
    }  # fmt: skip
    corpus = []
    Image.init()
    for kind, names in kinds.items():
        for mode in names if kind in Image.SAVE else ():
            buffer = io.BytesIO()
            modes[mode].save(buffer, format=kind)
            corpus.append(buffer.getvalue())
    for compression in "tiff_lzw", "tiff_deflate", "packbits", "jpeg":
        buffer = io.BytesIO()
        modes["RGB"].save(buffer, format="TIFF", compression=compression)
        corpus.append(buffer.getvalue())
    words = [
        b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"\xff\xd8", b"\xff\xc0", b"\xff\xe1", b"GIF89a", b"II*\0",
        b"MM\0*", b"RIFF", b"\0" * 8, b"\xff" * 8,
    ]  # fmt: skip

    def make(random):
        content = change_bytes(random, random.choice(corpus), words, corpus)
        return _right_checksums(content) if content[:8] == b"\x89PNG\r\n\x1a\n" and random.randrange(2) else content

    def read(path):
        before, Image.MAX_IMAGE_PIXELS = (
            Image.MAX_IMAGE_PIXELS,
            1 << 20,
        )  # so that an image takes 0.1 s at most instead of 9 s
        try:
            assert min(styleid.load_image(path, 8, "fit").shape) >= 1
        finally:
            Image.MAX_IMAGE_PIXELS = before

    return make, reading(place / "a.png", read)


def _right_checksums(png):
    """Returns a PNG whose chunks have the right checksums."""
    data, place = bytearray(png), 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + size > len(data):
            break
        checksum = zlib.crc32(data[place + 4 : place + 8 + size])
        data[place + 8 + size : place + 12 + size] = checksum.to_bytes(4, "big")
        place += 12 + size
    return bytes(data)
