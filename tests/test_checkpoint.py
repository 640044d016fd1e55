"""PyTorch checkpoints that are not what they say: refused by name, without running, inflating or waiting for anything."""

import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import styleid
from styleid import ModelError
from styleid.files.checkpoint import read_checkpoint
from styleid.models.weights import read_weights

pytestmark = pytest.mark.torch


def archive(path, program, members=(("data/0", bytes(16)),), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in (("data.pkl", program), *members):
            file.writestr(f"model/{name}", content)
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind=b"ctorch\nFloatStorage\n", key=None, length=4):
    key = text("0") if key is None else key
    return b"(" + text("storage") + kind + key + text("cpu") + number(length) + b"tQ"


def tensor(offset=0, shape=(2, 2), strides=(2, 1), stored=None):
    stored = storage() if stored is None else stored
    arguments = b"(" + stored + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + b"Nt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state(value=None, key=None):
    """The program of {"a": value}."""
    return b"\x80\x02}" + (text("a") if key is None else key) + (tensor() if value is None else value) + b"s."


def test_the_helpers_make_what_torch_reads(tmp_path):
    numbers = np.arange(4, dtype="<f4")
    path = archive(
        tmp_path / "m.ckpt", state(), [("data/0", numbers.tobytes()), ("byteorder", b"little"), ("version", b"3")]
    )
    np.testing.assert_array_equal(read_checkpoint(path)["a"].float32(), numbers.reshape(2, 2))
    np.testing.assert_array_equal(torch.load(path, weights_only=True)["a"], numbers.reshape(2, 2))


TYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", TYPES)
def test_types(tmp_path, dtype):
    values = torch.arange(6).to(getattr(torch, dtype)).reshape(2, 3)
    torch.save({"a": values, "b": values.T, "empty": values[:0], "one": values[1, 2]}, tmp_path / "m.ckpt")
    found = read_checkpoint(tmp_path / "m.ckpt")
    assert bytes(found["a"].data) == values.contiguous().view(torch.uint8).numpy().tobytes()
    assert bytes(found["b"].data) == values.T.contiguous().view(torch.uint8).numpy().tobytes()
    assert [found[name].shape for name in ("a", "b", "empty", "one")] == [(2, 3), (3, 2), (0, 3), ()]
    assert len({tensor.dtype for tensor in found.values()}) == 1


def test_states_of_modules_with_their_metadata(tmp_path):
    """An OrderedDict with attributes, in a dictionary of other things."""
    state = torch.nn.Linear(2, 3).state_dict()
    assert isinstance(state, OrderedDict) and state._metadata
    torch.save({"state_dict": state, "seed": 7, "names": ["a", ("b", None)]}, tmp_path / "m.ckpt")
    found = read_checkpoint(tmp_path / "m.ckpt")
    np.testing.assert_array_equal(found["weight"].float32(), state["weight"].numpy())
    assert found.keys() == {"weight", "bias"}


def test_lightnings_callbacks(tmp_path):
    """Stable Diffusion 1.4 was published with a dictionary whose key is a class of the program that trained it."""
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    program = b"\x80\x02}(" + text("callbacks") + b"}" + callback + b"}s" + text("state_dict") + state()[2:-1] + b"u."
    assert read_checkpoint(archive(tmp_path / "m.ckpt", program)).keys() == {"a"}


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.mkdir, ("this-must-not-exist",), r"posix mkdir"),
        (eval, ("__import__('os').mkdir('this-must-not-exist')",), r"(__builtin__|builtins) eval"),
        (getattr, (os, "mkdir"), "(__builtin__|builtins) getattr"),
        (torch.load, ("x",), "torch"),
        (torch.storage._load_from_bytes, (b"",), "torch.storage _load_from_bytes"),
        (np.array, ([1, 2],), "numpy"),
    ],
)
def test_foreign_globals(tmp_path, monkeypatch, protocol, function, arguments, name):
    monkeypatch.chdir(tmp_path)
    if function is getattr:
        arguments = ("text", "upper")
    path = archive(tmp_path / "m.ckpt", pickle.dumps({"a": Call(function, *arguments)}, protocol))
    with pytest.raises(ModelError, match=f"m.ckpt: .*asks for .{name}.*nothing was run"):
        styleid.load_model(path)
    assert not os.path.exists("this-must-not-exist")


def nested(levels):
    """t = (t, t) again and again: small, but whoever walks through it never comes back."""
    return b")" + b"".join(b"q\0h\0\x86" for _ in range(levels))


HOSTILE = {
    "nothing": b"",
    "no end": state()[:-1],
    "protocol 0": (pickle.dumps({"a": 1}, 0), "instruction"),
    "a number": b"\x80\x02K\x01.",
    "an empty stack": b"\x80\x02.",
    "pop from an empty stack": b"\x80\x02\x85.",
    "set items of nothing": b"\x80\x02(u.",
    "mark that is not there": b"\x80\x02t.",
    "memo that is not there": b"\x80\x02h\x07.",
    "items of a number": b"\x80\x02K\x01" + text("a") + b"Ns.",
    "an odd number of items": b"\x80\x02}(" + text("a") + b"u.",
    "unknown byte": b"\x80\x02\xff.",
    "INST": (b"\x80\x02(ios\nsystem\n.", "instruction INST"),
    "OBJ": (b"\x80\x02(cos\nsystem\no.", "os system"),
    "EXT1": (b"\x80\x02\x82\x01.", "instruction EXT1"),
    "PERSID": (b"\x80\x02Pabc\n.", "instruction PERSID"),
    "NEWOBJ_EX": (b"\x80\x04}}}\x92.", "instruction NEWOBJ_EX"),
    "an uncalled global": (b"\x80\x02cos\nsystem\n.", "os system"),
    "a stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "call of a text": b"\x80\x02" + text("os") + b")R.",
    "call of a storage class": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch FloatStorage"),
    "a dictionary of arguments": (b"\x80\x02ccollections\nOrderedDict\n(]tR.", "calls collections OrderedDict"),
    "a tensor of a number": state(tensor(stored=b"K\x01")),
    "a tensor without arguments": state(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
    "a parameter of nothing": state(b"ctorch._utils\n_rebuild_parameter\n)R"),
    "outside the storage": (state(tensor(offset=1)), "outside its storage"),
    "strides outside the storage": (state(tensor(strides=(3, 1))), "outside its storage"),
    "overlapping numbers": (state(tensor(shape=(1 << 20, 1 << 20), strides=(0, 0))), "outside its storage"),
    "negative stride": (state(tensor(offset=3, strides=(-2, -1))), "impossible shape"),
    "negative length": (state(tensor(shape=(-1, -4))), "impossible shape"),
    "negative offset": (state(tensor(offset=-1)), "impossible shape"),
    "product of 2^64": (state(tensor(shape=(1 << 32, 1 << 32), strides=(1, 1))), "outside its storage"),
    "product of 2^64 + 4": (state(tensor(shape=((1 << 47) + 1, 4), strides=(0, 1))), "outside its storage"),
    "length of 2^2000": (state(tensor(shape=(1 << 2000, 0))), "impossible shape"),
    "no strides": (state(tensor(strides=())), "impossible shape"),
    "a thousand dimensions": (state(tensor(shape=(1,) * 1000, strides=(1,) * 1000)), "impossible shape"),
    "storage of another length": (state(tensor(stored=storage(length=3))), "not the length"),
    "storage of a negative length": (state(tensor(stored=storage(length=-4))), "not the length"),
    "storage of doubles": (state(tensor(stored=storage(b"ctorch\nDoubleStorage\n"))), "not the length"),
    "storage that is not there": state(tensor(stored=storage(key=text("1")))),
    "storage of a path": state(tensor(stored=storage(key=text("../../etc/passwd")))),
    "storage of an untyped class": (
        state(tensor(stored=storage(b"ctorch.storage\nUntypedStorage\n"))),
        "UntypedStorage",
    ),
    "storage of a function": state(tensor(stored=storage(b"ccollections\nOrderedDict\n"))),
    "a persistent number": b"\x80\x02K\x01Q.",
    "a dictionary by lists": (b"\x80\x02}]Ns.", "keys"),
    "nested tuples as a key": (state(key=nested(60)), "keys"),
    "nested tuples as a storage's name": state(tensor(stored=storage(key=nested(60)))),
    "nested tuples as a length": (state(tensor(stored=storage()[:-2] + nested(60) + b"tQ")), ""),
    "nested tuples as a shape": state(
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"K\0" + nested(60) * 2 + b"NNtR"
    ),
    "nested tuples as a module": b"\x80\x04" + nested(60) + text("a") + b"\x93.",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_programs(tmp_path, program):
    program, message = program if isinstance(program, tuple) else (program, "")
    path = archive(tmp_path / "m.ckpt", program)
    start = time.monotonic()
    with pytest.raises(ModelError, match=f"m.ckpt: .*{message}"):
        styleid.load_model(path)
    assert time.monotonic() - start < 10


def test_tensors_that_together_are_larger_than_the_file(tmp_path):
    """Each is in its storage, but in another order: a copy. A thousand of them would be a thousand times the file."""
    copied = tensor(shape=(512, 512), strides=(1, 512), stored=storage(length=1 << 18))
    items = b"".join(text(f"{i}") + copied for i in range(1000))
    with pytest.raises(ModelError, match="larger than the file"):
        styleid.load_model(archive(tmp_path / "m.ckpt", b"\x80\x02}(" + items + b"u.", [("data/0", bytes(1 << 20))]))


def test_long_programs(tmp_path):
    path = archive(tmp_path / "m.ckpt", b"\x80\x02" + b"]" * (5 << 20) + b".")
    with pytest.raises(ModelError, match=r"data\.pkl has 52\d+ bytes"):
        styleid.load_model(path)


# ---- archives ----


def test_zip_bomb(tmp_path):
    path = archive(tmp_path / "m.ckpt", state(), [("data/0", bytes(100 << 20))], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match=r"m\.ckpt: .*compressed"):
        styleid.load_model(path)


def test_member_that_comes_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "m.ckpt", state(), [("data/0", bytes(16)), ("data/0", bytes(16))])
    with pytest.raises(ModelError, match="comes twice"):
        styleid.load_model(path)


def test_big_endian(tmp_path):
    path = archive(tmp_path / "m.ckpt", state(), [("data/0", bytes(16)), ("byteorder", b"big")])
    with pytest.raises(ModelError, match="big-endian"):
        styleid.load_model(path)


def test_many_members(tmp_path):
    members = [(f"data/{i}", b"") for i in range(20_000)]
    with pytest.raises(ModelError):
        styleid.load_model(archive(tmp_path / "m.ckpt", b"\x80\x02K\x01.", members))


def test_giant_directory(tmp_path):
    """The end says that the list of members has a gigabyte, and the sparse file has it."""
    path = archive(tmp_path / "m.ckpt", state())
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    with open(path, "wb") as file:
        file.write(content[:end])
        file.seek(1 << 30, os.SEEK_CUR)
        file.write(content[end : end + 12] + struct.pack("<II", 1 << 30, end) + content[end + 20 :])
    with pytest.raises(ModelError, match="list of members"):
        styleid.load_model(path)


def test_members_beyond_the_end(tmp_path):
    path = archive(tmp_path / "m.ckpt", state())
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 20 : directory + 28] = struct.pack("<II", 1 << 30, 1 << 30)  # both sizes
    path.write_bytes(content)
    with pytest.raises(ModelError, match="outside the file"):
        styleid.load_model(path)


def test_archives_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match=r"data\.pkl has 0 bytes"):
        styleid.load_model(tmp_path / "m.ckpt")


@pytest.mark.parametrize("keep", [4, 30, 100, 0.5, 0.999])
def test_truncated_archive(tmp_path, keep):
    path = tmp_path / "m.ckpt"
    torch.save({"a": torch.zeros(1000)}, path)
    os.truncate(path, keep if keep > 1 else int(path.stat().st_size * keep))
    with pytest.raises(ModelError, match=r"m\.ckpt: not a sound PyTorch checkpoint"):
        styleid.load_model(path)


def test_checkpoints_from_before_zip(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"m\.ckpt: not a safetensors file but .*pickle"):
        styleid.load_model(tmp_path / "m.ckpt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.ckpt")
    with pytest.raises(ModelError, match=r"m\.ckpt: "):
        styleid.load_model(tmp_path / "m.ckpt")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_weights(tmp_path / "nothing")
