"""Entry points that read files. Each is given a folder of its own, and gives `make(random) -> bytes` and `run(bytes)`."""

import io
import json
import os
import pickle
import struct
import zipfile

import formats
import numpy as np
import tiny
from conftest import configuration, write_folder
from safetensors.numpy import save

import styleid
from fuzz.mutate import change_bytes, change_tree
from styleid.files.checkpoint import read_checkpoint
from styleid.files.checksums import seal
from styleid.files.gguf import read_gguf
from styleid.files.tensors import Tensor, read_tensors
from styleid.models.config import read_config
from styleid.models.loading import _read_file
from styleid.models.lora import merge
from styleid.models.prompts import read_tokenizer
from styleid.models.weights import read_component

JSON_WORDS = [word.encode() for word in (
    '"', ":", ",", "{", "}", "[", "]", "null", "true", "-1", "1e999", "NaN", "Infinity", "\\u0000", "\\ud800", " " * 99,
    "[" * 2000, '{"a":' * 2000, "18446744073709551616", "9223372036854775808", "9" * 5000, "\x00", "\xff",
)]  # fmt: skip
TENSOR_WORDS = [*JSON_WORDS, *(word.encode() for word in (
    '"dtype":"F32"', '"dtype":"BF16"', '"dtype":"F64"', '"shape":[]', '"shape":[0]', '"data_offsets":[0,0]',
    '"__metadata__":{"a":"b"}', '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},', "[4294967296,4294967296]",
))]  # fmt: skip


def split(content):
    """Splits a safetensors file into (the header's text, data)."""
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size], content[8 + size :]


def join(header, data):
    return len(header).to_bytes(8, "little") + header + data


def change_tensors(random, corpus, finish=None):
    """A safetensors file with a changed tree, a changed text, or changed bytes.

    finish(header, data) changes the header's tree last
    """
    content = random.choice(corpus)
    kind = random.randrange(3)
    if kind == 0:
        return change_bytes(random, content, TENSOR_WORDS, corpus)
    text, data = split(content)
    if kind == 1:
        return join(change_bytes(random, text, TENSOR_WORDS, [TENSOR_WORDS[-1] * 4]), data)
    header = change_tree(random, json.loads(text))
    if finish and random.randrange(2):
        header = finish(header, data)
    if random.randrange(4) == 0:
        data = data[: random.randrange(len(data) + 1)]
    return join(json.dumps(header).encode() + random.choice((b"", b"", b" ", b"\0" * 8)), data)


def reading(path, read):
    """Returns run(bytes), which writes them to the path and reads it."""

    def run(content):
        path.write_bytes(content)
        read(path)

    return run


# ---- entry points ----


def tensors(place):
    """A safetensors file."""
    corpus = [
        save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, {"format": "pt"}),
        save({"x": np.ones(0, np.float32)}),
        save({str(i): np.ones((1, i), np.float32) for i in range(9)}),
    ]
    return lambda random: change_tensors(random, corpus), reading(place / "a.safetensors", read_tensors)


def inversion(place):
    """A saved inversion. Half of those with a changed header get right checksums again."""
    write_folder(place / "model", configuration())
    model = styleid.load_model(place / "model", dtype="float32", threads=1)
    corpus = []
    for keep, side in ("both", 16), ("query", 17), ("none", 16):
        image = np.full((16, side, 3), 99, np.uint8)
        path = place / "a.inv"
        styleid.invert(image, model, steps=2, schedule="diffusers", layers=(7,), keep=keep).save(path)
        corpus.append(path.read_bytes())

    def reseal(header, data):
        metadata = header.get("__metadata__") if isinstance(header, dict) else None
        if not isinstance(metadata, dict):
            return header
        try:
            found = {name: Tensor(entry["dtype"], tuple(entry["shape"]), memoryview(data)[slice(*entry["data_offsets"])])
                     for name, entry in header.items() if name != "__metadata__"}  # fmt: skip
            plain = {key: text for key, text in metadata.items() if "crc32" not in key}
            return header | {"__metadata__": seal(found, plain)}
        except (TypeError, KeyError, ValueError, BufferError):
            return header

    def read(path):
        loaded = styleid.Inversion.load(path)
        assert np.isfinite(loaded.latents).all()
        loaded.check_model(model)

    def read_naming(path):
        try:
            read(path)
        except ValueError as error:
            if "inversion: " not in str(error):  # check_model's message, which names no file
                raise

    return lambda random: change_tensors(random, corpus, reseal), reading(place / "a.inv", read_naming)


def lora(place):
    """A LoRA file, merged into a model's weights."""
    config = tiny.config()
    weights = tiny.weights(config)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = config["unet"]["channels"][0]
    down, up = np.ones((2, width), np.float32), np.ones((width, 2), np.float32)
    kohya = layer.replace("unet.", "lora_unet_").replace(".", "_")
    settings = {
        "r": 2,
        "lora_alpha": 3,
        "alpha_pattern": {"to_q": 5.5},
        "rank_pattern": {"^attn1.to_k": 3},
        "use_rslora": True,
    }
    peft = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    corpus = [
        save(peft),
        save(peft, {"lora_adapter_metadata": json.dumps(settings)}),
        save(
            {
                f"{kohya}.lora_down.weight": down,
                f"{kohya}.lora_up.weight": up,
                f"{kohya}.alpha": np.ones((), np.float32),
            }
        ),
    ]
    return (
        lambda random: change_tensors(random, corpus),
        reading(place / "a.safetensors", lambda path: merge(weights, [(path, 1.0)])),
    )


def single_file(place):
    """A model in the original naming, read up to the weights that the engine would get. All data after its noise levels is a hole."""
    path, corpus = place / "model.safetensors", []
    for family in formats.FAMILIES:
        config = formats.configuration(family)
        for part in "unet", "vae":
            config[part]["layers_per_block"] = 1
        header, data = split(save(formats.ldm(config, family)))
        levels = json.loads(header)["alphas_cumprod"]["data_offsets"][1]
        corpus.append((join(header, data[:levels]), len(data) - levels))

    def make(random):
        content, size = random.choice(corpus)
        hole = random.choice((random.randrange(size), size + 1)) if random.randrange(8) == 0 else size
        return change_tensors(random, [content]), hole

    def run(given):
        content, hole = given
        path.write_bytes(content)
        os.truncate(path, len(content) + hole)
        _read_file(path, None, False, None)

    return make, run


PICKLE_WORDS = [
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cos\nsystem\n", b"ccollections\nOrderedDict\n",
    b"(", b"t", b"R", b"Q", b"}", b"]", b"s", b"u", b"e", b"q\0h\0\x86", b"\x93", b"\x81", b"b", b".", b"K\x01", b"N",
    b"\x8a\x09" + b"\xff" * 8 + b"\0", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x80\x05", b"\x95" + b"\0" * 8,
    b"X\x01\0\0\0a", b"I99999999999999999999\n", b"\x8b\xff\xff\xff\x7f",
]  # fmt: skip


def checkpoint(place):
    """A PyTorch checkpoint; the archive is changed, or the program inside it."""

    def storage(key, length):
        return b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + text(key) + text("cpu") + b"K" + bytes([length]) + b"tQ"

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def tensor(key, length, rows, columns):
        shape, strides = (b"K%cK%c\x86" % pair for pair in ((rows, columns), (columns, 1)))
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, length) + b"K\0" + shape + strides + b"\x89NtR"

    state = b"}(" + text("a") + tensor("0", 4, 2, 2) + text("b") + tensor("1", 6, 2, 3) + b"u"
    programs = [
        b"\x80\x02" + state + b".",
        b"\x80\x02}" + text("state_dict") + state + b"s.",
        pickle.dumps({"epoch": 3, "b": [1.5, ("c", None)]}, 4),
    ]

    def archive(program):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, content in ("data.pkl", program), ("data/0", bytes(16)), ("data/1", bytes(24)), ("version", b"3"):
                file.writestr(zipfile.ZipInfo(f"model/{name}"), content)
        return buffer.getvalue()

    corpus = [archive(program) for program in programs]

    def make(random):
        if random.randrange(2):
            return archive(change_bytes(random, random.choice(programs), PICKLE_WORDS, programs))
        return change_bytes(
            random, random.choice(corpus), [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\0" * 8], corpus
        )

    return make, reading(place / "a.ckpt", read_checkpoint)


def change_json(random, texts):
    """Returns the text of a JSON file with a changed tree or changed bytes."""
    content = random.choice(texts)
    if random.randrange(3):
        return json.dumps(change_tree(random, json.loads(content))).encode()
    return change_bytes(random, content, JSON_WORDS, texts)


def quantized(place):
    """A GGUF file of plain and quantized tensors and of values of several types."""

    def name(value):
        return struct.pack("<Q", len(value)) + value

    def tensor(label, kind, offset, *shape):
        return name(label) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)

    values = [
        name(b"general.alignment") + struct.pack("<II", 4, 32),
        name(b"a") + struct.pack("<I", 8) + name(b"text"),
        name(b"l") + struct.pack("<IIQ", 9, 8, 2) + name(b"x") + name(b""),
        name(b"n") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    ]
    tensors = [tensor(b"w", 8, 0, 32, 2), tensor(b"v", 0, 96, 3), tensor(b"k", 2, 128, 32), tensor(b"h", 1, 160, 2, 2)]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values + tensors)
    corpus = [header + bytes(-len(header) % 32) + bytes(range(168))]
    words = [struct.pack("<Q", number) for number in (0, 1, 1 << 31, 1 << 60, (1 << 64) - 1)] + [b"GGUF", b"\xff" * 4]

    def make(random):
        return change_bytes(random, corpus[0], words, corpus)

    return make, reading(place / "a.gguf", read_gguf)


def model_configuration(place):
    """One of the JSON files of a model's folder, chosen by the input's first byte."""
    root = place / "model"
    formats.write_diffusers(root, formats.configuration("1.x"))
    parts = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json")
    originals = [(root / part).read_bytes() for part in parts]

    def make(random):
        which = random.randrange(len(parts))
        return bytes([which]) + change_json(random, [originals[which]])

    def run(content):
        path = root / parts[content[0]]
        path.write_bytes(content[1:])
        try:
            read_config(*(root / part for part in parts))
        finally:
            path.write_bytes(originals[content[0]])

    return make, run


def shards(place):
    """The index of weights in shards."""
    folder = place / "unet"
    folder.mkdir()
    for name in "a", "b":
        (folder / f"{name}.safetensors").write_bytes(save({name: np.ones(2, np.float32)}))
    (folder / "link.safetensors").symlink_to("/etc/passwd")
    names = (
        "a.safetensors",
        "b.safetensors",
        "../unet/a.safetensors",
        "link.safetensors",
        "",
        ".",
        "a\0",
        "/etc/passwd",
        "none",
    )
    corpus = [
        json.dumps({"metadata": {"total_size": 16}, "weight_map": {"a": first, "b": second}}).encode()
        for first in names for second in names
    ]  # fmt: skip
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    return (
        lambda random: change_json(random, corpus) if random.randrange(4) else random.choice(corpus),
        reading(path, lambda path: read_component(folder, "diffusion_pytorch_model")),
    )


def tokenizer(place):
    """One of the files of a tokenizer, chosen by the input's first byte. The tokenizer then reads a text."""
    folder = place / "tokenizer"
    formats.write_tokenizer(folder, 520, False)
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    small = {piece: vocabulary[piece] for piece in list(vocabulary)[:20] + list(vocabulary)[-2:]} | {
        "th": 300,
        "the</w>": 301,
    }
    (folder / "vocab.json").write_text(json.dumps(small))
    names = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "!", "lstrip": false}}')
    originals = [(folder / name).read_bytes() for name in names]
    words = [*JSON_WORDS, b"\n", b" ", b"t h\n", b"</w>", b"<|endoftext|>", "\u017f".encode(), b"\xf0\x9f"]

    def make(random):
        which = random.randrange(len(names))
        if names[which] == "merges.txt":
            return bytes([which]) + change_bytes(random, originals[which], words, originals)
        return bytes([which]) + change_json(random, [originals[which]])

    def run(content):
        path = folder / names[content[0]]
        path.write_bytes(content[1:])
        try:
            tokens = read_tokenizer(folder, 77, 520)("the cat!")
            assert tokens.shape[0] == 1 and 0 <= tokens.min() <= tokens.max() < 520
        finally:
            path.write_bytes(originals[content[0]])

    return make, run


ENTRIES = [tensors, inversion, lora, single_file, checkpoint, quantized, model_configuration, shards, tokenizer]
