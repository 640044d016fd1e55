"""Inversions: what they hold, saving and loading, and files that are none."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import random_image, told

import styleid
from styleid import Inversion
from styleid.files.checksums import seal
from styleid.files.tensors import Tensor, from_bfloat16, read_tensors, write_tensors
from styleid.inversions.file import KEEP

STEPS = 3


def invert(model, **options):
    return styleid.invert(random_image(), model, **told(**({"steps": STEPS, "dtype": "float32"} | options)))


@pytest.fixture(scope="module")
def inversion(model):
    return invert(model, layers=(5, 7))


@pytest.fixture(scope="module")
def content(inversion, tmp_path_factory):
    """The tensors and the metadata of a saved inversion."""
    path = tmp_path_factory.mktemp("inversion") / "a.inv"
    inversion.save(path)
    return read_tensors(path)


def same(a, b):
    for name in ("latents", "timesteps", "context"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("layers", "schedule", "keep", "prompt", "fingerprint", "steps", "latent_size", "size"):
        assert getattr(a, name) == getattr(b, name)
    for kind in ("query", "key", "value"):
        assert a.features[kind].keys() == b.features[kind].keys()
        for layer, array in a.features[kind].items():
            assert array.dtype == b.features[kind][layer].dtype
            np.testing.assert_array_equal(array, b.features[kind][layer])


# ---- what it holds ----


def test_shapes(model, inversion):
    assert inversion.latents.shape == (STEPS + 1, 4, 8, 8) and inversion.latents.dtype == np.float32
    np.testing.assert_array_equal(inversion.latents[:1], model.encode(random_image()))
    np.testing.assert_array_equal(inversion.latent, inversion.latents[-1:])
    assert inversion.timesteps.tolist() == [1, 334, 667]
    assert (inversion.steps, inversion.layers, inversion.latent_size) == (STEPS, (5, 7), (8, 8))
    np.testing.assert_array_equal(inversion.context, model.empty_context)
    for kind in (inversion.query, inversion.key, inversion.value):
        assert kind(0, 5).shape == (16, 16) and kind(STEPS - 1, 7).shape == (64, 16)
        assert kind(0, 5).dtype == np.float32 and np.isfinite(kind(0, 5)).all()


def test_float32_features_are_views_and_cannot_be_written(inversion):
    feature = inversion.key(1, 7)
    assert np.shares_memory(feature, inversion.features["key"][7])
    with pytest.raises(ValueError, match="read-only"):
        feature[0] = 0


def test_bfloat16_features_are_those_of_float32_rounded(model, inversion):
    half = invert(model, layers=(5, 7), dtype="bfloat16")
    assert half.features["query"][5].dtype == np.uint16 and half.nbytes < inversion.nbytes
    np.testing.assert_allclose(half.value(2, 7), inversion.value(2, 7), rtol=2**-8)
    with pytest.raises(ValueError, match="read-only"):
        half.value(2, 7)[0] = 0


def test_bfloat16_bits():
    bits = np.array([0x3F80, 0xC000, 0x0000, 0x7F80], np.uint16)
    np.testing.assert_array_equal(from_bfloat16(bits), np.float32([1, -2, 0, np.inf]))


@pytest.mark.parametrize("keep", KEEP)
def test_only_what_is_asked_for_is_kept(model, keep):
    inversion = invert(model, keep=keep, layers=[7])
    for kind in ("query", "key", "value"):
        if kind in KEEP[keep]:
            assert getattr(inversion, kind)(0, 7).shape == (64, 16)
        else:
            assert not inversion.features[kind]
            with pytest.raises(ValueError, match=f"^{kind}: .*keep='{keep}'"):
                getattr(inversion, kind)(0, 7)


@pytest.mark.parametrize(
    "step, layer, name", [(-1, 5, "step"), (STEPS, 5, "step"), (0, 6, "layer"), (0, None, "layer")]
)
def test_features_that_are_not_there(inversion, step, layer, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        inversion.query(step, layer)


def test_reconstruction(model, inversion):
    out = inversion.reconstruct()
    assert out.shape == (16, 16, 3) and out.dtype == np.uint8
    np.testing.assert_array_equal(out, inversion.reconstruct(model))
    np.testing.assert_array_equal(out, styleid.inject_styles(inversion, inversion, adain=False, inject=False))


def test_reconstruction_with_another_model(inversion, other_model):
    with pytest.raises(ValueError, match="another model"):
        inversion.reconstruct(other_model)


def test_repr(inversion):
    assert repr(inversion).startswith(
        "<styleid.Inversion of 8x8 latents with 4 channels, 3 steps (paper), layers [5, 7]"
    )


# ---- saving and loading ----


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", ["paper", "diffusers", "corrected"])
def test_round_trip(model, tmp_path, keep, dtype, schedule):
    before = invert(model, keep=keep, dtype=dtype, schedule=schedule)
    before.save(tmp_path / "a.inv")
    after = Inversion.load(tmp_path / "a.inv")
    assert os.listdir(tmp_path) == ["a.inv"]
    same(before, after)


def test_the_most_steps(model, tmp_path):
    """1000 steps end with the same timestep twice."""
    inversion = styleid.invert(np.full((16, 16, 3), 0.5), model, steps=1000, keep="none")
    inversion.save(tmp_path / "long")
    assert list(styleid.Inversion.load(tmp_path / "long").timesteps[-3:]) == [998, 999, 999]


def test_a_loaded_inversion_is_as_good(model, inversion, tmp_path):
    inversion.save(tmp_path / "a.inv")
    loaded = Inversion.load(str(tmp_path / "a.inv"))
    np.testing.assert_array_equal(
        styleid.inject_styles(inversion, inversion), styleid.inject_styles(loaded, loaded, model)
    )
    np.testing.assert_array_equal(inversion.reconstruct(), loaded.reconstruct(model))


def test_a_loaded_inversion_owns_its_arrays(inversion, tmp_path):
    inversion.save(tmp_path / "a.inv")
    loaded = Inversion.load(tmp_path / "a.inv")
    os.truncate(tmp_path / "a.inv", 0)
    same(inversion, loaded)


def test_bfloat16_is_stored_as_such(model, tmp_path):
    invert(model, dtype="bfloat16").save(tmp_path / "a.inv")
    tensors, metadata = read_tensors(tmp_path / "a.inv")
    assert {tensors[name].dtype for name in tensors if "." in name} == {"BF16"}
    assert metadata["format"] == "styleid inversion" and metadata["version"] == "1"


def test_saving_over_itself_and_failing(inversion, tmp_path, monkeypatch):
    path = tmp_path / "a.inv"
    inversion.save(path)
    before = path.read_bytes()
    inversion.save(path)
    assert path.read_bytes() == before

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        inversion.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.inv"]


@pytest.mark.parametrize("path", ["nowhere/a.inv", "/proc/a.inv"])
def test_saving_where_it_cannot_be(inversion, path, tmp_path):
    with pytest.raises(OSError, match=r"No such file|denied|not permitted"):
        inversion.save(tmp_path / path)


# ---- the image's size ----


@pytest.mark.parametrize("height, width", [(16, 16), (20, 16), (17, 33), (5, 40), (1, 1)])
def test_the_images_size_is_kept(model, tmp_path, height, width):
    image = random_image(3, height, width)
    before = styleid.invert(image, model, steps=2)
    before.save(tmp_path / "a.inv")
    after = Inversion.load(tmp_path / "a.inv")
    same(before, after)
    assert after.size == (height, width) and all(side % 8 == 0 for side in after.latent_size)
    results = before.reconstruct(), after.reconstruct(model), styleid.inject_styles(after, before, model)
    assert all(result.shape == image.shape and result.flags.c_contiguous for result in results)


def test_latents_are_those_of_the_mirrored_image(model):
    image = random_image(3, 20, 30)
    mirrored = np.concatenate([image, image[18:6:-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, 28:26:-1]], axis=1)
    padded, whole = (styleid.invert(one, model, steps=2) for one in (image, mirrored))
    np.testing.assert_array_equal(padded.latents, whole.latents)
    np.testing.assert_array_equal(padded.reconstruct(), whole.reconstruct()[:20, :30])


def test_a_size_that_is_not_the_latents(model, inversion):
    with pytest.raises(ValueError, match="content: damaged: an image of"):
        styleid.inject_styles(replace(inversion, size=(17, 16)), inversion)


# ---- checksums ----


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found(inversion, tmp_path):
    """Also one that leaves every number finite, in every tensor and in the metadata."""
    path = tmp_path / "a.inv"
    inversion.save(path)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    tensors, _ = read_tensors(path)
    for name, tensor in tensors.items():
        flip(path, start)
        refused(path, f"damaged inversion: the checksum of {name} is wrong")
        flip(path, start)
        start += tensor.data.nbytes
    for text in b'"keep": "both"', b'"prompt": ""', b'"size": "16', inversion.fingerprint.encode():
        flip(path, path.read_bytes().index(text) + len(text) - 1)
        refused(path, "damaged inversion|broken JSON|not a sound")
        inversion.save(path)
    same(inversion, Inversion.load(path))


# ---- files that are none ----


def tensor(array, dtype="F32"):
    return Tensor(dtype, array.shape, memoryview(array.tobytes()))


def write(path, tensors, metadata):
    """A file whose checksums are right, whatever else is not."""
    write_tensors(path, tensors, seal(tensors, {key: text for key, text in metadata.items() if "crc32" not in key}))


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        Inversion.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("data", [b"", b"short", b"\x80\x04pickle" * 9, b"PK\x03\x04" * 9, bytes(100)])
def test_foreign_files(data, tmp_path):
    (tmp_path / "a.inv").write_bytes(data)
    refused(tmp_path / "a.inv", "not a|broken JSON")


def test_missing_file(tmp_path):
    refused(tmp_path / "a.inv", "no such file")


def test_another_safetensors_file(tmp_path):
    write_tensors(tmp_path / "a.inv", {"a": tensor(np.zeros(3, np.float32))}, {})
    refused(tmp_path / "a.inv", "not an inversion")


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.9999])
def test_truncated(inversion, part, tmp_path):
    inversion.save(tmp_path / "a.inv")
    os.truncate(tmp_path / "a.inv", int((tmp_path / "a.inv").stat().st_size * part))
    refused(tmp_path / "a.inv", "truncated|not a sound")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": None}, "not an inversion"),
        ({"format": "other"}, "not an inversion"),
        ({"version": "3"}, "version '3'"),
        ({"version": None}, "version None"),
        ({"schedule": "mine"}, "schedule 'mine'"),
        ({"schedule": None}, "schedule"),
        ({"keep": "all"}, "keep 'all'"),
        ({"keep": "query"}, "do not match"),
        ({"keep": "none"}, "do not match"),
        ({"prompt": None}, "prompt"),
        ({"layers": None}, "layers"),
        ({"layers": "5,x"}, "invalid"),
        ({"layers": "7,5"}, "do not match"),
        ({"layers": "5,7,7"}, "do not match"),
        ({"layers": "5,6,7"}, "do not match"),
        ({"layers": ""}, "do not match"),
        ({"fingerprint": None}, "fingerprint"),
        ({"size": "16"}, "size is '16'"),
        ({"size": "0x16"}, "size is '0x16'"),
        ({"size": "16x٣"}, "size is"),
        ({"size": "16x9999999"}, "size is"),
    ],
)
def test_wrong_metadata(content, changes, message, tmp_path):
    tensors, metadata = content
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    write(tmp_path / "a.inv", tensors, metadata)
    refused(tmp_path / "a.inv", message)


def floats(*shape, fill=0.5):
    return tensor(np.full(shape, fill, np.float32))


def ints(*values):
    return tensor(np.array(values, np.int32), "I32")


@pytest.mark.parametrize(
    "name, replacement",
    [
        ("latents", None),
        ("latents", floats(4, 4, 8)),
        ("latents", floats(3, 4, 8, 8)),
        ("latents", floats(0, 4, 8, 8)),
        ("latents", floats(4, 4, 8, 6)),
        ("latents", floats(4, 4, 8, 8, fill=np.nan)),
        ("latents", tensor(np.zeros((4, 4, 8, 8), np.float16), "F16")),
        ("timesteps", None),
        ("timesteps", ints(1, 334)),
        ("timesteps", ints(334, 1, 667)),
        ("timesteps", ints(1, 1, 667)),
        ("timesteps", ints(-1, 334, 667)),
        ("timesteps", ints(1, 334, 1000)),
        ("timesteps", floats(3)),
        ("context", None),
        ("context", floats(2, 5, 24)),
        ("context", floats(5, 24)),
        ("context", floats(1, 5, 24, fill=np.inf)),
        ("query.5", None),
        ("query.5", floats(3, 15, 16)),
        ("query.5", floats(2, 16, 16)),
        ("query.5", floats(3, 16, 0)),
        ("key.7", floats(3, 64, 15)),
        ("value.7", floats(3, 16, 16)),
        ("value.7", floats(3, 64, 16, fill=-np.inf)),
        ("value.7", tensor(np.full((3, 64, 16), 0x7FC0, np.uint16), "BF16")),
        ("value.7", tensor(np.zeros((3, 64, 16), np.int32), "I32")),
        ("value.8", floats(3, 64, 16)),
        ("value.07", floats(3, 64, 16)),
        ("surprise", floats(3)),
        ("value.x", floats(3, 64, 16)),
    ],
)
def test_wrong_tensors(content, name, replacement, tmp_path):
    tensors, metadata = content
    tensors = tensors | {name: replacement} if replacement else {key: tensors[key] for key in tensors if key != name}
    write(tmp_path / "a.inv", tensors, metadata)
    refused(tmp_path / "a.inv", "damaged inversion")


def test_a_forged_inversion_does_no_harm(content, model, tmp_path):
    """Shapes that a file may have, but not this model's inversions."""
    tensors, metadata = content
    wide = {name: floats(3, tensors[name].shape[1], 32) for name in tensors if "." in name}
    write(tmp_path / "a.inv", tensors | wide, metadata)
    forged = Inversion.load(tmp_path / "a.inv")
    with pytest.raises(ValueError, match="shape"):
        styleid.inject_styles(forged, forged, model)
    write(tmp_path / "b.inv", tensors | {"context": floats(1, 5, 23)}, metadata)
    with pytest.raises(ValueError, match="context"):
        Inversion.load(tmp_path / "b.inv").reconstruct(model)


@pytest.mark.parametrize(
    "shape, end",
    [([2**63, 4, 2, 2], 8), ([2**64], 8), ([0, 4, 8, 8], 0), ([-1, -2], 8), ([1] * 100_000, 4), ([2**32, 2**32], 0)],
    ids=lambda value: str(value)[:20],
)
def test_impossible_shapes(content, shape, end, tmp_path):
    """Products that wrap, nothing at all, and a hundred thousand dimensions."""
    _, metadata = content
    header = json.dumps(
        {"__metadata__": metadata, "latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    )
    (tmp_path / "a.inv").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(end))
    refused(tmp_path / "a.inv", "not a sound|damaged inversion")


def test_file_without_metadata(tmp_path):
    header = b'{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "a.inv").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(tmp_path / "a.inv", "not a")


def test_metadata_is_json_in_the_header(inversion, tmp_path):
    inversion.save(tmp_path / "a.inv")
    with open(tmp_path / "a.inv", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"]["schedule"] == "paper"
