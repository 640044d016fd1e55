"""What a notebook shows of an inversion."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from styleid.inversions.inversion import Inversion

SIDE = 192  # pixels


def inversion_html(inversion: Inversion) -> str:
    """The thumbnail, where a model is at hand, and a table of facts."""
    facts = {
        "image": "{} x {} pixels".format(*inversion.size),
        "steps": f"{inversion.steps} ({inversion.schedule})",
        "layers": ", ".join(map(str, inversion.layers)),
        "keep": inversion.keep + (" (evaluated again when asked for)" if inversion.recompute else ""),
        "features in": inversion.feature_dtype,
        "prompt": repr(inversion.prompt),
        "guidance": f"{inversion.guidance:g}",
        "size": f"{inversion.nbytes / 1e6:.0f} MB",
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(fact)}</td></tr>" for name, fact in facts.items())
    return f"<div>{_thumbnail(inversion)}<table>{rows}</table></div>"


def thumbnail_png(inversion: Inversion) -> bytes | None:
    """The thumbnail as a PNG file; None where no model is at hand."""
    pixels = inversion.thumbnail()
    if pixels is None:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _thumbnail(inversion: Inversion) -> str:
    png = inversion._repr_png_()
    return "" if png is None else f'<img alt="thumbnail" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
