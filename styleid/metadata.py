"""What an image file says beside its pixels: how the image was made, and the EXIF and colour profile of a photograph.

How the image was made is one JSON object: the text "styleid" of PNG files, EXIF's UserComment in JPEG, WebP and TIFF files.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

KEY = "styleid"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
# What was true of the photograph's own pixels, or points into its own file: orientation, sizes, the maker's note.
STALE = 0x0112, 0x0100, 0x0101, 0x0201, 0x0202
STALE_IN_IFD = 0xA002, 0xA003, 0x927C
ASCII = b"ASCII\0\0\0"
LARGEST_SEGMENT = 65000  # bytes of EXIF that a JPEG file has room for


@dataclass(frozen=True)
class Metadata:
    """What goes into an image file beside its pixels.

    Attributes:
        settings: how the image was made, as numbers, texts, lists and dictionaries of them; None: nothing is said
        exif: the content's EXIF as bytes; what describes the content's own pixels is left out when it is written
        icc_profile: the content's colour profile as bytes; the pixels are converted to it from sRGB when they are written
    """

    settings: Mapping[str, Any] | None = None
    exif: bytes | None = None
    icc_profile: bytes | None = None


def photograph(path: str | os.PathLike[str]) -> Metadata:
    """The EXIF and the colour profile of a file, as far as they can be read."""
    try:
        with Image.open(path) as image:
            profile = image.info.get("icc_profile")
            return Metadata(exif=image.info.get("exif"), icc_profile=profile if _rgb_profile(profile) else None)
    except Exception:  # noqa: BLE001  Pillow stumbles over damaged files in many ways; the image itself was read already
        return Metadata()


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How the image in a file was made, as the file says.

    Args:
        path: the path of a PNG, JPEG, WebP or TIFF file that styleid has written

    Returns:
        versions, the model's fingerprint, the options, and the inputs with their hashes

    Raises:
        ValueError: the file does not say it
        OSError: the file cannot be opened
    """
    with open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                text = image.info.get(KEY) or _comment(image.getexif())
                found = json.loads(text) if text else None
        except Exception as error:  # noqa: BLE001  as above
            raise ValueError(f"{path}: its settings cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: does not say how it was made")
    return found


def to_srgb(image: Image.Image) -> Image.Image:
    """An RGB image converted to sRGB by its colour profile; unchanged where it has none that can be used."""
    profile = image.info.get("icc_profile")
    return _convert(image, profile, None) if _rgb_profile(profile) else image


def prepare(image: Image.Image, metadata: Metadata, kind: str) -> tuple[Image.Image, dict[str, Any]]:
    """The image to be written in a format of Pillow's, and the options of its `save`."""
    options: dict[str, Any] = {}
    if metadata.icc_profile is not None and image.mode == "RGB" and kind != "BMP":
        image = _convert(image, None, metadata.icc_profile)
        options["icc_profile"] = metadata.icc_profile
    settings = None if metadata.settings is None else json.dumps(dict(metadata.settings))
    if kind == "PNG":
        if settings is not None:
            from PIL.PngImagePlugin import PngInfo

            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_text(KEY, settings)
        settings = None
    if kind != "BMP" and (metadata.exif or settings):
        options["exif"] = _exif(metadata.exif, settings)
    return image, options


def _exif(content: bytes | None, settings: str | None) -> bytes:
    exif = Image.Exif()
    try:
        exif.load(content or b"")
        for tag in STALE:
            exif.pop(tag, None)
        ifd = exif.get_ifd(EXIF_IFD)
        for tag in STALE_IN_IFD:
            ifd.pop(tag, None)
        written = _with_comment(exif, settings)
    except Exception:  # noqa: BLE001  damaged EXIF is no reason not to write the image
        written = b""
    if not written or len(written) > LARGEST_SEGMENT:
        written = _with_comment(Image.Exif(), settings)
    return written


def _with_comment(exif: Image.Exif, settings: str | None) -> bytes:
    if settings is not None:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + settings.encode("ascii")
    return exif.tobytes()


def _comment(exif: Image.Exif) -> str | None:
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    return comment[len(ASCII) :].decode("ascii") if isinstance(comment, bytes) and comment.startswith(ASCII) else None


def _rgb_profile(profile: object) -> bool:
    if not isinstance(profile, bytes) or len(profile) < 20:
        return False
    return profile[16:20] == b"RGB "


def _convert(image: Image.Image, source: bytes | None, target: bytes | None) -> Image.Image:
    """Converts an image from one colour profile to another; None: sRGB. It is unchanged where a profile cannot be used."""
    try:
        before, after = (
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB") if data is None else io.BytesIO(data))
            for data in (source, target)
        )
        converted = ImageCms.profileToProfile(image, before, after, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
