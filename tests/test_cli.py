"""The command line: what it writes, what it says, and its exit codes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from conftest import random_image, told
from PIL import Image

import styleid
from styleid.cli import common
from styleid.cli.main import main

STEPS = ["--steps", "3"]


@pytest.fixture
def place(tmp_path, monkeypatch, shared_folder):
    """The current directory, with two images and the tiny model."""
    monkeypatch.chdir(tmp_path)
    for name, seed in ("content.png", 0), ("style.png", 1):
        Image.fromarray(random_image(seed, 40, 30)).save(name)
    (tmp_path / "model").symlink_to(shared_folder)
    return tmp_path


def run(*arguments):
    """The exit code of a command, which runs in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def transfer(*options):
    return run("transfer", "content.png", "style.png", "-o", "out.png", "--model", "model", *STEPS, *options)


def complaint(capsys):
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("styleid: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


def output(name="out.png"):
    return np.asarray(Image.open(name))


def engine(**options):
    """What the command is to have used."""
    return styleid.load_model("model", **options)


# ---- commands ----


def test_transfer(place, capsys):
    assert transfer() == 0
    out, err = capsys.readouterr()
    assert out.startswith("wrote out.png: 16 x 16 pixels in ") and err == ""
    expected = styleid.transfer("content.png", "style.png", engine(), steps=3)
    np.testing.assert_array_equal(output(), expected)
    assert sorted(os.listdir(place)) == ["content.png", "model", "out.png", "style.png"]


def test_what_the_model_recommends(place, shared_folder, capsys):
    folder = shutil.copytree(shared_folder, place / "own")
    (folder / "styleid.json").write_text('{"gamma": 0.4, "temperature": 3, "layers": [7], "seed": 4}')
    assert transfer("--model", folder, "--temperature", "2") == 0
    assert capsys.readouterr().err == "styleid: as the model recommends: gamma 0.4, layers [7], seed 4\n"
    expected = styleid.transfer(
        "content.png", "style.png", styleid.load_model(folder), steps=3, gamma=0.4, temperature=2, layers=[7],
        options=styleid.Accuracy(seed=4),
    )  # fmt: skip
    np.testing.assert_array_equal(output(), expected)
    # Inversions have their layers and their seed already.
    for name in "content", "style":
        assert run("invert", f"{name}.png", "-o", f"{name}.inv", "--model", folder, "--steps", "3") == 0
    assert run("inject", "content.inv", "style.inv", "-o", "in-parts.png", "--model", folder) == 0
    assert capsys.readouterr().err == "styleid: as the model recommends: gamma 0.4, temperature 3\n"


@pytest.mark.parametrize(
    "options, same",
    [
        (["--gamma", "0.3", "--temperature", "2"], {"gamma": 0.3, "temperature": 2}),
        (["--layers", "4-5,7"], {"layers": [4, 5, 7]}),
        (["--layers", "7"], {"layers": [7]}),
        (["--no-adain"], {"adain": False}),
        (["--no-injection"], {"inject": False}),
        (["--inject", "v"], {"inject": "v"}),
        (["--strength", "0.6"], {"strength": 0.6}),
        (["--refine", "1"], {"refine": 1}),
        (["--seed", "3"], {"seed": 3}),
        (["--seed", "mean"], {}),
        (["--schedule", "diffusers"], {"schedule": "diffusers"}),
        (["--steps", "5", "--quiet"], {"steps": 5}),
    ],
)
def test_options_of_transfer(place, options, same):
    assert transfer("--dtype", "float32", "--threads", 1, *options) == 0
    model = engine(dtype="float32", threads=1)
    expected = styleid.transfer("content.png", "style.png", model, **told(**({"steps": 3} | same)))
    np.testing.assert_array_equal(output(), expected)


def test_masks(place, capsys):
    """Images of the content's proportions are cut as it is; brightness counts."""
    grey = random_image(2, 40, 30)
    Image.fromarray(grey).save("mask.png")
    options = ["--dtype", "float32", "--threads", 1]
    assert transfer(*options, "--mask", "mask.png", "--style-mask", "mask.png") == 0
    mask = styleid.load_image("mask.png", 16).mean(axis=2) / 255
    expected = styleid.transfer(
        "content.png",
        "style.png",
        engine(dtype="float32", threads=1),
        steps=3,
        options=styleid.Mix(masks=mask, style_masks=mask),
    )
    np.testing.assert_array_equal(output(), expected)
    capsys.readouterr()
    assert transfer(*options, "--mask", "mask.png", "--mask", "mask.png") == 2
    assert "--mask: expected 1, one per style, got 2" in complaint(capsys)
    for name in "content", "style":
        assert run("invert", f"{name}.png", "-o", f"{name}.inv", "--model", "model", *STEPS, *options) == 0
    inject = ["inject", "content.inv", "style.inv", "--model", "model", *options]
    assert run(*inject, "-o", "again.png", "--mask", "mask.png", "--style-mask", "mask.png") == 0
    assert np.abs(output("again.png").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size, resize, shape", [
    ("32", "crop", (32, 32, 3)), ("16x48", "crop", (16, 48, 3)), ("48X16", "stretch", (48, 16, 3)), ("33", "fit", (33, 25, 3))
])  # fmt: skip
def test_sizes(place, capsys, size, resize, shape):
    """The images are 40 x 30."""
    assert transfer("--size", size, "--resize", resize) == 0
    assert output().shape == shape
    assert run("evaluate", "out.png", "content.png", "style.png", "--resize", resize) == 0


def test_invert_and_inject(place):
    options = ["--model", "model", *STEPS, "--layers", "5-7"]
    assert run("invert", "content.png", "-o", "content.inv", *options, "--keep", "query") == 0
    assert run("invert", "style.png", "-o", "style.inv", *options, "--keep", "keys") == 0
    assert run("inject", "content.inv", "style.inv", "-o", "out.png", "--model", "model", "--layers", "6,7") == 0
    expected = styleid.transfer("content.png", "style.png", engine(), steps=3)
    assert np.abs(output().astype(int) - expected).max() <= (1 if engine().dtype == "float32" else 30)
    assert styleid.Inversion.load("style.inv").layers == (5, 6, 7)


@pytest.mark.parametrize("name", ["out.jpg", "out.webp", "out.TIF", "out.bmp"])
def test_formats(place, name):
    assert run("transfer", "content.png", "style.png", "-o", name, "--model", "model", *STEPS) == 0
    assert output(name).shape == (16, 16, 3)


def test_several_styles_and_schedules(place):
    Image.fromarray(random_image(2, 40, 30)).save("other.png")
    assert transfer("--initial", "quantiles", "--gamma", "0.9:0.5:cosine", "--cache", "cache") == 0
    content, style, other = (styleid.load_image(f"{name}.png", 16) for name in ("content", "style", "other"))
    gamma = styleid.decreasing(0.9, 0.5, "cosine")
    expected = styleid.transfer(content, style, engine(), steps=3, gamma=gamma, options=styleid.Start("quantiles"))
    np.testing.assert_array_equal(output(), expected)
    assert len(list((place / "cache").iterdir())) == 2
    command = ["transfer", "content.png", "style.png", "other.png", "-o", "out.png", "--model", "model", *STEPS]
    assert run(*command, "--weights", "1,3") == 0
    expected = styleid.transfer(content, [style, other], engine(), steps=3, options=styleid.Mix([1, 3]))
    np.testing.assert_array_equal(output(), expected)


def test_sweep(place, capsys):
    (place / "styles").mkdir()
    for seed in 1, 2:
        Image.fromarray(random_image(seed)).save(f"styles/{seed}.png")
    command = ["sweep", "content.png", "styles", "-o", "out", "--model", "model", *STEPS, "--gamma", "0.3,0.9:0.5:sqrt"]
    for _ in range(2):
        assert run(*command) == 0
        assert capsys.readouterr().out.startswith("4 images in out, listed in table.csv ")
    assert len(list((place / "out").glob("content_*.png"))) == 4
    assert run(*command, "--gamma", "0.3,2") == 2
    assert "gamma: expected 0 to 1" in complaint(capsys)
    assert run(*command, "--temperature", "hot") == 2
    assert "hot" in complaint(capsys)


def test_evaluate(place, capsys):
    assert run("evaluate", "content.png", "content.png", "style.png") == 0
    values = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert values["ssim"] == "1" and values["psnr"] == "inf" and 0 < float(values["histogram_loss"]) < 1
    assert run("evaluate", "content.png", "content.png", "nowhere.png") == 2
    assert "nowhere.png" in complaint(capsys)


def test_info(place, capsys):
    assert run("info", "--model", "model", "--dtype", "float32") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for fact in (
        styleid.__version__, "oneDNN 3.", "bfloat16", "model: model", "float32", "16x16", "multiples of 16",
        "4, 5, 6, 7", "epsilon", "the empty one only", "one evaluation takes", "transfer with 50 steps",
    ):  # fmt: skip
        assert fact in out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"styleid {styleid.__version__}\n"


def test_help(capsys):
    for command in ("transfer", "invert", "inject", "info"):
        assert run(command, "--help") == 0
        assert f"usage: styleid {command}" in capsys.readouterr().out


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "styleid", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"styleid {styleid.__version__}\n"


def test_warnings_take_one_line(place, capsys, monkeypatch):
    def warn(*_, **__):
        warnings.warn("too long", stacklevel=1)
        return random_image()

    monkeypatch.setattr("styleid.cli.transfer.transfer", warn)
    assert transfer() == 0
    assert capsys.readouterr().err == "styleid: warning: too long\n"


# ---- errors ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice"),
        (["transfer"], "required"),
        (["transfer", "content.png", "style.png"], "required: -o"),
        (["transfer", "content.png", "-o", "a.png"], "required"),
        (["invert", "content.png", "-o", "a.inv", "--gamma", "1"], "unrecognized"),
        (["info", "--steps", "many"], "invalid int"),
    ],
)
def test_usage(place, capsys, arguments, message):
    assert run(*arguments) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--steps", "1"], "steps: "),
        (["--steps", "1001"], "steps: "),
        (["--steps", "x"], "--steps"),
        (["--schedule", "mine"], "--schedule"),
        (["--gamma", "2"], "gamma: "),
        (["--gamma", "nan"], "gamma: "),
        (["--gamma", "much"], "--gamma"),
        (["--gamma", "0.9:0.5:cubic"], "shape: expected one of"),
        (["--gamma", "0.5:0.9"], "start: expected at least end"),
        (["--weights", "1;2"], "--weights"),
        (["--weights", "1,2"], "weights: "),
        (["--initial", "noise"], "--initial"),
        (["--temperature", "0"], "temperature: "),
        (["--layers", "3"], "layers: expected different ones out of [4, 5, 6, 7]"),
        (["--layers", "6-8"], "layers: "),
        (["--layers", "7,7"], "layers: "),
        (["--layers", ""], "--layers"),
        (["--layers", "7-6"], "--layers"),
        (["--layers", "a"], "--layers"),
        (["--layers", "-7"], "--layers"),
        (["--layers", "1-99999999999"], "--layers"),
        (["--size", "0"], "size: "),
        (["--resize", "pad"], "--resize"),
        (["--size", "big"], "--size"),
        (["--size", "1x2x3"], "--size"),
        (["--size", "99999999"], "size: "),
        (["--dtype", "int8"], "--dtype"),
        (["--threads", "0"], "threads: "),
        (["--model", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_wrong_options(place, capsys, options, message):
    assert transfer(*options) == 2
    assert message in complaint(capsys)
    assert not os.path.exists("out.png")


@pytest.mark.parametrize(
    "name, message",
    [
        ("none.png", "none.png: No such file or directory"),
        ("text.png", "text.png: not an image"),
        ("cut.png", "cut.png: not usable as an image"),
    ],
)
def test_wrong_images(place, capsys, name, message):
    (place / "text.png").write_text("hello")
    (place / "cut.png").write_bytes((place / "content.png").read_bytes()[:500])
    assert run("transfer", name, "style.png", "-o", "out.png", "--model", "model") == 2
    assert message in complaint(capsys)
    assert run("invert", name, "-o", "out.inv", "--model", "model") == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize(
    "name, message",
    [
        ("out", "unknown image format ''"),
        ("out.txt", "unknown image format '.txt'"),
        ("folder.png", "is a directory"),
        ("nowhere/out.png", "nowhere does not exist"),
        ("/proc/out.png", "/proc"),
    ],
)
def test_outputs_are_checked_before_the_work(place, capsys, monkeypatch, name, message):
    (place / "folder").mkdir()
    (place / "folder.png").mkdir()
    monkeypatch.setattr(common, "load_model", None)  # not even this may happen
    assert run("transfer", "content.png", "style.png", "-o", name) == 2
    assert message in complaint(capsys)
    assert run("inject", "content.inv", "style.inv", "-o", name) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize("name, message", [("folder", "is a directory"), ("nowhere/a.inv", "does not exist")])
def test_places_of_inversions_are_checked_before_the_work(place, capsys, monkeypatch, name, message):
    (place / "folder").mkdir()
    monkeypatch.setattr(common, "load_model", None)
    assert run("invert", "content.png", "-o", name) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--gamma", "2"], "gamma: "),
        (["--temperature", "0"], "temperature: "),
        (["--steps", "1"], "steps: "),
        (["--strength", "2"], "strength: "),
        (["--inject", "x"], "inject: "),
        (["--weights", "0"], "weights: "),
        (["--size", "0"], "size: "),
        (["--refine", "-1"], "refine: "),
        (["--mask", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_needs_no_model_is_checked_before_it_is_loaded(place, capsys, monkeypatch, options, message):
    monkeypatch.setattr(common, "load_model", None)
    assert transfer(*options) == 2
    assert message in complaint(capsys)
    assert run("transfer", "content.png", "nowhere.png", "-o", "out.png") == 2
    assert "nowhere.png" in complaint(capsys)
    assert run("inject", "nowhere.inv", "style.inv", "-o", "out.png") == 2
    assert "nowhere.inv" in complaint(capsys)


def test_what_has_no_effect_is_said_once(place, capsys):
    assert transfer("--no-injection", "--gamma", "0.2") == 0
    assert capsys.readouterr().err == "styleid: warning: gamma: has no effect with inject=False\n"
    assert transfer("--negative-prompt", "grey") == 0
    assert capsys.readouterr().err == "styleid: warning: negative: has no effect while guidance is 1\n"


def test_an_input_is_not_replaced(place, capsys, monkeypatch):
    before = (place / "content.png").read_bytes()
    command = ["transfer", "content.png", "style.png", "-o", "content.png", "--model", "model", *STEPS]
    with monkeypatch.context() as patch:
        patch.setattr(common, "load_model", None)
        assert run(*command) == 2
        assert "content.png: is read as well" in complaint(capsys)
        assert run("invert", "style.png", "-o", "style.png") == 2
        assert "--overwrite" in complaint(capsys)
        (place / "link.png").symlink_to("style.png")
        assert run("transfer", "content.png", "style.png", "-o", "link.png") == 2
        assert "--overwrite" in complaint(capsys)
    assert (place / "content.png").read_bytes() == before
    assert run(*command, "--overwrite") == 0
    assert output("content.png").shape == (16, 16, 3)


def test_wrong_inversions(place, capsys):
    for arguments in (["content.png", "content.png"], ["none.inv", "none.inv"]):
        assert run("inject", *arguments, "-o", "out.png", "--model", "model") == 2
        assert arguments[0] in complaint(capsys)
    for name, steps in ("a.inv", 3), ("b.inv", 4):
        assert run("invert", "content.png", "-o", name, "--model", "model", "--steps", steps) == 0
    assert run("inject", "a.inv", "b.inv", "-o", "out.png", "--model", "model") == 2
    assert "style: its steps is 4, but content's is 3" in complaint(capsys)


def test_prompts_need_a_text_encoder(place, capsys):
    assert run("invert", "content.png", "-o", "a.inv", "--model", "model", "--prompt", "a cat") == 2
    assert "no text encoder" in complaint(capsys)


def test_memory_runs_out(place, capsys, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("styleid.cli.transfer.transfer", fail)
    assert transfer() == 2
    assert "not enough memory" in complaint(capsys)


def test_faults_of_the_program_keep_their_traceback(place, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a fault")

    monkeypatch.setattr("styleid.cli.transfer.transfer", fail)
    with pytest.raises(AssertionError, match="a fault"):
        transfer()


def test_ctrl_c(place, capsys):
    """130, one line, and nothing half-written; an older output stays as it is."""
    (place / "out.png").write_bytes(b"older")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert transfer("--steps", 1000, "--schedule", "diffusers") == 130
    assert capsys.readouterr() == ("", "styleid: interrupted\n")
    assert (place / "out.png").read_bytes() == b"older"
    assert sorted(os.listdir(place)) == ["content.png", "model", "out.png", "style.png"]


def test_a_bar_where_someone_looks(place, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert transfer() == 0
    assert "8/8" in capsys.readouterr().err
    assert transfer("--quiet") == 0
    assert capsys.readouterr().err == ""
