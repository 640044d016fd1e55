"""Makes the images of the gallery and of the README with the shipped model: python docs/gallery.py

It takes a few minutes on two cores, and is to be run again when the shipped model changes.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import styleid

Pixels = NDArray[np.uint8]

FOLDER = Path(__file__).parent / "images"
DEMO = Path(styleid.__file__).parent / "data" / "demo"
STEPS = 20
WARM = np.array([[0.2, 0.1, 0.1], [0.5, 0.3, 0.1], [0.6, 0.2, 0.1]])  # what blue becomes is mostly red
GAP, LINE = 8, 16  # pixels between images, and of the line of text below them


def write_row(name: str, images: dict[str, Pixels], captions: bool = True) -> None:
    """Writes images of one size beside each other, with their names below them."""
    height, width = next(iter(images.values())).shape[:2]
    row = Image.new("RGB", (len(images) * (width + GAP) - GAP, height + LINE * captions), "white")
    for number, (caption, pixels) in enumerate(images.items()):
        left = number * (width + GAP)
        row.paste(Image.fromarray(pixels), (left, 0))
        if captions:
            ImageDraw.Draw(row).text((left + 2, height + 2), caption, fill="black")
    row.save(FOLDER / name, quality=82, optimize=True)


def write_readme(model: styleid.Model, photo: Pixels, painting: Pixels) -> None:
    """The README's image: what `make demo` makes, beside what it is made from."""
    result = styleid.transfer(photo, painting, model)
    write_row("transfer.jpg", {"photograph": photo, "painting": painting, "result": result}, captions=False)


def write_gallery(model: styleid.Model, photo: Pixels, painting: Pixels) -> None:
    """A row of images for each section of gallery.md."""
    ember = np.clip(painting[::-1] @ WARM, 0, 255).astype(np.uint8)
    content, night, warm = (styleid.invert(each, model, steps=STEPS) for each in (photo, painting, ember))
    plain = styleid.inject_styles(content, night)
    write_row(
        "gallery-gamma.jpg",
        {"content": photo, "style": painting}
        | {f"gamma {gamma}": styleid.inject_styles(content, night, gamma=gamma) for gamma in (0.0, 0.5, 0.9)},
    )
    write_row(
        "gallery-parts.jpg",
        {
            "recommended settings": plain,
            "without AdaIN": styleid.inject_styles(content, night, adain=False),
            "without injection": styleid.inject_styles(content, night, inject=False),
            "the content's colours": styleid.keep_colours(plain, photo),
            "strength 0.5": styleid.inject_styles(content, night, options=styleid.Start(strength=0.5)),
        },
    )
    above = np.zeros(photo.shape[:2])
    above[: len(above) // 2] = 1
    write_row(
        "gallery-styles.jpg",
        {
            "second style": ember,
            "second style alone": styleid.inject_styles(content, warm),
            "half of each": styleid.inject_styles(content, [night, warm], options=styleid.Mix([1, 1])),
            "one above, one below": styleid.inject_styles(
                content, [night, warm], options=styleid.Mix(masks=[above, 1 - above])
            ),
            "above only": styleid.inject_styles(content, night, options=styleid.Mix(masks=above)),
        },
    )
    write_row(
        "gallery-reverse.jpg",
        {"content": painting, "style": photo, "result": styleid.inject_styles(night, content)},
    )


def main() -> None:
    model = styleid.load_model()
    photo, painting = (styleid.load_image(DEMO / name, model.image_size) for name in ("content.jpg", "style.jpg"))
    write_gallery(model, photo, painting)
    write_readme(model, photo, painting)


if __name__ == "__main__":
    main()
