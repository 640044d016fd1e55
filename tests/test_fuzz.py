"""A little of the fuzzing: whatever comes in, a result or a refusal comes out, soon and in bounds. See tests/fuzz.

`make fuzz` runs more of it, under sanitizers; docs/reliability.md says what was run.
"""

import json
import signal
from random import Random

import numpy as np
import pytest
from fuzz import engine, files, images
from fuzz.mutate import VALUES, change_bytes, change_tree
from fuzz.runner import ENTRIES, run

INPUTS = 60


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_point(name, tmp_path):
    """Some are accepted, and the refused ones get further than one check: the inputs are not just noise."""
    result = run(name, tmp_path, count=INPUTS)
    assert result.inputs == INPUTS and result.accepted + result.refusals > 5


def greedy(number):
    return np.ones(400 << 20, np.uint8)


def broken(number):
    raise KeyError("x")


@pytest.mark.parametrize("fault, message", [(greedy, "MB"), (broken, "KeyError: 'x'")])
def test_inputs_that_are_not_survived_are_named(tmp_path, monkeypatch, fault, message):
    number = iter(range(1000))
    np.ones(600 << 20, np.uint8)  # more than the fault takes, but earlier

    def entry(place):
        return lambda random: next(number), lambda n: n == 30 and fault(n)

    monkeypatch.setitem(ENTRIES, "entry", entry)
    with pytest.raises(AssertionError, match=f"entry, seed 3, input 10: .*{message}"):
        run("entry", tmp_path, count=100, seed=3)
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_an_input_is_made_again_by_its_number(tmp_path):
    for entry in files.tensors, images.image:
        place = tmp_path / entry.__name__
        place.mkdir()
        make, _ = entry(place)
        assert make(Random("a 0 1")) == make(Random("a 0 1")) != make(Random("a 0 2"))
    first, second = (engine.array(Random(5), 3, 4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_mutations_stay_in_bounds():
    random, values = Random(0), json.dumps(VALUES)
    for number in range(2000):
        assert len(change_bytes(random, bytes(number % 40), [b"word"], [b"other" * 9])) < 2000
        change_tree(random, {"a": [1, {"b": "c"}], "d": None, "": []} if number % 3 else [])
    assert json.dumps(VALUES) == values  # what one input is made of is not changed for the next
