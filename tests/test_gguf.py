"""GGUF files, as the package gguf writes them, and as nobody should."""

import struct
import sys

import formats
import numpy as np
import pytest
from safetensors.numpy import save_file

import styleid
from styleid import ModelError
from styleid.files.gguf import read_gguf

gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")
KINDS = gguf.GGMLQuantizationType
# Those that the package quantizes itself, in blocks of 32; K-quants, in blocks of 256, are tried on a tensor alone.
BLOCKS = [KINDS.Q4_0, KINDS.Q4_1, KINDS.Q5_0, KINDS.Q5_1, KINDS.Q8_0]
LARGE = [
    KINDS.Q2_K,
    KINDS.Q3_K,
    KINDS.Q4_K,
    KINDS.Q5_K,
    KINDS.Q6_K,
    KINDS.IQ4_XS,
    KINDS.IQ4_NL,
    KINDS.TQ1_0,
    KINDS.TQ2_0,
]


def write(path, arrays, kinds, version=None):
    """A file by the package; `kinds` by the tensors' names."""
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_name("a model")
    writer.add_array("list", ["some", "texts", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    for name, array in arrays.items():
        kind = kinds.get(name, KINDS.F32)
        if kind in (KINDS.F32, KINDS.F16):
            writer.add_tensor(name, array.astype(np.float32 if kind == KINDS.F32 else np.float16))
        else:
            writer.add_tensor(name, quants.quantize(array.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path, **options):
    return styleid.load_model(path, dtype="float32", threads=1, prediction="epsilon", **options)


def quantizable(array):
    """As stable-diffusion.cpp chooses: matrices whose rows are whole blocks."""
    return array.ndim == 2 and array.shape[1] % 32 == 0


def model_arrays(family):
    original = formats.ldm(formats.configuration(family), family)
    return {
        name: array for name, array in original.items() if name.startswith(("model.d", "first", "cond")) and array.ndim
    }


@pytest.mark.parametrize("family", formats.FAMILIES)
@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, *BLOCKS], ids=lambda kind: kind.name)
def test_a_model(tmp_path, family, kind):
    """It is the model of a safetensors file that holds what the package says the blocks are."""
    arrays = model_arrays(family)
    kinds = {name: kind for name, array in arrays.items() if quantizable(array) or kind.value < 2}
    write(tmp_path / "m.gguf", arrays, kinds)
    same = {}
    for name, array in arrays.items():
        which = kinds.get(name, KINDS.F32)
        same[name] = quants.dequantize(quants.quantize(array, which), which).reshape(array.shape).astype(np.float32)
    save_file(same, tmp_path / "m.safetensors")
    model, expected = load(tmp_path / "m.gguf"), load(tmp_path / "m.safetensors")
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(model.empty_context, expected.empty_context)
    np.testing.assert_array_equal(model.predict_noise(latents, 481), expected.predict_noise(latents, 481))
    np.testing.assert_array_equal(model.decode(latents), expected.decode(latents))
    assert model.config["unet"] == expected.config["unet"]


@pytest.mark.parametrize("kind", LARGE, ids=lambda kind: kind.name)
def test_blocks(tmp_path, kind):
    """Random bytes of every type that the package knows, which it dequantizes to the same numbers."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 256, (6, 2 * size)).astype(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "sd1")
    writer.add_tensor("w", rows.reshape(2, 3, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "m.gguf")["w"]
    assert (tensor.dtype, tensor.shape) == ("F32", (2, 3, 2 * block))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(tensor.float32(), quants.dequantize(rows, kind).reshape(2, 3, -1))


def test_names_of_stable_diffusion_cpp(tmp_path):
    """It gives 2.x's text encoder the names of 1.x's, with all of its 24 layers."""
    config = formats.configuration("2.x")
    config["text"] |= {"layers": 23}
    arrays = {name: a for name, a in formats.ldm(config, "2.x").items() if name.startswith(("model.d", "first"))}
    text = {name: array for name, array in formats.arrays(config).items() if name.startswith("text.")}
    text |= {name.replace(".22.", ".23."): array + 1 for name, array in text.items() if ".layers.22." in name}
    arrays |= {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text.')}": array for name, array in text.items()
    }
    write(tmp_path / "m.gguf", arrays, {})
    expected = styleid.load_model(formats.write_diffusers(tmp_path / "folder", config), dtype="float32", threads=1)
    model = load(tmp_path / "m.gguf")
    assert model.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(model.empty_context, expected.empty_context)


def test_without_the_package(tmp_path, monkeypatch):
    write(tmp_path / "m.gguf", model_arrays("1.x"), {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"m\.gguf: .*pip install 'styleid\[gguf\]'"):
        load(tmp_path / "m.gguf")


# ---- hostile files ----


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def info(name="w", shape=(4,), kind=0, offset=0):
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def file_of(*infos, values=(), version=3, data=bytes(64), count=None, value_count=None):
    header = b"GGUF" + struct.pack("<I", version)
    header += struct.pack(
        "<QQ", len(infos) if count is None else count, len(values) if value_count is None else value_count
    )
    header += b"".join(values) + b"".join(infos)
    return header + bytes(-len(header) % 32) + data


def value(key, kind, content):
    return text(key) + struct.pack("<I", kind) + content


HUGE = 1 << 60
HOSTILE = {
    "nothing more": b"GGUF",
    "half a header": b"GGUF\3\0\0\0\1\0",
    "version 1": file_of(info(), version=1),
    "big-endian": b"GGUF\0\0\0\3" + bytes(16),
    "tensors without end": file_of(info(), count=HUGE),
    "values without end": file_of(info(), value_count=HUGE),
    "a name of 2^60 bytes": file_of(struct.pack("<Q", HUGE)),
    "a name too long": file_of(info("x" * 5000)),
    "a key of 2^60 bytes": file_of(info(), values=[struct.pack("<Q", HUGE)]),
    "a text of 2^60 bytes": file_of(info(), values=[value("k", 8, struct.pack("<Q", HUGE))]),
    "a list of 2^60 bytes": file_of(info(), values=[value("k", 9, struct.pack("<IQ", 0, HUGE))]),
    "a list of 2^60 doubles": file_of(info(), values=[value("k", 9, struct.pack("<IQ", 12, HUGE))]),
    "a list of 2^60 texts": file_of(info(), values=[value("k", 9, struct.pack("<IQ", 8, HUGE))]),
    "a list of 2^60 lists": file_of(info(), values=[value("k", 9, struct.pack("<IQ", 9, HUGE))]),
    "lists in lists": file_of(info(), values=[value("k", 9, struct.pack("<IQ", 9, 1) * 1000)]),
    "an unknown value": file_of(info(), values=[value("k", 77, b"")]),
    "alignment 0": file_of(info(), values=[value("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment 3": file_of(info(), values=[value("general.alignment", 4, struct.pack("<I", 3))]),
    "alignment 2^31": file_of(info(), values=[value("general.alignment", 4, struct.pack("<I", 1 << 31))]),
    "a hundred dimensions": file_of(info(shape=(1,) * 100)),
    "2^32 - 1 dimensions": file_of(text("w") + struct.pack("<I", 0xFFFFFFFF)),
    "a product beyond 2^64": file_of(info(shape=(HUGE, HUGE))),
    "a product that wraps": file_of(info(shape=(1 << 63, 2, 4))),
    "beyond the file": file_of(info(shape=(1000,))),
    "an offset beyond the file": file_of(info(offset=HUGE)),
    "twice the same name": file_of(info(), info(offset=32)),
    "overlapping": file_of(info("a", (8,)), info("b", (8,), offset=16)),
    "the same bytes": file_of(info("a", (8,)), info("b", (8,))),
    "an unknown type": file_of(info(kind=999)),
    "a type that was removed": file_of(info(kind=4)),
    "half a block": file_of(info(shape=(16,), kind=8)),
    "rows of half blocks": file_of(info(shape=(2, 16), kind=8)),
    "no row": file_of(info(shape=(), kind=8)),
    "empty blocks": file_of(info(shape=(0, 32), kind=8)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.gguf: "):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [5, 30, 200, 0.2, 0.9, 0.9999])
def test_truncated_files(tmp_path, keep):
    write(tmp_path / "m.gguf", model_arrays("1.x"), {})
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(ModelError, match=r"m\.gguf: not usable as a GGUF file"):
        load(tmp_path / "m.gguf")


def test_random_changes(tmp_path):
    """A result, or the usual error."""
    write(tmp_path / "m.gguf", {"w": np.ones((4, 64), np.float32), "v": np.ones((3,), np.float32)}, {"w": KINDS.Q8_0})
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    random = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(data)
        for place in random.integers(0, 350, random.integers(1, 4)):
            changed[place] = random.choice([0, 1, 8, 9, 127, 128, 255, int(random.integers(256))])
        (tmp_path / "c.gguf").write_bytes(changed)
        try:
            read_gguf(tmp_path / "c.gguf")
        except ValueError as error:
            assert "c.gguf: not usable as a GGUF file: " in str(error)


def test_infinite_scales_are_refused(tmp_path):
    arrays = model_arrays("1.x")
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    write(tmp_path / "m.gguf", arrays, {name: KINDS.Q8_0})
    path = tmp_path / "m.gguf"
    data = path.read_bytes()
    blocks = quants.quantize(arrays[name], KINDS.Q8_0).tobytes()
    path.write_bytes(data.replace(blocks, b"\x00\x7c" + blocks[2:]))
    tensor = read_gguf(path)[name]
    assert not np.isfinite(tensor.float32()).all()
