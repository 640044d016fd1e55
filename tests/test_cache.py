"""The cache of inversions: what hits, what must not, damage, bounds, and several processes."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import formats
import numpy as np
import pytest
from conftest import random_image, told
from safetensors.numpy import load_file, save_file

import styleid
from styleid.files import disk

STEPS = 3


@pytest.fixture
def runs(monkeypatch):
    """How many inversions have been computed."""
    count = []
    real = styleid.inversions.recording._core.invert

    class Counting:
        def __getattr__(self, name):
            return getattr(styleid._core, name)

        def invert(self, *arguments, **options):
            count.append(1)
            return real(*arguments, **options)

    monkeypatch.setattr(styleid.inversions.recording, "_core", Counting())
    return count


def invert(model, cache, seed=0, **options):
    return styleid.invert(random_image(seed), model, **told(**({"steps": STEPS, "cache": cache} | options)))


def entries(folder):
    return sorted(folder.glob("*.safetensors"))


def test_the_second_time_is_the_first_one_again(model, tmp_path, runs):
    first, second, plain = (invert(model, cache) for cache in (tmp_path, tmp_path, None))
    assert len(runs) == 2
    assert second.model is model and repr(second) == repr(plain)
    np.testing.assert_array_equal(second.latents, plain.latents)
    for kind, kept in plain.features.items():
        for layer, array in kept.items():
            np.testing.assert_array_equal(second.features[kind][layer], array)
    style = invert(model, None, 1)
    np.testing.assert_array_equal(styleid.inject_styles(first, style), styleid.inject_styles(second, style))


def test_whatever_changes_the_inversion_is_another_entry(model, other_model, tmp_path, runs):
    invert(model, tmp_path)
    others = [
        {"seed": 1}, {"steps": 4}, {"schedule": "corrected"}, {"layers": [7]}, {"keep": "keys"}, {"dtype": "bfloat16"},
    ]  # fmt: skip
    for other in others:
        invert(model, tmp_path, **other)
    invert(other_model, tmp_path)
    styleid.invert(
        random_image(0).reshape(32, 8, 3).repeat(2, axis=1), model, steps=STEPS, options=styleid.Storage(cache=tmp_path)
    )
    assert len(runs) == len(entries(tmp_path)) == len(others) + 3


def test_models_that_differ_in_little(folder, tmp_path, runs):
    """A stored context, one number of it or of the weights, how it computes: each has entries of its own."""
    path = folder / "context.safetensors"
    weights = folder / "unet/diffusion_pytorch_model.safetensors"

    def change(path, name, place):
        arrays = load_file(path)
        path.unlink()
        arrays[name] = arrays[name].copy()
        arrays[name].flat[place] += np.float32(0.25)
        save_file(arrays, path)

    def load(**options):
        return styleid.load_model(folder, **{"dtype": "float32", "threads": 1} | options)

    models = [load(), load(tiling=True)]
    change(path, "empty_prompt", -1)
    models.append(load())
    change(weights, "mid_block.resnets.0.conv1.weight", 777)
    models.append(load())
    for model in models:
        invert(model, tmp_path / "cache")
    assert len(runs) == len(entries(tmp_path / "cache")) == len({model.identity for model in models}) == len(models)
    invert(load(threads=2), tmp_path / "cache")  # threads change no byte
    assert len(runs) == len(models)


@pytest.mark.parametrize("change", ["merges", "vocabulary", "padding", "length", "embedding", "none"])
def test_models_that_differ_in_their_text(tmp_path, runs, change):
    """What turns a prompt into a context: the tokenizer's files, and every row of the embedding."""
    root = formats.write_diffusers(tmp_path / "model", formats.configuration("1.x"))

    def run():
        model = styleid.load_model(root, dtype="float32", threads=1)
        return invert(model, tmp_path / "cache", prompt="a cat", layers=(3, 4)), model.fingerprint

    first, fingerprint = run()
    tokenizer = root / "tokenizer"
    vocabulary = json.loads((tokenizer / "vocab.json").read_text())
    if change == "merges":
        vocabulary |= {"ca": 300, "cat</w>": 301}
        vocabulary = {piece: i for piece, i in vocabulary.items() if piece not in ("unused110", "unused111")}
        (tokenizer / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
        (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    elif change == "vocabulary":
        vocabulary["a</w>"], vocabulary["b</w>"] = vocabulary["b</w>"], vocabulary["a</w>"]
        (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    elif change == "padding":
        (tokenizer / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!"}))
    elif change == "length":
        (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    elif change == "embedding":
        path = root / "text_encoder/model.safetensors"
        arrays = load_file(path)
        path.unlink()
        name = "text_model.embeddings.token_embedding.weight"
        arrays[name] = arrays[name].copy()
        arrays[name][vocabulary["t</w>"]] += 1
        save_file(arrays, path)
    second, other = run()
    assert len(runs) == (1 if change == "none" else 2)
    assert np.array_equal(first.context, second.context) == (change == "none")
    assert (fingerprint == other) == (change != "embedding")


def test_images_of_one_name(model, tmp_path, runs):
    for seed in 0, 1:
        (tmp_path / str(seed)).mkdir()
        styleid.save_image(tmp_path / str(seed) / "a.png", random_image(seed))
        styleid.invert(
            tmp_path / str(seed) / "a.png", model, steps=STEPS, options=styleid.Storage(cache=tmp_path / "cache")
        )
    assert len(runs) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: data[:-1], lambda data: b"", lambda data: b"x" * 999]
)
def test_damaged_entries_are_made_again(model, tmp_path, runs, damage):
    expected = invert(model, tmp_path)
    (path,) = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="inverting again: "):
        again = invert(model, tmp_path)
    np.testing.assert_array_equal(again.latents, expected.latents)
    invert(model, tmp_path)
    assert len(runs) == 2


def test_the_least_recently_used_goes_first(model, tmp_path):
    invert(model, tmp_path)
    size = entries(tmp_path)[0].stat().st_size
    cache = styleid.Cache(tmp_path, limit=2 * size + size // 2)
    invert(model, cache, 1)
    oldest, second = sorted(entries(tmp_path), key=os.path.getmtime)
    os.utime(oldest, (1, 1))
    os.utime(second, (2, 2))
    invert(model, cache, 0)  # used again
    invert(model, cache, 2)
    assert oldest.exists() and not second.exists() and len(entries(tmp_path)) == 2
    invert(model, styleid.Cache(tmp_path, limit=1), 3)  # the newest stays, whatever its size
    assert len(entries(tmp_path)) == 1


def test_what_killed_processes_left_is_removed(model, tmp_path):
    old, new = tmp_path / ".a.tmp", tmp_path / ".b.tmp"
    for path in old, new:
        path.touch()
    os.utime(old, (1, time.time() - 100 * 3600))
    invert(model, tmp_path)
    assert not old.exists() and new.exists()


def test_a_full_disk_costs_a_warning(model, tmp_path, monkeypatch):
    def fail(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(styleid.Inversion, "save", fail)
    with pytest.warns(UserWarning, match="not kept: No space left"):
        assert invert(model, tmp_path).steps == STEPS


def test_one_folder_for_many(model, tmp_path):
    expected = invert(model, None)
    cache = styleid.Cache(tmp_path, limit=1)  # everyone removes everyone else's
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: (i % 3, invert(model, cache, i % 3)), range(24)))
    for seed, inversion in results:
        if seed == 0:
            np.testing.assert_array_equal(inversion.latents, expected.latents)


def test_transfer(model, tmp_path, runs):
    plain = styleid.transfer(random_image(0), random_image(1), model, steps=STEPS)
    runs.clear()
    first = styleid.transfer(
        random_image(0), random_image(1), model, steps=STEPS, options=styleid.Storage(cache=tmp_path)
    )
    second = styleid.transfer(
        random_image(0), random_image(1), model, steps=STEPS, gamma=0.75, options=styleid.Storage(cache=tmp_path)
    )
    assert np.abs(first.astype(int) - plain).max() <= 1
    np.testing.assert_array_equal(first, second)
    assert len(runs) == 2


def test_bad_caches(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        invert(model, tmp_path / "file")
    with pytest.raises(ValueError, match="^limit: expected"):
        styleid.Cache(tmp_path, limit=0)
    with pytest.raises(ValueError, match="^cache: .*on_step"):
        invert(model, tmp_path, on_step=lambda step, steps, latents: None)


PROCESS = """
import sys, time
sys.path.insert(0, {tests!r})
import styleid
from conftest import random_image

model = styleid.load_model({folder!r}, dtype="float32", threads=1)
calls = []
print("ready", flush=True)
sys.stdin.readline()
for seed in 0, 1:
    styleid.invert(random_image(seed), model, steps=3, options=styleid.Storage({features!r}, cache={cache!r}),
                   progress=lambda *call: (calls.append(call), time.sleep(0.2)))
print(len(calls), flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("features", ["memory", "disk"])
def test_processes_wait_for_each_other(shared_folder, model, tmp_path, features):
    """Two at once: each image is inverted by one of them, in 4 calls of the progress; one that is killed holds up none."""
    program = PROCESS.format(
        tests=str(Path(__file__).parent), folder=str(shared_folder), cache=str(tmp_path), features=features
    )
    root = Path(styleid.__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        assert all(process.stdout.readline() == "ready\n" for process in processes)
        killed, *others = processes
        killed.stdin.write("\n")
        killed.stdin.flush()
        wait_for(lambda: list(tmp_path.glob(".*.lock")))
        for process in others:
            process.stdin.write("\n")
            process.stdin.flush()
        killed.kill()
        counts = [int(process.communicate(timeout=60)[0]) for process in others]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sum(counts) == 2 * 4
    assert len(entries(tmp_path)) == 2 and not list(tmp_path.glob(".*.lock"))
    np.testing.assert_array_equal(invert(model, tmp_path).latents, invert(model, None).latents)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_recomputed_inversions_have_entries_of_their_own(model, tmp_path, runs):
    _, again, kept = (invert(model, tmp_path, features=mode) for mode in ("recompute", "recompute", "memory"))
    assert len(runs) == len(entries(tmp_path)) == 2 and again.recompute and not kept.recompute
    np.testing.assert_array_equal(again.key(1, 6), kept.key(1, 6))


def test_a_folder_without_locks(model, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(styleid.files.disk.fcntl, "flock", unsupported)
    invert(model, tmp_path)
    assert len(entries(tmp_path)) == 1


def test_locks_that_nobody_holds_are_removed_and_others_stay(tmp_path):
    left, held, young = tmp_path / ".left.lock", tmp_path / ".held.lock", tmp_path / ".young.tmp"
    left.touch()
    young.touch()
    with disk.locked(held):
        disk.remove_abandoned(tmp_path)
        assert sorted(tmp_path.iterdir()) == [held, young]
    assert list(tmp_path.iterdir()) == [young]
