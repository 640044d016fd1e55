"""Features kept in memory, on disk, or evaluated again: equal results. First the engine, then the package."""

import errno
import os
import resource
import signal
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import random_image, told
from tiny import STEPS, invert, sample_arguments

import styleid
from styleid import Inversion, _core
from styleid.cli.main import main
from styleid.files.tensors import Tensor, TensorStream, read_tensors, releasing, write_tensors
from styleid.inversions.recording import FEATURES

KINDS = ("query", "key", "value")


@pytest.fixture(scope="module")
def engine():
    return tiny.model()


def recomputed(data, dtype="float32"):
    return {"latents": data["latents"], "context": tiny.CONTEXT, "feature_dtype": dtype}


def features(engine, latents, step=1, **changes):
    arguments = {
        "context": tiny.CONTEXT, "steps": STEPS, "schedule": "diffusers", "layers": tiny.LAYERS, "keep": ("both",),
        "feature_dtype": "float32", "step": step,
    }  # fmt: skip
    return _core.features(engine, latents, **(arguments | changes))


# ----------------------------------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize("layers", [(2,), (3,), (2, 3), ()])
def test_features_of_one_evaluation(engine, layers):
    both = invert(engine, latents=tiny.latents(2), layers=layers, keep=("both", "query"))
    for step in range(STEPS):
        latents = np.stack([data["latents"][step] for data in both])
        for again, kept in zip(features(engine, latents, step, layers=layers, keep=("both", "query")), both):
            for kind in KINDS:
                assert again[kind].keys() == kept[kind].keys()
                for layer, array in again[kind].items():
                    np.testing.assert_array_equal(array[0], kept[kind][layer][step])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", ["paper", "diffusers", "corrected"])
def test_recomputed_features_give_the_same_sample(engine, dtype, schedule):
    content, style = (
        invert(engine, latents=tiny.latents(seed=seed, width=width), schedule=schedule, feature_dtype=dtype)[0]
        for seed, width in ((1, 4), (2, 6))
    )
    common = sample_arguments(content) | {"schedule": schedule, "styles": [style, content], "weights": [1.0, 2.0]}
    expected = _core.sample(engine, **common)
    sources = {"content": recomputed(content, dtype), "styles": [recomputed(style, dtype), recomputed(content, dtype)]}
    np.testing.assert_array_equal(_core.sample(engine, **(common | sources)), expected)
    mixed = {"styles": [style, recomputed(content, dtype)]}
    np.testing.assert_array_equal(_core.sample(engine, **(common | mixed)), expected)


def test_recomputed_under_another_context(engine):
    """The inversion's context counts, not the sampling's."""
    data = invert(engine)[0]
    common = sample_arguments(data) | {"context": tiny.CONTEXT[:, :3] + 1}
    expected = _core.inject_styles(engine, **common)
    again = {"content": recomputed(data), "styles": [recomputed(data)]}
    np.testing.assert_array_equal(_core.inject_styles(engine, **(common | again)), expected)


def test_a_sink_gets_the_features_of_each_step(engine):
    kept = invert(engine, latents=tiny.latents(2), keep=("query", "keys"))
    seen = []

    def sink(step, features):
        assert [[kind for kind in KINDS if one[kind]] for one in features] == [["query"], ["key", "value"]]
        for one, expected in zip(features, kept):
            for kind in KINDS:
                for layer, array in one[kind].items():
                    np.testing.assert_array_equal(array[0], expected[kind][layer][step])
        seen.append(step)

    again = invert(engine, latents=tiny.latents(2), keep=("query", "keys"), sink=sink)
    assert seen == list(range(STEPS))
    np.testing.assert_array_equal(again[1]["latents"], kept[1]["latents"])


def test_an_exception_of_a_sink_ends_the_run(engine):
    def full(step, features):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        invert(engine, sink=full)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"context": None}, TypeError, "context: expected"),
        ({"context": np.zeros((1, 3, 5), np.float32)}, ValueError, "context: expected"),
        ({"feature_dtype": "int8"}, ValueError, "feature_dtype: expected one of"),
        ({"latents": tiny.latents()}, ValueError, "an inversion of 0 steps"),
    ],
)
def test_bad_recomputed_data(engine, change, error, message):
    data = invert(engine)[0]
    with pytest.raises(error, match=message):
        _core.inject_styles(engine, **(sample_arguments(data) | {"content": recomputed(data) | change}))


def test_bad_arguments(engine):
    for step in -1, STEPS:
        with pytest.raises(ValueError, match="step: expected an integer from 0 to 2"):
            features(engine, tiny.latents(), step)
    with pytest.raises(ValueError, match="'feature_dtype' is missing"):
        data = invert(engine)[0]
        _core.inject_styles(
            engine, **(sample_arguments(data) | {"content": {"latents": data["latents"], "context": 1}})
        )
    with pytest.raises(TypeError, match="sink: expected a callable"):
        invert(engine, sink=1)


# ---------------------------------------------------------------------------------------------------------- the package

OPTIONS = {"steps": 3, "dtype": "float32"}


def inverted(model, seed, mode, **options):
    return styleid.invert(random_image(seed), model, **told(features=mode, **(OPTIONS | options)))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def kept(model, request):
    return [inverted(model, seed, "memory", dtype=request.param) for seed in (0, 1)]


@pytest.mark.parametrize("mode", FEATURES)
def test_all_modes_hold_the_same(model, kept, mode, tmp_path):
    for seed, expected in enumerate(kept):
        inversion = inverted(model, seed, mode, dtype=expected.feature_dtype)
        inversion.save(tmp_path / "saved")
        loaded = [replace(Inversion.load(tmp_path / "saved", mapped), model=model) for mapped in (False, True)]
        for one in (inversion, *loaded):
            assert (one.recompute, one.feature_dtype) == (mode == "recompute", expected.feature_dtype)
            assert one.layers == expected.layers and one.keep == "both"
            np.testing.assert_array_equal(one.latents, expected.latents)
            np.testing.assert_array_equal(one.predicted, expected.predicted)
            for kind in KINDS:
                for step, layer in product(range(3), expected.layers):
                    np.testing.assert_array_equal(getattr(one, kind)(step, layer), getattr(expected, kind)(step, layer))


@pytest.mark.parametrize("mode", FEATURES)
def test_all_modes_give_the_same_image(model, kept, mode):
    expected = styleid.inject_styles(*kept)
    content, style = (inverted(model, seed, mode, dtype=kept[0].feature_dtype) for seed in (0, 1))
    assert (content.mapped, content.recompute) == (mode == "disk", mode == "recompute")
    np.testing.assert_array_equal(styleid.inject_styles(content, style), expected)
    np.testing.assert_array_equal(
        styleid.inject_styles(content, [style, kept[1]]), styleid.inject_styles(kept[0], [kept[1]] * 2)
    )
    np.testing.assert_array_equal(
        styleid.inject_styles(content, style, inject="kv"), styleid.inject_styles(*kept, inject="kv")
    )


def test_transfers(model):
    """Also where content and style run as one batch, and with the options that take other ways."""
    calls = []
    for style, options in (
        (random_image(1), {}),
        (random_image(1, 24), {}),
        (random_image(1, 13), {"adain": False}),
        (random_image(1), {"initial": "quantiles", "layers": [5, 7]}),
        ([random_image(1), random_image(2)], {"inject": "kv"}),
        (random_image(1), {"inject": False}),
    ):
        plain = styleid.transfer(random_image(0), style, model, **told(steps=3, **options))
        for mode in "disk", "recompute":
            calls.clear()
            again = styleid.transfer(
                random_image(0),
                style,
                model,
                **told(steps=3, features=mode, progress=lambda *call: calls.append(call), **options),
            )
            np.testing.assert_array_equal(again, plain)
            assert calls[-1][0] == calls[-1][1] and [step for step, _ in calls] == sorted(step for step, _ in calls)


def test_hooks_on_steps_are_no_obstacle(model):
    def warm(step, steps, latents):
        latents += 0.1

    memory, *others = (inverted(model, 0, mode, on_step=warm) for mode in FEATURES)
    for other in others:
        np.testing.assert_array_equal(other.key(2, 7), memory.key(2, 7))
    with pytest.raises(ValueError, match="^features: those that on_attention"):
        inverted(model, 0, "recompute", on_attention=lambda *_: None)


def test_guided_inversions(shared_folder):
    """Features are the prompt's, however the latents were reached."""
    model = styleid.load_model(shared_folder, dtype="float32", threads=1)
    empty = model.empty_context
    model.encode_prompt = lambda text: empty + np.float32(0.1 * len(text))
    memory, again = (
        inverted(model, 0, mode, prompt="a", negative="bc", guidance=2.0) for mode in ("memory", "recompute")
    )
    np.testing.assert_array_equal(memory.query(1, 6), again.query(1, 6))


def test_predicted_images(model):
    """x0 = (z - sqrt(1 - a) e) / sqrt(a)"""
    inversion = inverted(model, 0, "memory", schedule="corrected")
    for step, timestep in enumerate(inversion.timesteps):
        z, alpha = inversion.latents[step], model.config["alphas"][timestep]
        noise = model.predict_noise(z[np.newaxis], int(timestep))[0]
        expected = (z - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
        np.testing.assert_allclose(inversion.predicted[step], expected, rtol=1e-4, atol=1e-5)


def test_mapped_features_are_views_of_the_file(model, kept, tmp_path):
    cache = styleid.Cache(tmp_path)
    first, again = (inverted(model, 0, "disk", cache=cache) for _ in range(2))
    for inversion in first, again:
        assert inversion.mapped and inversion.latents.base is not inversion.features["key"][7].base
        view = inversion.key(1, 7)
        assert np.shares_memory(view, inversion.features["key"][7]) and not view.flags.writeable
        with pytest.raises(ValueError):
            inversion.features["key"][7].flags.writeable = True
    (entry,) = tmp_path.glob("*")
    expected = first.key(2, 6).copy()
    inverted(model, 0, "memory", cache=cache)  # the same entry
    entry.unlink()
    again.release()
    np.testing.assert_array_equal(again.key(2, 6), expected)


@pytest.mark.long
def test_memory_is_given_back(model, tmp_path):
    """After reading all of a mapped inversion, and during a sampling."""
    big = styleid.invert(
        random_image(0, 128, 128), model, steps=20, keep="both", layers=[6, 7], options=styleid.Storage("disk")
    )
    styleid.inject_styles(big, big)  # a first time, for the engine's own code
    big.release()
    base, seen = mapped_bytes(), []

    def look(*_):
        seen.append(mapped_bytes())

    styleid.inject_styles(big, big, options=styleid.Hooks(on_step=look))
    size = sum(array.nbytes for kept in big.features.values() for array in kept.values())
    assert max(seen) - base < size / 4
    for layer in big.layers:
        big.features["key"][layer].sum()
    assert mapped_bytes() - base > size / 4
    big.release()
    assert mapped_bytes() - base < size / 10


def mapped_bytes():
    """Of this process's memory, what is pages of files."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile:"))
    return int(line.split()[1]) << 10


def test_a_recomputed_inversion_is_small(model, tmp_path):
    memory, again = (inverted(model, 0, mode) for mode in ("memory", "recompute"))
    assert not any(again.features.values()) and again.nbytes < memory.nbytes / 2
    again.save(tmp_path / "a")
    loaded = Inversion.load(tmp_path / "a")
    assert "recomputed" in repr(loaded)
    with pytest.raises(ValueError, match="another model"):  # the default one
        loaded.query(0, 6)


# ------------------------------------------------------------------------------------------------------- files and disks


def test_nothing_stays_behind(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inversion = inverted(model, 0, "disk")
    styleid.transfer(random_image(0), random_image(1), model, steps=3, options=styleid.Storage("disk"))
    assert not list(tmp_path.iterdir()) and np.isfinite(inversion.key(0, 6)).all()


def test_files_are_whole(model, tmp_path):
    """A recording is the very file that save() writes, but for the order."""
    inverted(model, 0, "disk", cache=tmp_path)
    (entry,) = tmp_path.glob("*.safetensors")
    Inversion.load(entry).save(tmp_path / "b")
    recorded, saved = (read_tensors(path) for path in (entry, tmp_path / "b"))
    assert recorded[0].keys() == saved[0].keys() and recorded[1] == saved[1]
    assert entry.stat().st_size == (tmp_path / "b").stat().st_size


def stop(step, total):
    if step == 2:
        raise KeyboardInterrupt


def test_interrupted_and_damaged(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        inverted(model, 0, "disk", cache=tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())
    expected = inverted(model, 0, "disk", cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    data[-5] ^= 1
    entry.unlink()  # the mapping has its own
    entry.write_bytes(data)
    with pytest.warns(UserWarning, match="inverting again: .*checksum"):
        again = inverted(model, 0, "disk", cache=tmp_path)
    np.testing.assert_array_equal(again.value(2, 7), expected.value(2, 7))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("when", ["reserved", "written", "flushed"])
def test_a_full_disk(model, tmp_path, monkeypatch, when):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "reserved":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(styleid.files.tensors.TensorStream, {"written": "write", "flushed": "finish"}[when], full)
    with pytest.raises(OSError, match="No space left on device"):
        inverted(model, 0, "disk", cache=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left on device"):
        inverted(model, 0, "disk")


def test_a_file_larger_than_allowed(model, tmp_path):
    """A true error of the system, as from a full disk, half way."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        with pytest.raises(OSError, match="File too large for 0 MB of features"):
            inverted(model, 0, "disk", cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_file_systems_that_cannot_reserve(model, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert inverted(model, 0, "disk", cache=tmp_path).mapped


def test_streams_refuse_what_does_not_fit(tmp_path):
    with open(tmp_path / "a", "x+b") as file:
        stream = TensorStream(file, {"a": ("F32", (2,))}, {"key": "x"})
        with pytest.raises(ValueError, match="^a: more bytes"):
            stream.write("a", memoryview(bytes(12)))
        stream.write("a", memoryview(bytes(4)))
        with pytest.raises(ValueError, match="not complete"):
            stream.finish({"key": "x"})
        stream.write("a", memoryview(bytes(4)))
        with pytest.raises(ValueError, match="metadata have grown"):
            stream.finish({"key": "x" * 100})


def test_bad_modes(model):
    for call in (
        lambda *arguments, **options: styleid.invert(*arguments, **told(**options)),
        lambda *arguments, **options: styleid.transfer(random_image(0), *arguments, **told(**options)),
    ):
        with pytest.raises(
            ValueError, match=r"^features: expected one of \['memory', 'host', 'disk', 'recompute'\], got 'cloud'"
        ):
            call(random_image(1), model, features="cloud")


def test_mapped_files_go_back_while_something_is_made_of_them(tmp_path):
    write_tensors(
        tmp_path / "a", {"a": Tensor("F32", (1 << 23,), memoryview(np.ones(1 << 23, np.float32)).cast("B"))}, {}
    )
    data = read_tensors(tmp_path / "a")[0]["a"].data
    base = mapped_bytes()
    assert np.frombuffer(data, np.float32).sum() == 1 << 23 and mapped_bytes() - base > 30 << 20
    with releasing([data, memoryview(b"of no file")]):
        deadline = time.monotonic() + 20
        while mapped_bytes() - base > 10 << 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert mapped_bytes() - base < 10 << 20
    assert np.frombuffer(data, np.float32).sum() == 1 << 23


@pytest.mark.parametrize("mode", FEATURES)
def test_command_line(model, shared_folder, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in ("c.png", 0), ("s.png", 1):
        styleid.save_image(name, random_image(seed))
    common = ["--steps", "3", "--model", str(shared_folder), "--dtype", "float32", "--threads", "1", "--quiet"]
    common += ["--features", mode]
    assert main(["transfer", "c.png", "s.png", "-o", "out.png", *common]) == 0
    expected = styleid.transfer("c.png", "s.png", model, steps=3)
    np.testing.assert_array_equal(styleid.load_image("out.png"), expected)
    for name in "c", "s":
        assert main(["invert", f"{name}.png", "-o", name, *common]) == 0
    assert main(["inject", "c", "s", "-o", "again.png", *common[2:-2]]) == 0
    parts = styleid.inject_styles(*(styleid.invert(f"{name}.png", model, steps=3) for name in "cs"))
    np.testing.assert_array_equal(styleid.load_image("again.png"), parts)
