"""What --help says: each command's sentence and examples, each option's group and default."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from styleid.cli.arguments import DESCRIPTIONS
from styleid.cli.commands import COMMANDS
from styleid.cli.figures import FIGURE_DESCRIPTIONS, FIGURES
from styleid.cli.main import main
from styleid.cli.parser import make_parser
from styleid.cli.study_arguments import STUDY_DESCRIPTIONS

ALL = DESCRIPTIONS | FIGURE_DESCRIPTIONS | STUDY_DESCRIPTIONS
PARSER = make_parser(ALL, COMMANDS)
# Options that take a value, and without which there is nothing of what they mean.
WITHOUT_DEFAULT = {
    "--output", "--preview", "--save-latents", "--like", "--settings", "--cache", "--prediction", "--lora", "--vae",
    "--pairs of evaluate",
}  # fmt: skip


def commands_of(parser):
    """A parser's commands, and what each is for, by their names."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                found[name] = command
                found |= {f"{name} {inner}": one for inner, one in commands_of(command).items()}
    return found


PARSERS = commands_of(PARSER)


def examples_of(name):
    return re.findall(r"^  (styleid .*)$", PARSERS[name].epilog, re.MULTILINE)


def options_of(name):
    return [action for action in PARSERS[name]._actions if action.option_strings]


def test_every_command_is_described():
    assert set(PARSERS) == {*COMMANDS, "figure", *(f"figure {name}" for name in FIGURES)}
    for name, described in ALL.items():
        assert f"\n    {name}" in PARSER.format_help() and described.sentence in " ".join(PARSER.format_help().split())
    for name, figure in FIGURES.items():
        text = PARSERS["figure"].format_help()
        assert f"\n    {name}" in text and figure.sentence in " ".join(text.split())


@pytest.mark.parametrize("name", PARSERS)
def test_help(name, capsys):
    """One sentence, arguments in groups, examples."""
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    out, err = capsys.readouterr()
    assert end.value.code == 0 and err == "" and out.startswith(f"usage: styleid {name} ")
    assert "positional arguments:" not in out
    assert [action.dest for action in PARSERS[name]._optionals._group_actions] == ["help"]  # all others are in groups
    assert re.search(r"\n\n[A-Z][^.\n]+\.\n\noptions:\n", out)
    assert out.endswith("\n".join(["examples:", *(f"  {one}" for one in examples_of(name)), ""]))


@pytest.mark.parametrize("name", PARSERS)
def test_examples_are_command_lines(name):
    assert (1 if " " in name else 2) <= len(examples_of(name)) <= 4
    for line in examples_of(name):
        program, *words = shlex.split(line)
        assert program == "styleid" and " ".join(words).startswith(name) and len(line) <= 100
        assert callable(PARSER.parse_args(words).run)


@pytest.mark.parametrize("name", PARSERS)
def test_defaults(name):
    """Each option that takes a value and has a default says it once, at the end of its text."""
    for option in options_of(name):
        flag = option.option_strings[-1]
        has_default = option.nargs != 0 and not {flag, f"{flag} of {name}"} & WITHOUT_DEFAULT
        assert option.help.count("default: ") == has_default, flag
        assert not has_default or re.search(r"[^ ] \(default: [^)]+\)$", option.help), flag


@pytest.mark.parametrize("name", PARSERS)
def test_defaults_can_be_typed(name):
    """A default that is not said in words is what one would type to get it."""
    for option in options_of(name):
        said = option.help.rpartition("(default: ")[2].removesuffix(")")
        if option.default not in (None, [], (None,), "", True, (True,), "default") and option.nargs != 0:
            given = argparse.Namespace(texts={})
            values = option.type(said) if option.type else said
            option(PARSER, given, values, option.option_strings[0])
            found = getattr(given, option.dest)
            assert found == option.default or tuple(found) == option.default, option.option_strings


@pytest.mark.parametrize("name", ALL)
def test_the_page_says_the_same(name):
    page = (Path(__file__).parent.parent / "docs/command-line.md").read_text()
    sentence, examples, _ = ALL[name]
    lines = [f"## {name}", "", f"{sentence[0].upper()}{sentence[1:]}.", "", "```", *examples, "```", ""]
    assert "\n".join(lines) in page
