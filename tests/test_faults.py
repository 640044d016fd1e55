"""Allocations that fail: an error, no crash, nothing left behind, and a model that still works. See tests/faults.

Of each place in the code that allocates the first call; the slow test tries the last one and one between as well, `python
tests/faults` tries all calls.
"""

import numpy as np
import pytest
import tiny
from faults.runs import RUNS, TOKENS, attempt, build, count, faults

from styleid import _core

pytestmark = pytest.mark.long


def try_places(name, *choices):
    assert faults().changed > 20  # the module's calls are seen
    places = count(name)
    assert len(places) > 10
    for numbers in places.values():
        for number in {numbers[int(choice * (len(numbers) - 1))] for choice in choices}:
            attempt(name, number)


@pytest.mark.parametrize("name", RUNS)
def test_each_place_that_allocates(name):
    try_places(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_more_calls_of_each_place(name):
    try_places(name, 0.5, 1)


def test_objects_of_python():
    """The interpreter's own test module makes its k-th allocation fail."""
    fail = pytest.importorskip("_testcapi")
    model, config, z = build(), tiny.config(), tiny.latents(2)
    weights, data = tiny.weights(config), tiny.invert(model)[0]
    sample, inject, transfer = tiny.sample_arguments(data), tiny.sample_arguments(data), tiny.transfer_arguments()
    image = tiny.random_image(16, 16)[np.newaxis]
    invert = z, tiny.CONTEXT, tiny.STEPS, "diffusers", tiny.LAYERS, ("both", "query"), "float32"
    calls = [
        lambda: _core.Model(config, weights),
        lambda: _core.invert(model, *invert, on_attention=lambda *_: None),
        lambda: _core.sample(model, **sample),
        lambda: _core.inject_styles(model, **inject),
        lambda: _core.transfer(model, **transfer),
        lambda: _core.schedule(model, "paper", 50),
        _core.info,
        lambda: model.decode(model.encode(image)),
        lambda: model.encode_tokens(TOKENS),
    ]
    for call in calls:
        allocations = 0
        for number in range(200):
            raised = None
            fail.set_nomemory(number, number + 1)
            try:
                call()
            except Exception as error:
                raised = error
            finally:
                fail.remove_mem_hooks()
            if raised is not None:
                allocations = number + 1
                assert isinstance(raised, MemoryError), (number, raised)
            if number > allocations + 20:
                break
        assert allocations, "nothing was allocated"
