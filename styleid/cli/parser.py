"""The parsers of the commands: flags in groups, each with its default, flags made from option classes, and examples."""

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, NamedTuple, NoReturn, TypeVar

from styleid._core import __version__

USER_ERROR = 2

T = TypeVar("T")
Command = Callable[[argparse.Namespace], None]
Group = argparse._ArgumentGroup  # argparse has no public name for it


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, and whose arguments come in groups that are known by their titles."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **facts)
        self._titled: dict[str, Group] = {}

    def group(self, title: str) -> Group:
        """The group of arguments with a title, which --help shows in the order in which they were first asked for."""
        if title not in self._titled:
            self._titled[title] = self.add_argument_group(title)
        return self._titled[title]

    def error(self, message: str) -> NoReturn:
        """Ends the program with one line, as for all other errors."""
        self.exit(USER_ERROR, f"styleid: error: {message} (see {self.prog} --help)\n")


class Description(NamedTuple):
    """What a command is for.

    Attributes:
        sentence: what it does, as the list of commands says it, without a period
        examples: one to four command lines
        add: adds its arguments to its parser
    """

    sentence: str
    examples: Sequence[str]
    add: Callable[[Parser], None]


def make_parser(descriptions: Mapping[str, Description], commands: Mapping[str, Command]) -> Parser:
    """The parser of all commands, each with the function that runs it as `run`."""
    parser = Parser(
        prog="styleid",
        description="Give an image the style of another one (StyleID: Chung, Hyun, Heo, CVPR 2024).",
        epilog="styleid COMMAND --help says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"styleid {__version__}")
    add_commands(parser, "commands", "COMMAND", descriptions, commands)
    return parser


def add_commands(
    parser: Parser, title: str, metavar: str, descriptions: Mapping[str, Description], commands: Mapping[str, Command]
) -> None:
    """Adds commands to a parser, in a group with a title."""
    subparsers = parser.add_subparsers(title=title, metavar=metavar, required=True)
    for name, (sentence, examples, add) in descriptions.items():
        command = subparsers.add_parser(
            name,
            help=sentence,
            description=f"{sentence[0].upper()}{sentence[1:]}.",
            epilog="\n  ".join(["examples:", *examples]),
        )
        command.set_defaults(run=commands.get(name), texts={})  # commands of a command set their own `run`
        add(command)


# ---- flags ----


def add_flag(group: Group, *names: str, help: str, unset: str | None = None, **facts: Any) -> None:
    """Adds a flag whose help text ends with its default, if it has one.

    Args:
        help: what the flag means
        unset: what holds without the flag, in words. None: its default is said as it would be typed
        facts: further arguments of `add_argument`
    """
    action = group.add_argument(*names, **facts)
    default = _default_text(action) if unset is None else unset
    action.help = f"{help} (default: {default})" if default else help


def parsing(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A `type` of `add_argument` made from a function that raises ValueError, whose message becomes the error's."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _default_text(action: argparse.Action) -> str:
    """A default as it would be typed. Empty for switches, and for flags that have to be given or stand for nothing."""
    if action.nargs == 0 or action.required or action.default is None or action.default == []:
        return ""
    values = action.default if isinstance(action.default, tuple) else (action.default,)
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


# ---- flags of option classes ----


def add_options(parser: Parser, title: str, kind: type, leave_out: Sequence[str] = (), **unset: str) -> None:
    """Adds a flag to a group for each field of an option class that has a help text.

    Args:
        leave_out: fields that get no flag
        unset: what holds without the flag of a field, where it is not what the class says
    """
    for one in fields(kind):
        if one.metadata.get("help") and one.name not in leave_out:
            facts = dict(one.metadata)
            if one.name in unset:
                facts["unset"] = unset[one.name]
            _add_field(parser.group(title), one, f"{kind.__name__}.{one.name}", facts)


def read_options(namespace: argparse.Namespace, kind: type[T]) -> T:
    """The object of an option class that the flags ask for."""
    return kind(**arguments_of(namespace, kind))


def arguments_of(namespace: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of an option class, with defaults for those without a flag, after a check of all of them."""
    given = vars(namespace)
    values = {one.name: given.get(f"{kind.__name__}.{one.name}", one.default) for one in fields(kind)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warnings come where the values are used
        kind(**values)
    return values


def _add_field(group: Group, one: "Field[Any]", place: str, facts: dict[str, Any]) -> None:
    name = facts.pop("flag", "--" + one.name.replace("_", "-"))
    none, action = facts.pop("none", None), facts.pop("action", "store")
    if none is not None:
        group = group.add_mutually_exclusive_group()
        add_flag(group, none[0], dest=place, action=_Given, kind="store_false", default=one.default, help=none[1])
    if action != "store_false":
        facts.setdefault("metavar", None if "choices" in facts else one.name.upper())
    add_flag(group, name, dest=place, default=one.default, action=_Given, kind=action, **facts)


class _Given(argparse.Action):
    """Stores what a flag says, and in `texts` how it was said, so that it can be said again.

    Args:
        kind: "store", "append" or "store_false"
        parse: reads the text, and raises ValueError where it cannot
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
