"""The paper's protocol: which pictures are compared, and that the table holds what the measures say."""

import csv
from itertools import product

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from random_networks import write_weights

from styleid import metrics
from styleid.cli.main import main
from styleid.images import load_image
from styleid.study.protocol import evaluate_results, find_pairs
from styleid.study.sweep import sweep

CONTENTS, STYLES = ("a", "b"), ("c", "d")


@pytest.fixture
def place(tmp_path):
    """Two contents, two styles of another size, and their four results by StyleID's names."""
    for number, name in enumerate(CONTENTS + STYLES):
        folder = tmp_path / ("contents" if name in CONTENTS else "styles")
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture(number, 16, 16 if name in CONTENTS else 24)).save(folder / f"{name}.png")
    (tmp_path / "results").mkdir()
    for number, (content, style) in enumerate(product(CONTENTS, STYLES)):
        Image.fromarray(picture(10 + number)).save(tmp_path / f"results/{content}_stylized_{style}.png")
    return tmp_path


def folders(place):
    return place / "results", place / "contents", place / "styles"


def test_means_over_pairs_by_names(place):
    calls = []
    (row,) = evaluate_results(*folders(place), progress=lambda *call: calls.append(call))
    assert row.pop("pairs") == 4 and calls == [(number, 4) for number in range(1, 5)]
    values = [
        metrics.evaluate(
            load_image(place / f"results/{c}_stylized_{s}.png"),
            load_image(place / f"contents/{c}.png"),
            load_image(place / f"styles/{s}.png", 16),
        )
        for c, s in product(CONTENTS, STYLES)
    ]
    assert row == {name: pytest.approx(np.mean([each[name] for each in values])) for name in values[0]}


@pytest.mark.long
def test_networks(place, tmp_path, monkeypatch):
    """LPIPS and FID of pictures of one size, here 80 and not 512; each style counts once for every result."""
    monkeypatch.setattr(metrics, "PROTOCOL_SIDE", 80)
    weights = write_weights(tmp_path)
    (row,) = evaluate_results(*folders(place), networks=True, weights=weights)
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


def test_sweeps_by_their_manifest(place, model):
    sources = place / "contents", place / "styles"
    rows = sweep(*([source] for source in sources), place / "swept", model, steps=3, size=16, gamma=[0.3, 0.75])
    table = evaluate_results(place / "swept", *sources)
    assert [(row["gamma"], row["pairs"]) for row in table] == [("0.3", 4), ("0.75", 4)]
    for row in table:
        same = [each["ssim"] for each in rows if each["gamma"] == row["gamma"]]
        assert row["ssim"] == pytest.approx(np.mean(same)) and row["steps"] == 3
    # a part of the pictures, given as files; they have moved
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
    with open(place / "table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert values.split()[0] == row["pairs"] == "4"
    assert float(row["ssim"]) == pytest.approx(float(values.split()[2]), rel=1e-4)
    assert main(["evaluate", *names, "--weights", str(place)]) == 2
    assert "alexnet-owt-7be5be79.pth is missing" in capsys.readouterr().err


def test_errors(place):
    results, contents, styles = folders(place)
    Image.fromarray(picture(0)).save(results / "a_c.png")
    with pytest.raises(ValueError, match="^results: a_c.png and a_stylized_c.png both fit a.png with c.png"):
        find_pairs(results, contents, styles)
    (results / "a_c.png").unlink()
    (results / "a_stylized_c.png").unlink()
    with pytest.raises(ValueError, match="^results: 1 of 4 pairs are missing.*a.png with c.png"):
        find_pairs(results, contents, styles)
    with pytest.raises(ValueError, match="^contents: expected at least one picture"):
        find_pairs(results, place / "results/..", styles)
    with pytest.raises(ValueError, match="^results: FID needs at least 4 pairs, found 2"):
        evaluate_results(results, contents / "b.png", styles, networks=True)
    for name, where in ("x_y", contents), ("x", contents), ("z", styles), ("y_z", styles):
        Image.fromarray(picture(0)).save(where / f"{name}.png")
    Image.fromarray(picture(0)).save(results / "x_y_z.png")
    with pytest.raises(ValueError, match="^results: x_y_z.png fits"):
        find_pairs(results, contents, styles)
