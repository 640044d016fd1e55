"""The tokenizer: as transformers does it, and what is refused."""

import json
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from styleid.models.prompts import read_tokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

WORDS = [
    "the",
    "cat",
    "café",
    "naïve",
    "straße",
    "1984",
    "it's",
    "we'll",
    "I'd",
    "don't",
    "...",
    "!?",
    "->",
    "🎨",
    "日本語",
    "Ωmega",
]
STRINGS = [
    "", " ", "\t\n", "a", "A", "the cat", "The  CAT\tsat\non the mat", "  leading and trailing  ",
    "punctuation, of; all: kinds! (and) [brackets] {braces} 'quotes' \"double\" #hash @at 100% $5 a/b a\\b a_b a-b",
    "numbers 0 12 345 6789 3.14 1e-5 ½ ² ٣ Ⅻ", "it's we're they've I'm you'll he'd can't IT'S", "'s't're've'm'll'd",
    "café cafe\u0301 CAFÉ", "İstanbul ıI ß ẞ ŒUVRE", "日本語 中文 한국어 ไทย हिन्दी العربية עברית", "ﬁ ﬂ ① ℃ Å",
    "🎨🖼️ 👩‍🎨 🇫🇷 👍🏽", "zero\u200bwidth no\u00a0break soft\u00adhyphen \u2028 line", "\x00\x01\x7f\x80\x9f", "\ufeffbom \ufffd",
    f"{BEGIN} inside {END} text", f"{END}{END}", "<|startoftext", "|>", "<|", "</w>", "the</w>", "##", "\U0010ffff \U000e0001",
    "x" * 300, "the cat " * 60,
]  # fmt: skip


def strings():
    """The ones above, and some hundred made up from words and from characters of all planes."""
    random = np.random.default_rng(0)
    made = [" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(120)]
    ranges = [(32, 127), (0, 0x180), (0x300, 0x600), (0x2000, 0x2500), (0x3040, 0x30FF), (0x1F300, 0x1F700)]
    for low, high in ranges:
        made += ["".join(map(chr, random.integers(low, high, random.integers(1, 40)))) for _ in range(40)]
    return STRINGS + made


def byte_characters():
    """The 256 characters that stand for bytes in byte-level encoding: itself where printable, else from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


MERGES = [
    ("t", "h"),
    ("th", "e</w>"),
    ("c", "a"),
    ("ca", "t</w>"),
    ("Ã", "©"),
    ("i", "n"),
    ("in", "g</w>"),
    ("'", "s</w>"),
]


@pytest.fixture
def folder(tmp_path):
    """vocab.json and merges.txt of a small vocabulary that covers all bytes."""
    characters = byte_characters()
    pieces = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in MERGES), BEGIN, END]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    return tmp_path


def tokens(folder, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_tokenizer(folder, 77, 1000)(text)


def theirs(folder, text):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=False)
    return [tokenizer(t, padding="max_length", max_length=77, truncation=True).input_ids for t in text]


def test_as_transformers_does(folder):
    tokenizer = read_tokenizer(folder, 77, 1000)
    for text, expected in zip(strings(), theirs(folder, strings()), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert tokenizer(text).tolist() == [expected], repr(text)


def test_characters_of_all_planes(folder):
    """Alone, and between letters, where they may join or part what is beside them."""
    characters = [chr(code) for code in range(1, 0x110000, 1999) if not 0xD800 <= code < 0xE000]
    texts = [text for c in characters for text in (c, f"the{c}cat")]
    tokenizer = read_tokenizer(folder, 77, 1000)
    assert [tokenizer(text).tolist()[0] for text in texts] == theirs(folder, texts)


@pytest.mark.parametrize("count", [74, 75, 76, 77, 500])
def test_prompts_about_as_long_as_there_is_room(folder, count):
    """As transformers cuts them; with a warning where something was lost, and only there."""
    text = "the " * count
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = read_tokenizer(folder, 77, 1000)(text)
    assert out.tolist() == theirs(folder, [text])
    assert [str(warning.message) for warning in caught] == (
        [f"the prompt has {count} tokens; only the first 75 are used"] if count > 75 else []
    )


@pytest.mark.torch
def test_tokenizer_json_gives_the_same(folder):
    transformers = pytest.importorskip("transformers")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder / "saved")
    assert (folder / "saved/tokenizer.json").is_file()
    for text in strings():
        np.testing.assert_array_equal(tokens(folder / "saved", text), tokens(folder, text), err_msg=repr(text))


@pytest.mark.torch
def test_padding_and_truncation_inside_tokenizer_json_do_not_matter(folder):
    transformers = pytest.importorskip("transformers")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder / "saved")
    tokenizer = Tokenizer.from_file(str(folder / "saved/tokenizer.json"))
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "saved/tokenizer.json"))
    np.testing.assert_array_equal(tokens(folder / "saved", "the cat is sitting"), tokens(folder, "the cat is sitting"))


PAD_SETTINGS = [
    ({}, None),
    ({"pad_token": "!"}, None),
    ({"pad_token": END}, {"pad_token": "!"}),
    ({"pad_token": {"__type": "AddedToken", "content": "!", "special": True}}, None),
    ({}, {"pad_token": {"content": "!", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}}),
    (None, {"pad_token": "!"}),
]


@pytest.mark.parametrize("config, special", PAD_SETTINGS)
def test_padding_token_as_transformers_has_it(folder, config, special):
    """Stable Diffusion 2 pads with "!"."""
    for name, values in ("tokenizer_config.json", config), ("special_tokens_map.json", special):
        if values is not None:
            (folder / name).write_text(json.dumps(values))
    texts = ["", "the cat", "the cat!"]
    assert [tokens(folder, text).tolist()[0] for text in texts] == theirs(folder, texts)


def test_newer_folders_ignore_the_map_of_special_tokens(folder):
    added = {str(i): {"content": token, "special": True} for i, token in enumerate(["!"])}
    config = {"added_tokens_decoder": added, "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": END}))
    assert tokens(folder, "")[0, -1] == 0


def test_form(folder):
    out = tokens(folder, "the cat")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    expected = [vocabulary[piece] for piece in (BEGIN, "the</w>", "cat</w>", *[END] * 74)]
    assert out.dtype == np.int32 and out.tolist() == [expected]


def test_over_long_prompts_are_cut_with_a_warning(folder):
    with pytest.warns(UserWarning, match="has 100 tokens; only the first 75 are used"):
        out = read_tokenizer(folder, 77, 1000)("the " * 100)
    assert out.shape == (1, 77) and out[0, -1] == json.loads((folder / "vocab.json").read_text())[END]


def test_length_is_what_text_encoder_and_tokenizer_both_take(folder):
    assert read_tokenizer(folder, 20, 1000)("the").shape == (1, 20)
    for length, expected in ((30, 30), (10**30, 77), (None, 77)):
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
        assert read_tokenizer(folder, 77, 1000)("the").shape == (1, expected)


def test_lone_surrogate(folder):
    with pytest.raises(ValueError, match="cannot be tokenized"):
        tokens(folder, "\ud800")


# ---- unusable folders ----


def test_missing_files(folder):
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"merges\.txt: no such file"):
        tokens(folder, "")


def test_vocabulary_beyond_the_text_encoder(folder):
    with pytest.raises(ValueError, match="vocabulary of 100"):
        read_tokenizer(folder, 77, 100)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_length_without_room(folder, length):
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    with pytest.raises(ValueError, match="model_max_length"):
        tokens(folder, "")


@pytest.mark.parametrize(
    "name, content",
    [
        ("vocab.json", b"{"),
        ("vocab.json", b"[]"),
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.json", b'{"a": -1}'),
        ("vocab.json", b'{"a": 1.5}'),
        ("vocab.json", b"{}"),
        ("vocab.json", b'{"a": 4294967295}'),
        ("merges.txt", b"one\n"),
        ("merges.txt", b"a b c\n"),
        ("merges.txt", b"un known\n"),
        ("merges.txt", b"\xff\xfe"),
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}}'),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"null"),
        ("special_tokens_map.json", b"\x80"),
    ],
)
def test_broken_files(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=str(folder)):
        tokens(folder, "a")


def test_tokenizer_without_vocabulary_for_its_special_tokens(folder):
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    read_tokenizer(folder, 77, 1000)("a")  # they are added
    with pytest.raises(ValueError, match="vocabulary"):
        read_tokenizer(folder, 77, 1)
