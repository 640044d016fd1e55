"""What --help says: each command's sentence and examples, each option's group and default."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from styleid.cli.arguments import DESCRIPTIONS
from styleid.cli.commands import COMMANDS
from styleid.cli.main import main
from styleid.cli.parser import make_parser
from styleid.cli.study_arguments import STUDY_DESCRIPTIONS

ALL = DESCRIPTIONS | STUDY_DESCRIPTIONS
PARSER = make_parser(ALL, COMMANDS)
# Options that take a value, and without which there is nothing of what they mean.
WITHOUT_DEFAULT = {
    "--output", "--preview", "--save-latents", "--like", "--settings", "--cache", "--prediction", "--lora", "--vae",
    "--pairs of evaluate",
}  # fmt: skip


def command(name):
    """The parser of one command."""
    (subparsers,) = [action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction)]
    return subparsers.choices[name]


def options_of(name):
    return [action for action in command(name)._actions if action.option_strings]


def test_every_command_is_described():
    assert set(ALL) == set(COMMANDS)
    for name, described in ALL.items():
        assert f"\n    {name}" in PARSER.format_help() and described.sentence in " ".join(PARSER.format_help().split())


@pytest.mark.parametrize("name", ALL)
def test_help(name, capsys):
    """One sentence, arguments in groups, examples."""
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    out, err = capsys.readouterr()
    assert end.value.code == 0 and err == "" and out.startswith(f"usage: styleid {name} ")
    assert "positional arguments:" not in out
    assert [action.dest for action in command(name)._optionals._group_actions] == ["help"]  # all others are in groups
    sentence = ALL[name].sentence
    assert f"\n{sentence[0].upper()}{sentence[1:]}.\n" in out and len(sentence) < 80
    assert out.endswith("\n".join(["examples:", *(f"  {one}" for one in ALL[name].examples), ""]))


@pytest.mark.parametrize("name", ALL)
def test_examples_are_command_lines(name):
    examples = ALL[name].examples
    assert 2 <= len(examples) <= 4
    for line in examples:
        program, *words = shlex.split(line)
        assert program == "styleid" and words[0] == name and len(line) <= 100
        PARSER.parse_args(words)


@pytest.mark.parametrize("name", ALL)
def test_defaults(name):
    """Each option that takes a value and has a default says it once, at the end of its text."""
    for option in options_of(name):
        flag = option.option_strings[-1]
        has_default = option.nargs != 0 and not {flag, f"{flag} of {name}"} & WITHOUT_DEFAULT
        assert option.help.count("default: ") == has_default, flag
        assert not has_default or re.search(r"[^ ] \(default: [^)]+\)$", option.help), flag


@pytest.mark.parametrize("name", ALL)
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
