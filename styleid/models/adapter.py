"""The settings that PEFT keeps beside a LoRA's tensors: in adapter_config.json, or in the metadata of diffusers' files.

They decide how strong each layer's change is: alpha / r, or with rank-stabilized LoRA (Kalajdzievski, 2023) alpha / sqrt(r),
where alpha and r may differ by layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from styleid.files.disk import parse_json, read_json

METADATA_KEY = "lora_adapter_metadata"  # of diffusers' safetensors files
PEFT_STEM, PEFT_CONFIG = "adapter_model", "adapter_config.json"
PREFIXES = {"unet": ("unet.", "transformer."), "text": ("text_encoder.",)}  # of the keys in diffusers' metadata
ALPHA = 8.0  # PEFT's own, where its settings do not say
# What changes the numbers in ways that are not computed here, whenever it is anything but null, false, 0 or empty.
UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "modules_to_save", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
# Ways to start a training that leave the model's own weights as they are.
INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
PATTERN_LENGTH, PATTERN_COUNT, REPETITIONS = 256, 4096, 2


class Adapter(NamedTuple):
    """The settings of the UNet's or the text encoder's changes."""

    where: str
    rank: int | None
    alpha: float
    ranks: list[tuple[re.Pattern[str], float]]  # of layers whose names end so
    alphas: list[tuple[re.Pattern[str], float]]
    stabilized: bool

    def scale(self, layer: str, rank: int) -> float:
        """The factor of the change of a layer whose tensors have that rank. Raises ValueError if the settings say another
        rank."""
        stated = _first(self.ranks, layer, self.rank)
        if stated is not None and stated != rank:
            raise ValueError(f"its tensors have the rank {rank}, but {self.where} says {stated:g}")
        alpha = _first(self.alphas, layer, self.alpha)
        assert alpha is not None
        return alpha / math.sqrt(rank) if self.stabilized else alpha / rank


def read_adapters(path: Path, metadata: Mapping[str, str]) -> dict[str, Adapter]:
    """The settings that come with a LoRA's file, by the part that they belong to, "unet" or "text".

    metadata: the file's own
    Returns: nothing for a part without settings. ValueError naming the file, the key and the value
    """
    beside = path.with_name(PEFT_CONFIG)
    if METADATA_KEY in metadata:
        where = f"{path}: metadata {METADATA_KEY}"
        values = parse_json(metadata[METADATA_KEY].encode("utf-8", "surrogatepass"), where)
    elif path.stem == PEFT_STEM and beside.is_file():
        where, values = str(beside), read_json(beside)
    else:
        return {}
    plain = {key: value for key, value in values.items() if "." not in key}
    adapters = {}
    for part, prefixes in PREFIXES.items():
        own = {key.removeprefix(p): value for p in prefixes for key, value in values.items() if key.startswith(p)}
        if own or plain:
            adapters[part] = _read(where, own or plain)
    return adapters


def _read(where: str, values: Mapping[str, Any]) -> Adapter:
    def refuse(key: str, expected: str) -> ValueError:
        return ValueError(f"{where}: {key} is {str(values[key])[:120]}; expected {expected}")

    for key in UNSUPPORTED:
        if values.get(key):
            raise refuse(key, "none: a LoRA with it is not supported")
    if str(values.get("peft_type") or "LORA").upper() != "LORA":
        raise refuse("peft_type", "LORA; other adapters are not supported")
    initial = values.get("init_lora_weights")
    if not any(initial is known or (isinstance(initial, str) and initial == known) for known in INITIAL):
        raise refuse("init_lora_weights", "one that leaves the model's own weights as they are")
    stabilized = values.get("use_rslora", False)
    if type(stabilized) is not bool:
        raise refuse("use_rslora", "true or false")
    if "r" in values and not _is_rank(values["r"]):
        raise refuse("r", "a positive whole number")
    if not _is_number(values.get("lora_alpha", ALPHA)):
        raise refuse("lora_alpha", "a number")
    patterns: dict[str, list[tuple[re.Pattern[str], float]]] = {}
    for key, fits, expected in (
        ("rank_pattern", _is_rank, "positive whole numbers"),
        ("alpha_pattern", _is_number, "numbers"),
    ):
        given = {} if values.get(key) is None else values[key]
        if not isinstance(given, dict) or len(given) > PATTERN_COUNT or not all(map(fits, given.values())):
            raise refuse(key, f"an object of layer names and {expected}")
        patterns[key] = [(_compile(f"{where}: {key}", name), float(value)) for name, value in given.items()]
    alpha = float(values.get("lora_alpha", ALPHA))
    return Adapter(where, values.get("r"), alpha, patterns["rank_pattern"], patterns["alpha_pattern"], stabilized)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 24


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _compile(where: str, pattern: str) -> re.Pattern[str]:
    """PEFT's rule: the pattern is a regular expression for the end of a layer's name, after a dot or as a whole.

    Only expressions that are searched for in a short time are taken: without groups and with few repetitions.
    """
    plain = re.fullmatch(r"[\w.\\^$*+?\[\]-]+", pattern) is not None and len(pattern) <= PATTERN_LENGTH
    if not plain or sum(map(pattern.count, "*+?")) > REPETITIONS:
        raise ValueError(f"{where}: the pattern {pattern[:80]!r} is not supported; expected layer names")
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except re.error as error:
        raise ValueError(f"{where}: the pattern {pattern[:80]!r}: {error}") from None


def _first(patterns: list[tuple[re.Pattern[str], float]], layer: str, default: float | None) -> float | None:
    """The value of the first pattern that matches the layer. In some files a text encoder's names begin with text_model."""
    names = layer, f"text_model.{layer}"
    return next((value for pattern, value in patterns if any(map(pattern.match, names))), default)
