"""The numbers behind the figures, by hand or by the plain formula; and that the figures can be drawn."""

import io

import numpy as np
import pytest
from conftest import random_image

import styleid

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from styleid import viz

STEPS, LAYER = 3, 6


@pytest.fixture(scope="module")
def content(model):
    return styleid.invert(random_image(0, 16, 32), model, steps=STEPS)


@pytest.fixture(scope="module")
def style(model):
    return styleid.invert(random_image(1, 32, 32), model, steps=STEPS)


def test_components(content):
    """Their covariance is diagonal, with the largest eigenvalues of the queries'."""
    colours = viz.query_components(content, 1, LAYER)
    assert colours.shape == (8, 16, 3) and colours.min() == 0 and colours.max() == 1
    queries = content.query(1, LAYER).astype(float)
    values = np.linalg.eigvalsh(np.cov(queries.T))[::-1][:3]
    flat = colours.reshape(-1, 3) - colours.reshape(-1, 3).mean(axis=0)
    correlation = np.corrcoef(flat.T)
    np.testing.assert_allclose(correlation, np.eye(3), atol=1e-6)
    axes = np.linalg.lstsq(queries - queries.mean(axis=0), flat, rcond=None)[0]
    projected = (queries - queries.mean(axis=0)) @ (axes / np.linalg.norm(axes, axis=0))
    np.testing.assert_allclose(projected.var(axis=0, ddof=1), values, rtol=1e-5)


def test_similarity(content):
    similar = viz.similarity(content, 0, LAYER, (0.5, 0.25))
    queries = content.query(0, LAYER).astype(float)
    chosen = queries[4 * 16 + 4]
    expected = queries @ chosen / np.linalg.norm(queries, axis=1) / np.linalg.norm(chosen)
    np.testing.assert_allclose(similar, expected.reshape(8, 16))
    assert similar[4, 4] == pytest.approx(1)


def test_attention_map(content, style):
    weights = viz.attention_map(content, style, 2, LAYER, (1, 1), temperature=2)
    query, keys = content.query(2, LAYER)[-1].astype(float), style.key(2, LAYER).astype(float)
    expected = 0
    for head in (slice(0, 8), slice(8, 16)):  # two heads of eight channels
        logits = 2 * keys[:, head] @ query[head] / np.sqrt(8)
        expected = expected + np.exp(logits) / np.exp(logits).sum() / 2
    np.testing.assert_allclose(weights, expected.reshape(16, 16))
    assert weights.sum() == pytest.approx(1)


def test_deviation_of_logits(content, style):
    queries, keys = content.query(0, LAYER), style.key(0, LAYER)
    logits = np.stack([queries[:, h].astype(float) @ keys[:, h].T / np.sqrt(8) for h in (slice(0, 8), slice(8, 16))])
    assert viz.logit_deviation(queries, keys, 2) == pytest.approx(np.sqrt(logits.var(axis=-1).mean()), rel=1e-5)


def test_curves_of_logits(content, style):
    """With gamma = 1 the injected ones are known in closed form; the paper's schedule leaves out the last step."""
    curves = viz.logit_curves(content, style, gamma=1.0, temperature=2.0)
    assert list(curves) == ["own keys", "injected", "injected, T = 2"]
    for step in range(STEPS - 1):
        deviations = [viz.logit_deviation(content.query(step, n), style.key(step, n), 2) for n in content.layers]
        assert curves["injected"][step] == pytest.approx(np.mean(deviations), rel=1e-4)
        assert curves["injected, T = 2"][step] == pytest.approx(2 * np.mean(deviations), rel=1e-4)
    assert all(np.isnan(curve[-1]) for curve in curves.values())


def test_layers_by_their_level(model, content):
    """Decoder layers 4 and 5 are at half the resolution, 6 and 7 at the latent's."""
    all_layers = styleid.invert(random_image(0, 16, 32), model, steps=STEPS, layers=model.attention_layers)
    assert [viz.map_size(all_layers, layer) for layer in (4, 7)] == [(4, 8), (8, 16)]
    assert viz.head_count(content, LAYER) == 2


@pytest.mark.long
def test_figures(content, style):
    figures = [
        viz.plot_queries(content, range(STEPS), content.layers),
        viz.plot_queries(content, [0], [LAYER], point=(0.5, 0.5)),
        viz.plot_logits(content, style),
        viz.plot_ablation(content, style),
        viz.plot_inversion(content, 3),
        viz.plot_grid(content, style, [0.3, 0.75], [1, 1.5]),
        viz.plot_attention(content, style, 0, LAYER, (0.2, 0.9)),
    ]
    for figure, panels in zip(figures, (6, 2, 1, 6, 3, 4, 4), strict=True):
        assert len(figure.axes) == panels
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=40)
        assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.long
def test_given_axes(content, style):
    figure = Figure()
    panels = figure.subplots(2, 6)
    assert viz.plot_ablation(content, style, axes=panels[0]) is figure
    assert viz.plot_attention(content, style, 0, LAYER, (0.2, 0.9), axes=panels[1, :3]) is figure
    assert viz.plot_logits(content, style, ax=panels[1, 3]) is figure
    assert len(panels[0, 5].images) == 1 and len(panels[1, 2].images) == 2 and len(panels[1, 3].lines) == 3
    assert panels[1, 2].images[0].get_extent() == panels[1, 2].images[1].get_extent()  # the map lies over the image
    rows = Figure().subplots(3, 3)
    for drawn in (
        viz.plot_queries(content, [0, 1], content.layers, axes=rows[:2, :2]),
        viz.plot_grid(content, style, [0.3], [1, 1.5], axes=rows[2, :2]),
        viz.plot_inversion(content, 1, axes=rows[2, 2]),
    ):
        assert drawn is rows[0, 0].figure
    assert [len(panel.images) for panel in rows.flat] == [1, 1, 0, 1, 1, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="^axes: expected 1 x 6, got 2"):
        viz.plot_ablation(content, style, axes=panels[0, :2])


def test_points_outside(content):
    with pytest.raises(ValueError, match="^point: expected"):
        viz.similarity(content, 0, LAYER, (0.5, 1.5))
