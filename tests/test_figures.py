"""styleid figure: what it draws is what `styleid.viz` draws from the same images."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_cli import complaint, engine, place, run  # noqa: F401  place is a fixture

import styleid
from styleid.cli import common
from styleid.cli.figures import FIGURES

pytest.importorskip("matplotlib")
from styleid import viz

DPI = 40
COMMON = ["-o", "out.png", "--model", "model", "--steps", "3", "--dpi", DPI, "--dtype", "float32", "--threads", 1]
CASES = {
    "queries": ([], lambda content, _: viz.plot_queries(content, [0, 1, 2], content.layers)),
    "queries of a point": (
        ["--timesteps", "990,600,600", "--point", "0.5,0.25", "--layers", "5,7"],
        lambda content, _: viz.plot_queries(content, [2], [5, 7], (0.5, 0.25)),
    ),
    "logits": ([], lambda *both: viz.plot_logits(*both)),
    "logits as they are told": (
        ["--gamma", "0.3", "--temperature", "2"], lambda *both: viz.plot_logits(*both, gamma=0.3, temperature=2)
    ),
    "ablation": ([], lambda *both: viz.plot_ablation(*both)),
    "inversion": (["--columns", "3"], lambda content, _: viz.plot_inversion(content, 3)),
    "grid": ([], lambda *both: viz.plot_grid(*both, [0.3, 0.75, 1], [1, 1.5, 2])),
    "grid as it is told": (["--gamma", "0.5", "--temperature", "1,3"], lambda *both: viz.plot_grid(*both, [0.5], [1, 3])),
    "attention": ([], lambda *both: viz.plot_attention(*both, 1, 7, (0.5, 0.5))),
    "attention as it is told": (
        ["--timestep", "999", "--layers", "4-5", "--point", "0,1", "--temperature", "3"],
        lambda *both: viz.plot_attention(*both, 2, 5, (0, 1), 3),
    ),
}  # fmt: skip


def figure(name, *options):
    images = ["content.png", "style.png"][: len(FIGURES[name].keep)]
    return run("figure", name, *images, *COMMON, *options)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_figures(place, capsys, case):  # noqa: F811
    options, draw = CASES[case]
    assert figure(case.split()[0], *options) == 0
    assert capsys.readouterr() == ("wrote out.png\n", "")
    model = engine(dtype="float32", threads=1)
    layers = {"queries of a point": (5, 7), "attention as it is told": (4, 5)}.get(case)
    drawn = draw(*(styleid.invert(f"{name}.png", model, steps=3, layers=layers) for name in ("content", "style")))
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=DPI)
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")), np.asarray(Image.open(file)))


@pytest.mark.parametrize("name, start", [("out", b"\x89PNG"), ("out.PDF", b"%PDF"), ("out.svg", b"<?xml")])
def test_formats(place, name, start):  # noqa: F811
    assert run("figure", "inversion", "content.png", *COMMON, "-o", name, "--columns", 2, "--quiet") == 0
    assert (place / name).read_bytes().startswith(start)
    assert sorted(os.listdir(place)) == ["content.png", "model", name, "style.png"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["logits", "content.png"], "required: STYLE"),
        (["queries", "content.png", "style.png"], "unrecognized arguments: style.png"),
        (["painting", "content.png"], "invalid choice: 'painting'"),
        (["ablation", "content.png", "nowhere.png"], "nowhere.png: No such file"),
        (["inversion", "content.png", "-o", "out.txt"], "out.txt: unknown figure format '.txt'"),
        (["inversion", "content.png", "-o", "nowhere/out.png"], "does not exist"),
        (["inversion", "content.png", "-o", "content.png"], "content.png: is read as well"),
        (["inversion", "content.png", "--columns", "1"], "columns: expected 2 to 100"),
        (["inversion", "content.png", "--dpi", "0"], "dpi: expected 10 to 2400"),
        (["inversion", "content.png", "--steps", "1"], "steps: "),
        (["queries", "content.png", "--point", "1,2"], "--point: expected two numbers from 0 to 1"),
        (["queries", "content.png", "--point", "0.5"], "--point: expected two numbers from 0 to 1"),
        (["queries", "content.png", "--timesteps", "1,1000"], "timestep: expected 0 to 999"),
        (["queries", "content.png", "--timesteps", "late"], "--timesteps"),
        (["logits", "content.png", "style.png", "--temperature", "0"], "temperature: "),
        (["grid", "content.png", "style.png", "--gamma", "0.5,2"], "gamma: expected 0 to 1"),
        (["ablation", "content.png", "style.png", "--gamma", "0.5"], "unrecognized arguments: --gamma"),
    ],
)
def test_wrong_arguments(place, capsys, monkeypatch, words, message):  # noqa: F811
    """They are told before a model is loaded."""
    monkeypatch.setattr(common, "load_model", None)
    (place / "out.png").write_bytes(b"older")
    output = () if "-o" in words else ("-o", "out.png")
    assert run("figure", *words, *output) == 2
    assert message in complaint(capsys)
    assert (place / "out.png").read_bytes() == b"older"


def test_a_figure_that_fails_leaves_no_file(place, capsys):  # noqa: F811
    assert figure("queries", "--layers", "3") == 2
    assert "layers: expected different ones out of [4, 5, 6, 7]" in complaint(capsys)
    assert sorted(os.listdir(place)) == ["content.png", "model", "style.png"]


@pytest.mark.long
def test_bars(place, capsys, monkeypatch):  # noqa: F811
    """Of each inversion and each sampling where someone looks, and none with --quiet."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert figure("grid", "--gamma", "0.5", "--temperature", "1,2") == 0
    err = capsys.readouterr().err
    assert err.count("inversion: 100%") == 2 and err.count("sampling: 100%") == 2
    for name in FIGURES:
        assert figure(name, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_without_matplotlib(place):  # noqa: F811
    program = """
import sys
sys.modules["matplotlib"] = None
from styleid.cli.main import main
sys.exit(main(["figure", "inversion", "content.png", "-o", "out.png"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = "styleid: error: styleid.viz draws with Matplotlib: pip install 'styleid[viz]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
