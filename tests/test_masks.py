"""Masks: neutral ones change nothing, empty ones leave the content as it is, and the terms are those of the equations."""

import numpy as np
import pytest
from conftest import random_image, told

import styleid
from styleid import _core
from styleid.method import masks

STEPS = 3
EVERYWHERE = np.ones((16, 16))
LEFT = np.tile(np.arange(16) < 8, (16, 1))  # at every level, whole tokens


@pytest.fixture(scope="module")
def inversions(model):
    return [styleid.invert(random_image(seed), model, steps=STEPS) for seed in (0, 1, 2)]


# ---- the result ----


def test_masks_of_ones_change_nothing(model, inversions):
    content, *styles = inversions
    expected = styleid.inject_styles(content, styles[0])
    for mask in (EVERYWHERE, np.full((7, 5), True), np.full((16, 16), 255, np.uint8)):
        np.testing.assert_array_equal(
            styleid.inject_styles(content, styles[0], options=styleid.Mix(masks=mask)), expected
        )
        np.testing.assert_array_equal(
            styleid.inject_styles(content, styles[0], options=styleid.Mix(style_masks=[mask])), expected
        )
    both = styleid.inject_styles(
        content, styles, options=styleid.Mix([1, 3], masks=[EVERYWHERE, None], style_masks=[None, None])
    )
    np.testing.assert_array_equal(both, styleid.inject_styles(content, styles, options=styleid.Mix([1, 3])))


def test_what_no_mask_covers_is_not_touched(inversions):
    """The same arithmetic as without injection, in the covered columns only their neighbours' influence."""
    content, style, _ = inversions
    layers = content.layers
    nowhere = {
        "bias": {n: np.full((1, 64), -np.inf, np.float32) for n in layers},
        "cover": {n: np.zeros(64, np.float32) for n in layers},
        "key_bias": [{}],
    }
    rates = [np.full((STEPS, 8), value, np.float32) for value in (0.75, 1.5)]
    fixed = content.model.engine, content.latent, content.context, STEPS, "paper"
    untouched = _core.sample(*fixed, (), None, [], [], *rates)
    masked = _core.sample(*fixed, layers, content.data, [style.data], [1.0], *rates, regions=nowhere)
    np.testing.assert_array_equal(masked, untouched)


def test_each_style_in_its_region(inversions):
    """Queries of the left half see the first style's keys alone: the same as if it were the only one."""
    content, *styles = inversions
    rates = [np.full((STEPS, 8), value, np.float32) for value in (0.75, 1.5)]
    fixed = content.model.engine, content.latent, content.context, STEPS, "paper", content.layers, content.data
    where = masks.read_masks("masks", [LEFT, ~LEFT], 2)
    terms = masks.regions(content.model, content.layers, where, (8, 8), [None, None], [(8, 8)] * 2)
    assert terms["cover"] == {}
    only = masks.regions(content.model, content.layers, [where[0]], (8, 8), [None], [(8, 8)])
    both = _core.sample(*fixed, [one.data for one in styles], [0.5, 0.5], *rates, regions=terms)
    first = _core.sample(*fixed, [styles[0].data] * 2, [0.5, 0.5], *rates, regions=terms)
    alone = _core.sample(*fixed, [styles[0].data], [1.0], *rates)
    np.testing.assert_allclose(first, alone, rtol=1e-4, atol=1e-5)  # both regions, one style
    assert np.abs(both - alone).max() > 1e-3
    assert np.abs(_core.sample(*fixed, [styles[0].data], [1.0], *rates, regions=only) - alone).max() > 1e-3


def test_what_a_style_hides_does_not_matter(model, inversions):
    content, style, other = inversions
    hidden = ~LEFT[::2, ::2].reshape(-1)  # of 8 x 8 tokens
    features = {kind: {n: style.features[kind][n].copy() for n in style.layers} for kind in ("key", "value")}
    for kind, layers in features.items():
        for n, array in layers.items():
            array[:, hidden] = other.features[kind][n][:, hidden]
    rates = [np.full((STEPS, 8), value, np.float32) for value in (0.75, 1.5)]
    fixed = model.engine, content.latent, content.context, STEPS, "paper", content.layers, content.data
    terms = masks.regions(model, content.layers, [None], (8, 8), [LEFT.astype(float)], [(8, 8)])
    shown = _core.sample(*fixed, [style.data], [1.0], *rates, regions=terms)
    changed = [style.data | features]
    np.testing.assert_array_equal(_core.sample(*fixed, changed, [1.0], *rates, regions=terms), shown)
    assert np.abs(_core.sample(*fixed, changed, [1.0], *rates) - shown).max() > 1e-3


def test_the_initial_latent_by_region(inversions):
    content, *styles = inversions
    seen = []
    styleid.inject_styles(
        content,
        styles,
        options=[
            styleid.Mix([1, 3], masks=[LEFT, 0.5 * EVERYWHERE]),
            styleid.Hooks(on_step=lambda step, steps, z: seen.append(z.copy())),
        ],
    )
    first, second = (_core.adain(content.latent, one.latent) for one in styles)
    left = (1 * first + 3 * 0.5 * second) / (1 + 3 * 0.5)
    right = 0.5 * second + 0.5 * content.latent
    expected = np.concatenate([left[..., :4], right[..., 4:]], axis=3)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5, atol=1e-6)


def test_the_initial_latent_of_a_part_of_the_style(inversions):
    content, style, _ = inversions
    seen = []
    styleid.inject_styles(
        content,
        style,
        options=[styleid.Mix(style_masks=LEFT), styleid.Hooks(on_step=lambda step, steps, z: seen.append(z.copy()))],
    )
    expected = _core.adain(content.latent, np.ascontiguousarray(style.latent[..., :4]))
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5, atol=1e-6)


def test_transfer_takes_masks(model, inversions):
    whole = styleid.transfer(
        random_image(0), random_image(1), model, steps=STEPS, options=styleid.Mix(masks=LEFT, style_masks=~LEFT)
    )
    parts = styleid.inject_styles(*inversions[:2], options=styleid.Mix(masks=LEFT, style_masks=~LEFT))
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.any(parts != styleid.inject_styles(*inversions[:2]))


# ---- the terms ----


def test_area_means_by_hand():
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    np.testing.assert_allclose(masks.area_mean(mask, (1, 3)), [[0.5, 1, 0.5]])
    np.testing.assert_allclose(masks.area_mean(mask, (1, 1)), [[2 / 3]])
    np.testing.assert_allclose(masks.area_mean(mask, (2, 2)), [[1 / 3, 1], [1, 1 / 3]])  # cuts the middle column
    np.testing.assert_allclose(masks.area_mean(np.eye(2), (4, 4)), np.kron(np.eye(2), np.ones((2, 2))))


def test_terms_by_hand(model):
    """Layers 6 and 7 have 8 x 8 tokens, layer 5 has 4 x 4, of an image of 16 x 16."""
    mask = np.zeros((16, 16))
    mask[0, 0] = 1
    where = masks.read_masks("masks", [mask, None], 2)
    terms = masks.regions(model, (5, 6), where, (8, 8), [None, mask], [(8, 8), (8, 16)])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(terms["bias"][6][0], np.log([0.25] + [0] * 63))
        np.testing.assert_allclose(terms["bias"][5][0], np.log([1 / 16] + [0] * 15))
        np.testing.assert_allclose(terms["key_bias"][1][6], np.log([0.5] + [0] * 127))
    np.testing.assert_array_equal(terms["bias"][6][1], np.zeros(64))
    assert terms["cover"] == {} and terms["key_bias"][0] == {}  # the second style is everywhere
    terms = masks.regions(model, (6,), where[:1] * 2, (8, 8), [None] * 2, [(8, 8)] * 2)
    np.testing.assert_allclose(terms["cover"][6], [0.5] + [0] * 63)


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (EVERYWHERE[0], ValueError, r"\(16,\)"),
        (EVERYWHERE * 2, ValueError, "0 to 1, got 2.0"),
        (EVERYWHERE * np.nan, ValueError, "0 to 1, got nan"),
        (EVERYWHERE.astype(int), TypeError, "int64"),
        (EVERYWHERE[:0], ValueError, r"\(0, 16\)"),
        (0 * EVERYWHERE, ValueError, "0 everywhere"),
        (None, ValueError, "expected 1, one per style, got 2"),
    ],
)
@pytest.mark.parametrize("name", ["masks", "style_masks"])
def test_bad_masks(inversions, mask, error, message, name):
    given = [EVERYWHERE, EVERYWHERE] if mask is None else mask
    with pytest.raises(error, match=rf"^{name}(\[0\])?: .*{message}"):
        styleid.inject_styles(*inversions[:2], **told(**{name: given}))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"bias": {6: np.zeros((1, 63), np.float32)}},
            ValueError,
            r"regions\['bias'\]\[6\]: expected float32 of shape \(1, 64\)",
        ),
        ({"bias": {6: np.full((1, 64), np.nan, np.float32)}}, ValueError, "finite numbers or -inf"),
        ({"bias": {6: np.full((1, 64), np.inf, np.float32)}}, ValueError, "finite numbers or -inf"),
        ({"cover": {6: np.full(64, 1.5, np.float32)}}, ValueError, "from 0 to 1"),
        ({"cover": []}, TypeError, "expected a dict"),
        ({"key_bias": []}, ValueError, "expected 1, one for each style, got 0"),
        ({"key_bias": [3]}, TypeError, "expected a dict"),
        ({"key_bias": [{6: np.zeros(65, np.float32)}]}, ValueError, r"\(64,\)"),
    ],
)
def test_bad_regions(inversions, change, error, message):
    content, style, _ = inversions
    rates = [np.ones((STEPS, 8), np.float32)] * 2
    fixed = (
        content.model.engine,
        content.latent,
        content.context,
        STEPS,
        "paper",
        (6,),
        content.data,
        [style.data],
        [1.0],
    )
    regions = {"bias": {}, "cover": {}, "key_bias": [{}]} | change
    with pytest.raises(error, match=message):
        _core.sample(*fixed, *rates, regions=regions)
    with pytest.raises(TypeError, match="regions: expected a dict with 'bias'"):
        _core.sample(*fixed, *rates, regions={})


def test_masks_of_images_that_are_padded(model):
    """They lie over the image alone, and are mirrored as it is."""
    content, style = random_image(0, 20, 30), random_image(1, 25, 16)
    whole = [
        np.pad(image, ((0, -len(image) % 16), (0, -image.shape[1] % 16), (0, 0)), mode="reflect")
        for image in (content, style)
    ]
    mask, style_mask = np.random.default_rng(0).random((20, 30)), np.random.default_rng(1).random((25, 16))
    wholes = [np.pad(one, ((0, -len(one) % 16), (0, -one.shape[1] % 16)), mode="reflect") for one in (mask, style_mask)]
    out = styleid.transfer(content, style, model, steps=2, options=styleid.Mix(masks=mask, style_masks=style_mask))
    expected = styleid.transfer(*whole, model, steps=2, options=styleid.Mix(masks=wholes[0], style_masks=wholes[1]))
    np.testing.assert_array_equal(out, expected[:20, :30])
    coarse = styleid.transfer(content, style, model, steps=2, options=styleid.Mix(masks=np.array([[1.0, 0.0]])))
    fine = styleid.transfer(
        content, style, model, steps=2, options=styleid.Mix(masks=np.repeat([[1.0, 0.0]], 15, axis=1))
    )
    np.testing.assert_array_equal(coarse, fine)
