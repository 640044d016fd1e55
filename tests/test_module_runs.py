"""How the C module runs: callbacks, Ctrl-C, threads, memory, instruction sets."""

import gc
import os
import resource
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import STEPS, STRENGTHS, filled, invert, random_image, sample_arguments, transfer_arguments

from styleid import _core


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def inversion(model):
    return invert(model)[0]


# ------------------------------------------------------------------------------------------------ callbacks and signals


class Stop(Exception):
    pass


def runs(model, inversion):
    """Every function that reports progress, with the number of steps it reports."""
    return [
        (lambda **options: invert(model, **options), STEPS),
        (lambda **options: _core.sample(model, **sample_arguments(inversion), **options), STEPS),
        (lambda **options: _core.inject_styles(model, **sample_arguments(inversion), **options), STEPS),
    ]


def test_progress_counts_up(model, inversion):
    for run, steps in runs(model, inversion):
        calls = []
        run(progress=lambda *call: calls.append(call))
        assert calls == [(i, steps) for i in range(steps + 1)]


@pytest.mark.parametrize("style", [(8, 8), (8, 12)])
def test_progress_of_a_transfer_counts_images(model, style):
    calls = []
    _core.transfer(
        model, **(transfer_arguments() | {"style": random_image(*style)}), progress=lambda *call: calls.append(call)
    )
    steps, totals = zip(*calls)
    assert set(totals) == {3 * STEPS} and steps[0] == 0 and steps[-1] == 3 * STEPS
    assert list(steps) == sorted(steps)


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("callback", ["progress", "hook"])
def test_an_exception_of_a_callback_ends_the_run(model, inversion, error, callback):
    def stop(step, *_):
        calls.append(step)
        if step == 1:
            raise error("enough")

    expected = _core.inject_styles(model, **sample_arguments(inversion))
    for run, _ in runs(model, inversion):
        calls = []
        with pytest.raises(error, match="enough"):
            run(**{callback: stop})
        assert calls == [0, 1]
    np.testing.assert_array_equal(_core.inject_styles(model, **sample_arguments(inversion)), expected)


def test_a_transfer_is_cancelled(model):
    def stop(step, total):
        if step >= 2 * STEPS:
            raise Stop

    with pytest.raises(Stop):
        _core.transfer(model, **transfer_arguments(), progress=stop)


def test_the_hook_changes_latents(model):
    def overwrite(step, steps, latents):
        assert steps == STEPS and latents.shape == (1, 4, 4, 4)
        latents[:] = step

    trajectory = invert(model, hook=overwrite)[0]["latents"]
    assert [np.unique(latent).tolist() for latent in trajectory] == [[0], [1], [2], [3]]


def test_the_hook_may_keep_latents_but_not_free_them(model, inversion):
    def keep(step, steps, latents):
        kept.append(latents)
        with pytest.raises(ValueError):
            latents.resize((1000,), refcheck=False)

    for run, _ in runs(model, inversion):
        kept = []
        run(hook=keep)
        gc.collect()
        assert all(np.isfinite(latents).all() for latents in kept)


def run_program(program, **environment):
    """In another process, and not in this directory, where the package may lie without its C module."""
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd="/",
        timeout=120,
    )


INTERRUPTED = """
import signal, sys, threading, time
sys.path.insert(0, {tests!r})
import numpy as np, tiny
from styleid import _core

signal.signal(signal.SIGINT, signal.default_int_handler)
model = tiny.model()
started = time.monotonic()
timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
timer.start()
try:
    _core.invert(model, tiny.latents(height=32, width=32), tiny.CONTEXT, 1000, "paper", (), ("none",), "float32")
except KeyboardInterrupt:
    model.predict_noise(tiny.latents(), 1, tiny.CONTEXT)
    print("interrupted after", time.monotonic() - started)
"""


def test_ctrl_c_stops_a_run_without_callbacks():
    program = INTERRUPTED.format(tests=str(Path(__file__).parent))
    process = run_program(program)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("interrupted after")
    assert float(process.stdout.split()[-1]) < 5


# ------------------------------------------------------------------------------------------------ threads and memory


def in_threads(count, call):
    results, errors = [None] * count, []

    def run(i):
        try:
            results[i] = call(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def test_threads_share_a_model(model):
    sizes = [(4, 4), (4, 6), (8, 8), (2, 12)]

    def call(i):
        z = tiny.latents(1, *sizes[i % len(sizes)], seed=i)
        return [model.predict_noise(z, 1, tiny.CONTEXT) for _ in range(5)] + [invert(model, latents=z)[0]["latents"]]

    expected = [call(i) for i in range(8)]
    for got, wanted in zip(in_threads(8, call), expected, strict=True):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_many_sizes_take_turns():
    """More of them than a model keeps primitives for, in more threads than one."""
    model = tiny.model()
    latents = [tiny.latents(1, 2 * height, 2 * width) for height in range(1, 6) for width in range(1, 6)]

    def call(i):
        return [model.predict_noise(z, 1, tiny.CONTEXT) for z in latents[i:] + latents[:i]]

    expected = [tiny.model().predict_noise(z, 1, tiny.CONTEXT) for z in latents]
    for i, got in enumerate(in_threads(3, call)):
        for a, b in zip(got, expected[i:] + expected[:i], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_gil_is_released(model):
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(None)
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = len(ticks)
    model.predict_noise(tiny.latents(4, 64, 64), 1, tiny.CONTEXT)
    during = len(ticks) - before
    done.set()
    ticker.join()
    assert during > 5


def test_models_are_built_and_dropped_in_threads():
    def call(i):
        model = tiny.model()
        result = model.predict_noise(tiny.latents(), 1, tiny.CONTEXT)
        del model
        return result

    results = in_threads(6, call)
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_references_are_given_back(model, inversion):
    z, context, keys = tiny.latents(), tiny.CONTEXT.copy(), inversion["key"][2]
    configuration, weights = tiny.config(), tiny.weights(tiny.config())
    name = "unet.conv_in.weight"
    data = weights[name]["data"]
    watched = (model, z, context, keys, inversion, configuration, data, STRENGTHS)
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(3):
        _core.Model(configuration, weights)
        model.predict_noise(z, 1, context)
        invert(model, latents=z, context=context)
        _core.sample(model, **sample_arguments(inversion), hook=lambda *_: None)
        _core.inject_styles(model, **sample_arguments(inversion))
        replayed = {"latents": z[[0] * (STEPS + 1)], "context": context, "feature_dtype": "float32"}
        _core.inject_styles(model, **(sample_arguments(inversion) | {"content": replayed, "styles": [replayed]}))
        del replayed
        for bad in ({"latents": filled(z, np.nan)}, {"keep": ()}, {"layers": (3, 9)}, {"progress": 1}):
            with pytest.raises((TypeError, ValueError)):
                invert(model, **({"latents": z, "context": context} | bad))
        with pytest.raises(ValueError):
            _core.inject_styles(model, **(sample_arguments(inversion) | {"styles": [inversion | {"key": {}}]}))
        with pytest.raises(_core.ModelError):
            _core.Model(configuration, weights | {name: weights[name] | {"shape": [1]}})
    assert [sys.getrefcount(thing) for thing in watched] == before


def test_results_are_given_back(model):
    result = weakref.ref(invert(model)[0]["query"][2])
    gc.collect()
    assert result() is None


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.long
def test_memory_does_not_grow(model):
    configuration = tiny.config()
    weights = tiny.weights(configuration) | {"unet.extra": tiny.weight(np.zeros(2**18, np.float32))}

    def calls():
        tiny.model()
        z = tiny.latents(height=32, width=32)
        model.predict_noise(z, 1, tiny.CONTEXT)
        model.decode(model.encode(random_image(64, 64)[None]))
        invert(model, latents=z)
        _core.transfer(model, **transfer_arguments())
        with pytest.raises(Stop):
            invert(model, latents=z, progress=raise_stop)
        with pytest.raises(_core.ModelError):
            _core.Model(configuration, weights)

    def raise_stop(step, total):
        raise Stop

    for _ in range(5):
        calls()
    before = resident()
    for _ in range(40):
        calls()
    assert resident() - before < 8 << 20


SIZES = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import tiny
from test_module_runs import resident
model = tiny.model()
for height in range(1, 61):
    model.scratch(1, 2 * height, 2)
    model.scratch(1, 2 * height, 4)
    print(resident())
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_sizes():
    """In a process of its own, whose heap has no holes that other tests left."""
    process = run_program(SIZES)
    assert not process.stderr
    before = [int(line) for line in process.stdout.split()]
    assert before[-1] - before[29] < 0.7 * (before[29] - before[0])


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512", "avx512_bf16", "amx", "sse9"])
def test_a_forced_instruction_set(level):
    program = "from styleid import _core; print(_core.info()['isa'])"
    process = run_program(program, STYLEID_ISA=level)
    if level in _core.info()["isas"]:
        assert process.stdout.strip() == level
    else:
        assert process.returncode == 1 and "ImportError: STYLEID_ISA: " in process.stderr and level in process.stderr


@pytest.mark.parametrize("level", ["generic", "avx2"])
def test_bfloat16_without_avx512_is_refused(level):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tiny; tiny.model(dtype='bfloat16')"
    )
    process = run_program(program, STYLEID_ISA=level)
    if level in _core.info()["isas"]:
        assert (
            process.returncode == 1
            and f"dtype: bfloat16 needs AVX-512, and this CPU has or uses {level}" in process.stderr
        )
