"""The text encoder against transformers."""

import copy
from functools import cache

import numpy as np
import oracle
import pytest
import torch
from oracle import BFLOAT16_TOLERANCE, EVALUATION_TOLERANCE, Networks, relative_error

pytestmark = pytest.mark.torch

CONFIGURATIONS = {
    "quick_gelu": dict(channels=64, heads=4, layers=3),
    "gelu": dict(channels=64, heads=1, layers=3, activation="gelu"),
    "one layer, narrow": dict(channels=24, heads=3, layers=1, hidden=40, positions=16, vocabulary=50),
    "head size 20": dict(channels=60, heads=3, layers=2, activation="gelu", hidden=100),
}


@cache
def networks(name):
    text = oracle.text_encoder(**CONFIGURATIONS[name])
    return Networks(oracle.unet((16,), 2, (0,), layers=1, context=text.config.hidden_size), text=text)


@cache
def engine(name, **options):
    return networks(name).engine(**options)


def tokens(name, n, length):
    return np.random.default_rng(length).integers(
        networks(name).text.config.vocab_size, size=(n, length), dtype=np.int32
    )


def expected(text, ids):
    return text(torch.from_numpy(ids).long()).last_hidden_state.float()


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("n, length", [(1, 1), (1, 16), (3, 7)])
def test_context(name, n, length):
    ids = tokens(name, n, length)
    actual = engine(name).encode_tokens(ids)
    assert actual.dtype == np.float32
    assert relative_error(actual, expected(networks(name).text, ids)) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_full_length(name):
    ids = tokens(name, 2, 77)
    assert relative_error(engine(name).encode_tokens(ids), expected(networks(name).text, ids)) <= EVALUATION_TOLERANCE


@pytest.mark.bfloat16
@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_bfloat16_loses_no_more_than_pytorchs(name):
    ids, text = tokens(name, 1, 77), networks(name).text
    exact = expected(text, ids)
    theirs = relative_error(expected(copy.deepcopy(text).bfloat16(), ids), exact)
    ours = relative_error(engine(name, dtype="bfloat16").encode_tokens(ids), exact)
    assert ours <= BFLOAT16_TOLERANCE * theirs


def test_later_tokens_change_nothing():
    """The attention is causal."""
    ids = tokens("gelu", 1, 20)
    changed = ids.copy()
    changed[:, 12:] = 3
    a, b = (engine("gelu").encode_tokens(x) for x in (ids, changed))
    assert relative_error(a[:, :12], b[:, :12]) <= EVALUATION_TOLERANCE
    assert relative_error(a[:, 12:], b[:, 12:]) > 0.1
