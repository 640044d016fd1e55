"""CLIP's tokenizer, from the files that come with a model."""

import hashlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from styleid.files.disk import read_json, read_limited

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"unk": END, "bos": BEGIN, "eos": END, "pad": END}  # unless the files say otherwise
# How CLIP cuts a lower-cased text into words, before these are cut into the pieces of its vocabulary.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


Tokenize = Callable[[str], NDArray[np.int32]]  # a text -> (1, length) token numbers


def describe(tokenize: Tokenize | None) -> str:
    """A text that says everything that a text's token numbers depend on."""
    return "none" if tokenize is None else repr(tokenize)


class PromptTokenizer:
    """Turns a text into token numbers: begin token, pieces, end token, and padding up to a fixed length."""

    def __init__(self, tokenizer: Tokenizer, begin: int, end: int, pad: int, length: int) -> None:
        self.tokenizer = tokenizer
        self.begin, self.end, self.pad, self.length = begin, end, pad, length

    def __repr__(self) -> str:
        text = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        return f"PromptTokenizer({text}, {self.begin}, {self.end}, {self.pad}, {self.length})"

    def __call__(self, text: str) -> NDArray[np.int32]:
        """Returns (1, length) token numbers; a text that is too long is cut off with a warning."""
        try:
            text.encode()  # half a surrogate pair has no tokens; not all versions of `tokenizers` say so
            pieces = self.tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # noqa: BLE001  `tokenizers` raises nothing more specific
            raise ValueError(f"prompt {text[:80]!r} cannot be tokenized: {error}") from None
        room = self.length - 2
        if len(pieces) > room:
            warnings.warn(f"the prompt has {len(pieces)} tokens; only the first {room} are used", stacklevel=3)
        tokens = [self.begin, *pieces[:room], self.end]
        tokens += [self.pad] * (self.length - len(tokens))
        return np.array([tokens], dtype=np.int32)


class EmptyPromptTokenizer:
    """The tokens of the empty prompt, for models that come without a tokenizer.

    CLIP's vocabulary ends with its begin and end tokens, so that these are known without its files.
    """

    def __init__(self, vocabulary: int, length: int, pads_with_zero: bool) -> None:
        self.tokens = np.full((1, length), 0 if pads_with_zero else vocabulary - 1, np.int32)
        self.tokens[0, :2] = vocabulary - 2, vocabulary - 1

    def __repr__(self) -> str:
        return f"EmptyPromptTokenizer({self.tokens.tolist()})"

    def __call__(self, text: str) -> NDArray[np.int32]:
        """Returns (1, length) token numbers; raises ValueError for any other prompt."""
        if text:
            raise ValueError(
                f"prompt {text[:80]!r}: this model came without a tokenizer; put a folder `tokenizer` with CLIP's vocab.json "
                "and merges.txt into its folder, or beside its file, or use the empty prompt"
            )
        return self.tokens


def read_tokenizer(folder: Path, positions: int, vocabulary: int) -> PromptTokenizer:
    """From tokenizer.json, or vocab.json and merges.txt. ValueError naming the file and the fault.

    positions, vocabulary: what the text encoder accepts.
    """
    settings = _settings(folder)
    names = {key: _token(settings.get(f"{key}_token"), default) for key, default in SPECIAL.items()}
    tokenizer = _read(folder, names)
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    if max(numbers.values()) >= vocabulary:
        raise ValueError(f"{folder}: a token number is beyond the text encoder's vocabulary of {vocabulary}")
    length = settings.get("model_max_length", positions)
    length = positions if not isinstance(length, int) else min(length, positions)
    if length < 2:
        raise ValueError(f"{folder}: model_max_length is {length}; expected at least 2")
    return PromptTokenizer(tokenizer, numbers[names["bos"]], numbers[names["eos"]], numbers[names["pad"]], length)


def _settings(folder: Path) -> dict[str, Any]:
    """The settings in tokenizer_config.json; where there is a special_tokens_map.json, its special tokens take precedence."""
    config, tokens = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    settings = read_json(config) if config.is_file() else {}
    if "added_tokens_decoder" not in settings and tokens.is_file():
        settings |= read_json(tokens)
    return settings


def _token(value: Any, default: str) -> str:
    """A special token is given by its text, or by an object with its text and flags, or not at all."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else default


def _read(folder: Path, names: dict[str, str]) -> Tokenizer:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        make = partial(Tokenizer.from_buffer, read_limited(whole))
    else:
        merges = read_limited(folder / "merges.txt").decode("utf-8", "replace").splitlines()
        pairs = [_pair(line, folder) for line in merges if line.strip() and not line.startswith("#version")]
        make = partial(_clip_tokenizer, read_json(folder / "vocab.json"), pairs, names["unk"])
    try:
        tokenizer = make()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.add_special_tokens(sorted(set(names.values())))
    except Exception as error:  # noqa: BLE001  `tokenizers` raises nothing more specific
        raise ValueError(f"{folder}: unusable tokenizer: {error}") from None
    return tokenizer


def _clip_tokenizer(vocabulary: dict[str, int], pairs: list[tuple[str, str]], unknown: str) -> Tokenizer:
    """CLIP's byte-level byte-pair encoding of lower-cased text (Radford et al. 2021, section 2.4)."""
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _pair(line: str, folder: Path) -> tuple[str, str]:
    first, _, second = line.rstrip().partition(" ")
    if not second or " " in second:
        raise ValueError(f"{folder / 'merges.txt'}: expected two pieces on every line, found {line[:80]!r}")
    return first, second
