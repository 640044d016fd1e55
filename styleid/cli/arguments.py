"""The arguments of the commands. Those of the method are made from its option classes."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn, TypeVar

from styleid._core import __version__
from styleid.cli.settings import add_settings_flags
from styleid.images import BITS
from styleid.method.options import Accuracy, Injection, Kept, Mix, Resize, Start, Steps, Storage, Text
from styleid.models.placement import DTYPES

USER_ERROR = 2
TILINGS: dict[str, str | bool] = {"auto": "auto", "on": True, "off": False}
OF_TRANSFER = "content_prompt", "style_prompt"  # fields of Text that other commands have no use for

T = TypeVar("T")
Command = Callable[[argparse.Namespace], None]
Add = Callable[[argparse.ArgumentParser], None]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for all other errors."""
        self.exit(USER_ERROR, f"styleid: error: {message} (see {self.prog} --help)\n")


# ---- flags of option classes ----


def add_options(command: argparse.ArgumentParser, kind: type, leave_out: Sequence[str] = ()) -> None:
    """Adds a flag for each field of an option class that has a help text, in a group of their own."""
    group = command.add_argument_group(str(kind.__doc__).splitlines()[0].rstrip(".").lower())
    for one in fields(kind):
        if one.metadata.get("help") and one.name not in leave_out:
            _add_flag(group, one, f"{kind.__name__}.{one.name}")


def read_options(namespace: argparse.Namespace, kind: type[T]) -> T:
    """The object of an option class that the flags ask for."""
    return kind(**arguments_of(namespace, kind))


def arguments_of(namespace: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of an option class, with defaults for those without a flag, after a check of all of them."""
    given = vars(namespace)
    values = {one.name: given.get(f"{kind.__name__}.{one.name}", one.default) for one in fields(kind)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come where the values are used
        kind(**values)
    return values


def _add_flag(group: argparse._ArgumentGroup, one: "Field[Any]", place: str) -> None:
    facts = dict(one.metadata)
    flag = facts.pop("flag", "--" + one.name.replace("_", "-"))
    none, action = facts.pop("none", None), facts.pop("action", "store")
    if none is not None:
        group = group.add_mutually_exclusive_group()
        group.add_argument(none[0], dest=place, action=_Given, kind="store_false", default=one.default, help=none[1])
    if action != "store_false":
        facts.setdefault("metavar", None if "choices" in facts else one.name.upper())
    group.add_argument(flag, dest=place, default=one.default, action=_Given, kind=action, **facts)


class _Given(argparse.Action):
    """Stores what a flag says, and in `texts` how it was said, so that it can be said again.

    kind: "store", "append" or "store_false"; parse: reads the text, and raises ValueError
    """

    def __init__(self, *arguments: Any, kind: str, parse: Callable[[str], object] = str, **facts: Any) -> None:
        facts["nargs"] = 0 if kind == "store_false" else None
        super().__init__(*arguments, **facts)
        self._kind, self._parse = kind, parse

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """As argparse calls it."""
        texts = namespace.texts = dict(namespace.texts)
        name = str(self.option_strings[0])[2:]
        value: object = False
        if self._kind == "store_false":
            texts[name] = True
        else:
            try:
                value = self._parse(values)
            except ValueError as error:
                raise argparse.ArgumentError(self, str(error)) from None
            texts[name] = values
            if self._kind == "append":
                value = texts[name] = [*(getattr(namespace, self.dest) or []), value]
        setattr(namespace, self.dest, value)


# ---- commands ----


def make_parser(arguments: dict[str, tuple[str, Add]], commands: dict[str, Command]) -> argparse.ArgumentParser:
    """The parser of all commands, each with the function that runs it as `run`.

    arguments: of every command what it is for, and what adds its arguments
    """
    parser = _Parser(
        prog="styleid",
        description="The style of one image on the content of another (Chung, Hyun, Heo, CVPR 2024).",
    )
    parser.add_argument("--version", action="version", version=f"styleid {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (text, add) in arguments.items():
        command = subparsers.add_parser(name, help=text)
        add(command)
        command.set_defaults(run=commands[name], texts={})
    return parser


IMAGE = "an image file; see --size and --resize"


def _add_transfer(command: argparse.ArgumentParser) -> None:
    command.add_argument("content", metavar="CONTENT", nargs="?", help=f"{IMAGE}; a folder or a pattern of them, or -")
    command.add_argument(
        "style",
        metavar="STYLE",
        nargs="*",
        help="the same; several are mixed, those of a folder or a pattern are used in turn",
    )
    _add_output(
        command,
        "the image to write: .png, .jpg, .webp, .tif or .bmp; of several results a folder; - : PNG to the output",
    )
    command.add_argument(
        "--keep-colours", action="store_true", help="the content's colours with the result's brightness"
    )
    command.add_argument(
        "--preview", metavar="FILE", help="an image that is written again and again with what comes out so far"
    )
    command.add_argument(
        "--save-latents", metavar="NPZ", help="the latents of all steps of the sampling, as NumPy arrays"
    )
    _add_bits(command)
    command.add_argument("--json", action="store_true", help="a line of JSON for each result in place of a sentence")
    add_settings_flags(command)
    for kind in (Steps, Injection, Start, Mix, Text, Resize, Accuracy, Storage):
        add_options(command, kind)
    add_engine(command)


def _add_invert(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help=IMAGE)
    _add_output(command, "the inversion to write (safetensors)")
    add_options(command, Text, leave_out=OF_TRANSFER)
    for kind in (Steps, Kept, Resize, Accuracy, Storage):
        add_options(command, kind)
    add_engine(command)


def _add_inject(command: argparse.ArgumentParser) -> None:
    command.add_argument("content", metavar="CONTENT", help="the content's inversion")
    command.add_argument("style", metavar="STYLE", nargs="+", help="the style's inversion, or those of several")
    _add_output(command, "the image to write: .png, .jpg, .webp, .tif or .bmp")
    _add_bits(command)
    add_options(command, Text, leave_out=OF_TRANSFER)
    for kind in (Injection, Start, Mix):
        add_options(command, kind)
    add_engine(command)


def _add_app(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        action="append",
        help="a folder, a file, or a name on the hub; several to choose from (default: default)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine alone)"
    )
    command.add_argument("--port", type=int, default=7860, help="the port to listen on (default: 7860)")
    command.add_argument("--browser", action="store_true", help="open the page in a browser")


def _add_info(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, default=50, help="of the estimate (default: 50)")
    add_engine(command)


ARGUMENTS: dict[str, tuple[str, Add]] = {
    "transfer": ("the whole method: two images in, one out", _add_transfer),
    "invert": ("invert an image once, to inject it many times", _add_invert),
    "inject": ("an image from two inversions", _add_inject),
    "app": ("a page in the browser to play with (extra: styleid[app])", _add_app),
    "info": ("versions, CPU, the model, and how long a transfer takes", _add_info),
}


def _add_output(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=text)
    command.add_argument("--overwrite", action="store_true", help="also where OUT is one of the files that are read")


def _add_bits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--bits", type=int, choices=BITS, default=8, help="bits of a channel; 16 in PNG files (default: 8)"
    )


def add_engine(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the model and the machine")
    model = "a folder, a file, or a name on the hub of a Stable Diffusion model (the small model shipped)"
    group.add_argument("--model", default="default", help=model)
    group.add_argument("--prediction", choices=("epsilon", "v_prediction"), help="for files that do not say")
    group.add_argument(
        "--lora",
        metavar="FILE[:WEIGHT]",
        type=_lora,
        action="append",
        default=[],
        help="a change of the model, merged with a weight (1)",
    )
    group.add_argument("--vae", help="a VAE in place of the model's own: a folder, a file, or a name on the hub")
    group.add_argument(
        "--tiling", choices=TILINGS, default="auto", help="the VAE in tiles (auto: above 768x768 pixels)"
    )
    group.add_argument("--ema", action="store_true", help="running means of the UNet's weights, of a single file")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="what is computed in; float16 on GPUs only")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or such as cuda:1; of sweep also all: every GPU (auto)"
    )
    group.add_argument(
        "--threads", type=int, help="threads to compute with (what the process may use: see styleid info)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _lora(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a colon of the path
