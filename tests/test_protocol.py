"""The paper's protocol: which images are compared, and that the table holds what the measures say."""

import csv
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import random_image
from PIL import Image
from random_networks import write_weights

from styleid import metrics
from styleid.cli.main import main
from styleid.images import load_image
from styleid.method.options import Resize
from styleid.study import Grid, sweep
from styleid.study.protocol import evaluate_results, find_pairs, table_text
from styleid.study.reproduction import SETTINGS, reproduce, reproduction_text

CONTENTS, STYLES = ("a", "b"), ("c", "d")


@pytest.fixture
def place(tmp_path):
    """Two contents, two styles of another size, and their four results by StyleID's names."""
    for number, name in enumerate(CONTENTS + STYLES):
        folder = tmp_path / ("contents" if name in CONTENTS else "styles")
        folder.mkdir(exist_ok=True)
        Image.fromarray(random_image(number, 16, 16 if name in CONTENTS else 24)).save(folder / f"{name}.png")
    (tmp_path / "results").mkdir()
    for number, (content, style) in enumerate(product(CONTENTS, STYLES)):
        Image.fromarray(random_image(10 + number)).save(tmp_path / f"results/{content}_stylized_{style}.png")
    return tmp_path


def folders(place):
    return place / "results", place / "contents", place / "styles"


def test_means_over_pairs_by_names(place):
    calls = []
    found = evaluate_results(*folders(place), progress=lambda *call: calls.append(call))
    (row,) = found.table
    assert row.pop("pairs") == 4 and row.pop("rank") == 1 and calls == [(number, 4) for number in range(1, 5)]
    values = [
        metrics.evaluate(
            load_image(place / f"results/{c}_stylized_{s}.png"),
            load_image(place / f"contents/{c}.png"),
            load_image(place / f"styles/{s}.png", 16),
        )
        for c, s in product(CONTENTS, STYLES)
    ]
    means = {name: pytest.approx(np.mean([each[name] for each in values])) for name in values[0]}
    spread = {f"{name}_std": pytest.approx(np.std([each[name] for each in values], ddof=1)) for name in values[0]}
    assert row == means | spread
    assert [{name: each[name] for name in values[0]} for each in found.pairs] == values
    assert found.pairs[1]["output"] == "a_stylized_d.png" and found.pairs[1]["style"].endswith("d.png")


@pytest.mark.long
def test_networks(place, tmp_path, monkeypatch):
    """LPIPS and FID of images of one size, here 80 and not 512; each style counts once for every result."""
    monkeypatch.setattr(metrics, "PROTOCOL_SIDE", 80)
    weights = write_weights(tmp_path)
    (row,) = evaluate_results(*folders(place), networks=True, weights=weights).table
    large = {path.name: metrics.at_protocol_size(load_image(path, 16)) for path in place.glob("*/*.png")}
    names = list(product(CONTENTS, STYLES))
    results = [large[f"{c}_stylized_{s}.png"] for c, s in names]
    distances = [metrics.lpips(x, large[f"{c}.png"], weights) for x, (c, _) in zip(results, names, strict=True)]
    assert row["lpips"] == pytest.approx(np.mean(distances))
    styles = [large[f"{s}.png"] for _, s in names]
    assert row["fid"] == pytest.approx(metrics.fid(results, styles, "art", weights))
    assert row["art_fid"] == pytest.approx((1 + row["lpips"]) * (1 + row["fid"]))
    assert row["art_fid_inf"] == pytest.approx((1 + row["lpips"]) * (1 + row["fid_inf"]))
    assert row["cfsd"] > 0


def test_sweeps_by_their_manifest(place, model, monkeypatch):
    sources = place / "contents", place / "styles"
    size = Resize(16)
    rows = sweep(*sources, place / "swept", model, grid=Grid(steps=3, gamma=[0.3, 0.75]), options=size)
    with monkeypatch.context() as context:  # nothing is measured that the manifest has
        context.setattr(metrics, "evaluate", None)
        table = evaluate_results(place / "swept", *sources).table
    assert [(row["gamma"], row["pairs"]) for row in table] == [("0.3", 4), ("0.75", 4)]
    for row in table:
        same = [each["ssim"] for each in rows if each["gamma"] == row["gamma"]]
        assert row["ssim"] == pytest.approx(np.mean(same)) and row["steps"] == 3
    assert sorted(row["rank"] for row in table) in ([1, 2], [1, 1])
    # several folders
    sweep(*sources, place / "more", model, grid=Grid(steps=3, gamma=0.9), options=size)
    both = evaluate_results([place / "swept", place / "more"], *sources)
    assert [(Path(row["folder"]).name, row["gamma"]) for row in both.table] == [
        ("swept", "0.3"), ("swept", "0.75"), ("more", "0.9"),
    ]  # fmt: skip
    assert len(both.pairs) == 12
    lines = table_text(both.table).splitlines()
    assert lines[0].split()[:2] == ["folder", "gamma"] and lines[1].split()[-1] == "1" and " +- " in lines[1]
    # a part of the images, given as files; they have moved
    (place / "contents").rename(place / "moved")
    (_, pairs), _ = find_pairs(place / "swept", [place / "moved/b.png"], place / "styles")
    assert {pair.content for pair in pairs} == {place / "moved/b.png"} and len(pairs) == 2
    (place / "swept" / rows[0]["output"]).unlink()
    with pytest.raises(
        ValueError, match=r"^results: 1 of 4 pairs are missing in .*'gamma': '0.3'.*; the first is a.png with c.png"
    ):
        find_pairs(place / "swept", place / "moved", place / "styles")


def test_command(place, capsys):
    names = [str(folder) for folder in folders(place)]
    assert main(["evaluate", *names, "--quiet", "-o", str(place / "table.csv")]) == 0
    header, values = capsys.readouterr().out.splitlines()
    assert header.split() == ["pairs", "histogram_loss", "ssim", "psnr", "gradient_correlation"]
    values = values.replace(" +- ", "+-")
    with open(place / "table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert values.split()[0] == row["pairs"] == "4"
    assert float(row["ssim"]) == pytest.approx(float(values.split()[2].split("+-")[0]), rel=1e-4)
    assert main(["evaluate", *names, "--weights", str(place)]) == 2
    assert "alexnet-owt-7be5be79.pth is missing" in capsys.readouterr().err


def test_errors(place):
    results, contents, styles = folders(place)
    Image.fromarray(random_image(0)).save(results / "a_c.png")
    with pytest.raises(ValueError, match="^results: a_c.png and a_stylized_c.png both fit a.png with c.png"):
        find_pairs(results, contents, styles)
    (results / "a_c.png").unlink()
    (results / "a_stylized_c.png").unlink()
    with pytest.raises(ValueError, match="^results: 1 of 4 pairs are missing.*a.png with c.png"):
        find_pairs(results, contents, styles)
    with pytest.raises(ValueError, match="^contents: expected at least one image"):
        find_pairs(results, place / "results/..", styles)
    with pytest.raises(ValueError, match="^results: FID needs at least 4 pairs, found 2"):
        evaluate_results(results, contents / "b.png", styles, networks=True)
    for name, where in ("x_y", contents), ("x", contents), ("z", styles), ("y_z", styles):
        Image.fromarray(random_image(0)).save(where / f"{name}.png")
    Image.fromarray(random_image(0)).save(results / "x_y_z.png")
    with pytest.raises(ValueError, match="^results: x_y_z.png fits"):
        find_pairs(results, contents, styles)


@pytest.mark.long
def test_reproduce(place, model, tmp_path, monkeypatch):
    """The paper's settings beside its values, with random networks; going on costs nothing."""
    monkeypatch.setattr(metrics, "PROTOCOL_SIDE", 80)
    weights = write_weights(tmp_path)
    arguments = place / "contents", place / "styles", place / "paper", model
    options = {"weights": weights, "pairs": 4}
    table = reproduce(*arguments, **options)
    assert [row["setting"] for row in table] == list(SETTINGS) and all(row["pairs"] == 4 for row in table)
    assert table[0]["published_art_fid"] == 28.801 and "published_art_fid" not in table[1]
    assert table[0]["art_fid"] == pytest.approx((1 + table[0]["lpips"]) * (1 + table[0]["fid"]))
    text = (place / "paper/reproduction.txt").read_text()
    assert "28.801" in text and "StyTR2 (published)" in text and "without query preservation" in text
    assert text.endswith("This run has 4 pairs, another model: its values are not comparable with them.\n")
    manifest = (place / "paper/manifest.jsonl").read_text()
    assert manifest.count("\n") == 24
    assert reproduce(*arguments, **options) == table and (place / "paper/manifest.jsonl").read_text() == manifest
    table = reproduce(*arguments, networks=False, pairs=1, steps=2)  # a trial in the same folder
    assert [row["pairs"] for row in table] == [1] * len(SETTINGS)
    with pytest.raises(ValueError, match="^steps: expected"):
        reproduce(*arguments, steps=1)
    with pytest.raises(ValueError, match="^pairs: FID needs at least 4, got 1"):
        reproduce(*arguments, pairs=1)
    with pytest.raises(ValueError, match="^pairs: expected a whole number"):
        reproduce(*arguments, pairs=0)


@pytest.mark.parametrize("pairs, channels, steps, what", [
    (800, [320, 640, 1280, 1280], 50, ""),
    (6, [320, 640, 1280, 1280], 50, "6 pairs"),
    (800, [64, 96, 128, 192], 50, "another model"),
    (800, [320, 640, 1280, 1280], 20, "20 steps"),
    (6, [64, 96, 128, 192], 20, "6 pairs, another model, 20 steps"),
])  # fmt: skip
def test_what_the_published_values_are_of(pairs, channels, steps, what):
    """A line below the table says it, and what sets this run apart from that."""
    model = SimpleNamespace(config={"unet": {"channels": channels, "context_size": 768}})
    row = {"setting": "StyleID", "pairs": pairs, "ssim": 0.5, "published_fid": 18.131}
    line = reproduction_text([row], model, steps).splitlines()[-1]
    assert line.startswith("The published values are of 800 pairs with Stable Diffusion 1.4 and 50 steps.")
    assert line.endswith(f" This run has {what}: its values are not comparable with them." if what else "50 steps.")


@pytest.mark.long
def test_reproduce_with_the_default_model(place, capsys):
    names = [str(place / "contents"), str(place / "styles"), "-o", str(place / "paper")]
    assert main(["reproduce", *names, "--pairs", "1", "--no-networks", "--quiet"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:2] == ["StyleID", "1"] and "28.801" in out[1]
    assert out[-2].endswith("This run has 1 pair, another model: its values are not comparable with them.")
    assert Image.open(place / "paper/reproduction.png").size == (8 * 160, 14 + 174)
