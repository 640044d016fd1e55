"""The settings of a command as texts: what images say about how they were made, and what --like and --settings read.

Both are a table of flags without their dashes, each with its value on the command line: a text or a number, a list for a
flag that comes several times, and true for a flag without a value.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from styleid import _core
from styleid.cli.parser import Group, add_flag
from styleid.metadata import read_settings
from styleid.method.options import MEAN
from styleid.method.rates import PAPER
from styleid.models.model import Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIKE, SETTINGS = "--like", "--settings"


def add_settings_flags(group: Group) -> None:
    """--like and --settings, which `expand` replaces before the arguments are parsed."""
    add_flag(
        group, LIKE, metavar="IMAGE", help="use the settings that IMAGE was made with; flags given here take precedence"
    )
    add_flag(
        group,
        SETTINGS,
        metavar="FILE",
        help="a TOML file of flags without their dashes, such as gamma = 0.5; flags given here take precedence",
    )


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments, with those that --like and --settings stand for, unless they are given as well.

    Raises:
        ValueError: a file that does not hold settings
        OSError: it cannot be opened
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(LIKE)
    finder.add_argument(SETTINGS)
    found, _ = finder.parse_known_args(arguments)
    tables: list[tuple[str, Mapping[str, Any]]] = []
    if found.like:
        tables.append((found.like, dict(read_settings(found.like).get("options") or {})))
    if found.settings:
        tables.append((found.settings, _read_toml(found.settings)))
    result = list(arguments[:1])
    for source, table in tables:
        for name, value in table.items():
            flag = f"--{name}"
            if not any(one == flag or one.startswith(flag + "=") for one in arguments):
                result += _words(source, flag, value)
    return result + list(arguments[1:])


def _read_toml(path: str) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        try:
            return tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None


def _words(source: str, flag: str, value: object) -> list[str]:
    if value is True:
        return [flag]
    if value is False:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in values):
        raise ValueError(f"{source}: {flag[2:]}: expected a text, a number, true or a list of texts, got {value!r}")
    return [f"{flag}={one}" for one in values]


# ---- what an image says ----


def describe(options: argparse.Namespace, model: Model, inputs: Sequence[str]) -> dict[str, Any]:
    """How an image is made: versions, the model, all options, and the files that are read with their hashes."""
    engine = _core.info()
    return {
        "styleid": _core.__version__,
        "engine": {"onednn": engine["onednn"], "isa": engine["isa"], "device": str(model.device)},
        "model": {"source": model.source, "fingerprint": model.fingerprint},
        "inputs": [{"path": os.fspath(path), "sha256": sha256(path)} for path in inputs],
        "options": _options(options, model),
    }


def _options(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Every flag that has an effect on the image, defaults and what the model recommends included."""
    table: dict[str, Any] = {
        "model": options.model,
        "dtype": model.dtype,
        "threads": model.threads,
        "tiling": options.tiling,
        "steps": getattr(options, "Steps.steps"),
        "schedule": getattr(options, "Steps.schedule"),
        "gamma": model.recommended.get("gamma", PAPER["gamma"]),
        "temperature": model.recommended.get("temperature", PAPER["temperature"]),
        "seed": model.recommended.get("seed", MEAN),
    }
    facts = _core.schedule(model.engine, table["schedule"], table["steps"])
    table["layers"] = ",".join(map(str, model.recommended.get("layers", facts["layers"])))
    if options.lora:
        table["lora"] = [f"{path}:{weight:.17g}" for path, weight in options.lora]
    for name in "prediction", "vae":
        if getattr(options, name) is not None:
            table[name] = getattr(options, name)
    for name in "ema", "keep_colours":
        if getattr(options, name):
            table[name.replace("_", "-")] = True
    if options.bits != 8:
        table["bits"] = options.bits
    table |= {name: text for name, text in options.texts.items() if name != "cache"}
    # All values are texts, so that an image made by --like says the same.
    return {name: value if isinstance(value, (bool, list)) else str(value) for name, value in table.items()}


def sha256(path: str) -> str:
    """The hash of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def inputs_like(path: str) -> list[str]:
    """The files that an image was made from, unchanged.

    Raises:
        ValueError: a file is not there, or has changed
    """
    found = []
    for one in read_settings(path).get("inputs") or []:
        places = [Path(one["path"]), Path(path).parent / Path(one["path"]).name]
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise ValueError(f"{path}: was made from {one['path']}, which is not there")
        if sha256(str(place)) != one["sha256"]:
            raise ValueError(f"{path}: was made from {one['path']}, which is another file by now")
        found.append(str(place))
    return found


def check_model(path: str, model: Model) -> None:
    """Raises ValueError where an image was made with another model, or other weights."""
    fingerprint = read_settings(path).get("model", {}).get("fingerprint")
    if fingerprint != model.fingerprint:
        raise ValueError(
            f"{path}: was made with a model of the fingerprint {fingerprint}, this one has {model.fingerprint}"
        )
