"""The arguments of transfer, invert, inject, app and info, and those that several commands have in common."""

from styleid.cli.parser import Description, Parser, add_flag, add_options
from styleid.cli.settings import add_settings_flags
from styleid.images import BITS
from styleid.method.options import Accuracy, Injection, Kept, Mix, Resize, Start, Steps, Storage, Text
from styleid.models.placement import DTYPES

TILINGS: dict[str, str | bool] = {"auto": "auto", "on": True, "off": False}
OF_TRANSFER = "content_prompt", "style_prompt"  # fields of Text that other commands have no use for

# The groups of --help.
FILES, METHOD, PROMPTS, STYLES = "input and output", "method", "prompts", "several styles and masks"
MODEL, EXECUTION = "model", "execution"

IMAGE = "an image file (see --size and --resize)"
SOURCE = "a Stable Diffusion model: a folder, a file, or a name on the hub"
SHIPPED = "the small model that is shipped"


def _add_transfer(parser: Parser) -> None:
    files = parser.group(FILES)
    files.add_argument(
        "content",
        metavar="CONTENT",
        nargs="?",
        help=f"{IMAGE}, a folder or a pattern of image files, or - for the standard input",
    )
    files.add_argument(
        "style",
        metavar="STYLE",
        nargs="*",
        help="as CONTENT; several arguments are mixed, and the images of a folder or a pattern are used in turn",
    )
    add_output(
        parser,
        "the image to write: .png, .jpg, .webp, .tif or .bmp; a folder for several results; - for PNG on the standard output",
    )
    _add_bits(parser)
    files.add_argument(
        "--keep-colours", action="store_true", help="give the result the content's colours, with its own brightness"
    )
    add_flag(files, "--preview", metavar="FILE", help="an image file that shows the predicted result after each step")
    add_flag(
        files, "--save-latents", metavar="NPZ", help="a NumPy file to write, with the latents of all sampling steps"
    )
    files.add_argument("--json", action="store_true", help="print a line of JSON for each result, not a sentence")
    add_settings_flags(files)
    add_options(parser, FILES, Resize)
    for kind in (Steps, Injection, Start, Accuracy):
        add_options(parser, METHOD, kind)
    add_options(parser, STYLES, Mix)
    add_options(parser, PROMPTS, Text)
    add_engine(parser)
    add_options(parser, EXECUTION, Storage)


def _add_invert(parser: Parser) -> None:
    parser.group(FILES).add_argument("image", metavar="IMAGE", help=IMAGE)
    add_output(parser, "the inversion to write, a safetensors file")
    add_options(parser, FILES, Resize)
    for kind in (Steps, Kept, Accuracy):
        add_options(parser, METHOD, kind)
    add_options(parser, PROMPTS, Text, leave_out=OF_TRANSFER)
    add_engine(parser)
    add_options(parser, EXECUTION, Storage)


def _add_inject(parser: Parser) -> None:
    files = parser.group(FILES)
    files.add_argument("content", metavar="CONTENT", help="the content's inversion")
    files.add_argument("style", metavar="STYLE", nargs="+", help="the style's inversion; several are mixed")
    add_output(parser, "the image to write: .png, .jpg, .webp, .tif or .bmp")
    _add_bits(parser)
    for kind in (Injection, Start):
        add_options(parser, METHOD, kind)
    add_options(parser, STYLES, Mix)
    add_options(parser, PROMPTS, Text, leave_out=OF_TRANSFER, prompt="the text that CONTENT was inverted under")
    add_engine(parser)


def _add_app(parser: Parser) -> None:
    add_flag(
        parser.group(MODEL), "--model", action="append", help=f"{SOURCE}; repeat it to offer several", unset=SHIPPED
    )
    page = parser.group("page")
    add_flag(
        page,
        "--host",
        default="127.0.0.1",
        help="the address to listen on; 127.0.0.1 is reached from this machine alone",
    )
    add_flag(page, "--port", type=int, default=7860, help="the port to listen on")
    page.add_argument("--browser", action="store_true", help="open the page in a browser")


def _add_info(parser: Parser) -> None:
    add_flag(
        parser.group(METHOD), "--steps", type=int, default=50, help="DDIM steps of the transfer whose cost is estimated"
    )
    _add_model(parser)


DESCRIPTIONS = {
    "transfer": Description(
        "give an image the style of another one, which is the whole method",
        (
            "styleid transfer photo.jpg painting.jpg -o stylized.png",
            "styleid transfer photo.jpg painting.jpg -o stylized.png --gamma 0.3 --size 512x768",
            "styleid transfer photos 'paintings/*.jpg' -o results --model ~/models/stable-diffusion-v1-5",
            "styleid transfer --like stylized.png -o again.png",
        ),
        _add_transfer,
    ),
    "invert": Description(
        "invert an image once, so that it can be injected many times",
        (
            "styleid invert photo.jpg -o photo.safetensors --keep query",
            "styleid invert painting.jpg -o painting.safetensors --keep keys",
        ),
        _add_invert,
    ),
    "inject": Description(
        "make an image from the inversions of a content and of a style",
        (
            "styleid inject photo.safetensors painting.safetensors -o stylized.png --gamma 0.5",
            "styleid inject photo.safetensors painting.safetensors etching.safetensors -o mixed.png --weights 1,3",
        ),
        _add_inject,
    ),
    "app": Description(
        "serve a page for the browser to play with (extra: styleid[app])",
        ("styleid app --browser", "styleid app --model default --model ~/models/stable-diffusion-v1-5 --port 8000"),
        _add_app,
    ),
    "info": Description(
        "show versions, the CPU, the model, and what a transfer costs",
        ("styleid info", "styleid info --model ~/models/stable-diffusion-v1-5 --dtype bfloat16"),
        _add_info,
    ),
}


# ---- what several commands have ----


def add_output(parser: Parser, text: str) -> None:
    """--output, and --overwrite for where it is read as well."""
    files = parser.group(FILES)
    files.add_argument("-o", "--output", metavar="OUT", required=True, help=text)
    files.add_argument("--overwrite", action="store_true", help="replace OUT also where it is one of the files read")


def _add_bits(parser: Parser) -> None:
    add_flag(
        parser.group(FILES),
        "--bits",
        type=int,
        choices=BITS,
        default=8,
        help="bits of a channel; 16 for PNG files only",
    )


def add_engine(parser: Parser, more_devices: str = "") -> None:
    """The model, where it computes, and --quiet. more_devices: what a command's --device takes beside those of a model."""
    _add_model(parser, more_devices)
    parser.group(EXECUTION).add_argument("--quiet", action="store_true", help="show no progress bar and no messages")


def _add_model(parser: Parser, more_devices: str = "") -> None:
    model = parser.group(MODEL)
    add_flag(model, "--model", default="default", help=SOURCE, unset=SHIPPED)
    add_flag(
        model,
        "--prediction",
        choices=("epsilon", "v_prediction"),
        help="what the UNet predicts, for files that do not say so",
    )
    add_flag(
        model,
        "--lora",
        metavar="FILE[:WEIGHT]",
        type=_lora,
        action="append",
        default=[],
        help="a LoRA to merge into the model; WEIGHT is 1 unless given; repeat it for several",
    )
    add_flag(model, "--vae", help="a VAE in place of the model's own: a folder, a file, or a name on the hub")
    model.add_argument("--ema", action="store_true", help="use the UNet's running means (EMA) of a single file")
    execution = parser.group(EXECUTION)
    add_flag(execution, "--device", default="auto", help=f"auto, cpu, cuda, or one GPU such as cuda:1{more_devices}")
    add_flag(execution, "--dtype", choices=DTYPES, default="auto", help="the dtype to compute in; float16 on GPUs only")
    add_flag(
        execution, "--threads", type=int, help="CPU threads", unset="as many as the process may use; see styleid info"
    )
    add_flag(
        execution,
        "--tiling",
        choices=TILINGS,
        default="auto",
        help="whether the VAE works in tiles; auto: above 768x768 pixels",
    )


def _lora(text: str) -> tuple[str, float]:
    """Reads FILE or FILE:WEIGHT; without a weight it is 1."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # the colon is a part of the path
