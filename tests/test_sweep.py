"""Sweeps: what they write, that nothing is made twice, and that they go on after any end."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import random_image
from PIL import Image

import styleid
from styleid.study import Grid, SweepIncomplete, merge, sweep, work
from styleid.study.inputs import plain_stem, suffixes
from styleid.study.manifest import Manifest


@pytest.fixture
def place(tmp_path):
    """Folders of two contents and two styles; the contents' names differ in the suffix only."""
    for name, seed in ("contents/a.png", 0), ("contents/a.bmp", 1), ("styles/b.png", 2), ("styles/c.png", 3):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random_image(seed)).save(tmp_path / name)
    (tmp_path / "contents/notes.txt").touch()
    return tmp_path


@pytest.fixture
def done(monkeypatch):
    """What has been computed: "invert" and "inject_styles"."""
    calls = []

    def counting(name, real):
        def call(*arguments, **options):
            result = real(*arguments, **options)
            calls.append(name)
            return result

        monkeypatch.setattr(work, name, call)

    counting("invert", work.invert)
    counting("inject_styles", work.inject_styles)
    return calls


def run(place, model, options=(), name="out", **axes):
    """A sweep of few steps over the axes."""
    grid = Grid(**{"steps": 3} | axes)
    return sweep(
        [place / "contents"], [place / "styles"], place / name, model, grid=grid, options=[styleid.Resize(16), *options]
    )


def test_all_combinations(place, model):
    rows = run(place, model, gamma=[0.3, "0.9:0.5:cosine"], temperature=[1, 1.5])
    assert len(rows) == 2 * 2 * 2 * 2 and len({row["output"] for row in rows}) == len(rows)
    inversions = {
        path: styleid.invert(path, model, steps=3)
        for folder in ("contents", "styles")
        for path in place.glob(f"{folder}/*.???")
        if path.suffix != ".txt"
    }
    for row in rows:
        saved = Image.open(place / "out" / row["output"])
        gamma = 0.3 if row["gamma"] == "0.3" else styleid.decreasing(0.9, 0.5, "cosine")
        expected = styleid.inject_styles(
            *(inversions[place / row[which].removeprefix(f"{place}/")] for which in ("content", "style")),
            gamma=gamma,
            temperature=float(row["temperature"]),
        )
        np.testing.assert_array_equal(np.asarray(saved), expected)
        text = json.loads(saved.text["styleid"])
        assert text == {key: value for key, value in row.items() if key != "sha256"}
        assert text["layers"] == "6-7" and text["steps"] == 3 and text["model"] == model.fingerprint
    with open(place / "out/table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["output"] for row in table] == [row["output"] for row in rows]
    assert float(table[0]["ssim"]) == pytest.approx(rows[0]["ssim"])
    sheets = sorted(path.name for path in place.glob("out/sheet*.png"))
    assert sheets[0] == "sheet_gamma0.3_temperature1.5_steps3.png" and len(sheets) == 4
    assert Image.open(place / "out" / sheets[0]).size == (3 * 128, 14 + 3 * (128 + 14))
    assert all("_gamma0.3_" in row["output"] or "_gamma0.9-0.5-cosine_" in row["output"] for row in rows)


def test_every_image_is_inverted_once(place, model, monkeypatch):
    count = []
    real = styleid.Inversion.save
    monkeypatch.setattr(styleid.Inversion, "save", lambda *arguments: (count.append(1), real(*arguments)))
    run(place, model, gamma=[0.3, 0.75])
    assert len(count) == 4


def test_what_is_finished_is_kept(place, model, done):
    first = run(place, model)
    files = {row["output"]: (place / "out" / row["output"]).stat().st_mtime_ns for row in first}
    done.clear()
    assert run(place, model) == first and not done
    assert len(run(place, model, gamma=[0.75, 0.3])) == 8 and done.count("inject_styles") == 4
    assert all((place / "out" / name).stat().st_mtime_ns == when for name, when in files.items())


def test_stopped_and_continued(place, model, done, monkeypatch):
    """Killed while the third result is made: the two before it stay."""
    real = Manifest.add

    def killed(self, row, data):
        if len(self._rows) == 2:
            raise KeyboardInterrupt
        return real(self, row, data)

    monkeypatch.setattr(Manifest, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(place, model)
    assert len((place / "out/manifest.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(Manifest, "add", real)
    done.clear()
    assert len(run(place, model)) == 4 and done.count("inject_styles") == 2


def test_results_that_are_not_what_was_written_are_made_again(place, model, done):
    rows = run(place, model)
    (place / "out" / rows[0]["output"]).write_bytes(b"damaged")
    (place / "out" / rows[1]["output"]).unlink()
    manifest = place / "out/manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-30])  # the last line was being written
    done.clear()
    assert run(place, model) == rows and done.count("inject_styles") == 3
    done.clear()
    assert run(place, model) == rows and not done


def test_changed_images_are_new_ones(place, model, done):
    run(place, model)
    Image.fromarray(random_image(9)).save(place / "contents/a.png")
    done.clear()
    run(place, model)
    assert done.count("inject_styles") == 2


def test_renamed_images_are_not(place, model, done):
    run(place, model)
    (place / "styles").rename(place / "other")
    done.clear()
    rows = sweep(
        [place / "contents"], [place / "other"], place / "out", model, grid=Grid(steps=3), options=styleid.Resize(16)
    )
    assert not done and all("/other/" in row["style"] for row in rows)


def test_progress(place, model):
    calls = []
    arguments = [place / "contents"], [place / "styles"], place / "out", model
    options = {"options": styleid.Resize(16), "progress": lambda *call: calls.append(call)}
    sweep(*arguments, grid=Grid(steps=3), **options)
    assert calls == [(number, 4) for number in range(1, 5)]
    calls.clear()
    sweep(*arguments, grid=Grid(steps=3, gamma=[0.75, 0.3]), **options)
    assert calls == [(number, 8) for number in range(4, 9)]  # what was there already counts at once


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({"gamma": [0.5, 2]}, ValueError, "gamma: expected 0 to 1, got 2"),
        ({"gamma": [styleid.decreasing(0.9, 0.5)]}, TypeError, "gamma: expected numbers or text.*got a function"),
        ({"gamma": abs}, TypeError, "gamma: expected numbers or text.*got a function"),
        ({"gamma": "high"}, ValueError, "gamma: expected a number or FROM:TO:SHAPE, got 'high'"),
        ({"gamma": True}, TypeError, "gamma: expected a number"),
        ({"gamma": []}, ValueError, "gamma: expected at least one value"),
        ({"temperature": ["0"]}, ValueError, "temperature: expected numbers above 0"),
        ({"initial": ["noise"]}, ValueError, "initial: expected some of"),
        ({"initial": "style", "adain": False}, ValueError, "adain: give either"),
        ({"layers": [[5, 5]]}, ValueError, "layers: expected different"),
        ({"layers": ["upper"]}, ValueError, "layers: expected numbers such as"),
        ({"layers": [[1]]}, ValueError, "layers: expected different ones out of"),
        ({"inject": "qx"}, ValueError, "inject: expected True, False"),
        ({"inject": 1}, TypeError, "inject: expected True, False"),
        ({"adain": "no"}, ValueError, "adain: expected some of"),
        ({"strength": [0.5, 0]}, ValueError, "strength: expected"),
        ({"steps": 1}, ValueError, "steps: expected 2 to 1000"),
        ({"steps": "20"}, TypeError, "steps: expected a whole number"),
        ({"schedule": "plms"}, ValueError, "schedule: expected some of"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"seed": "median"}, ValueError, "seed: expected"),
    ],
)
def test_errors_name_the_axis(place, model, done, axes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        run(place, model, **axes)
    assert not done


def test_errors_name_the_argument(place, model, done):
    (place / "empty").mkdir()
    folders, out = (place / "contents", place / "styles"), place / "out"
    with pytest.raises(ValueError, match="^styles: expected at least one image"):
        sweep(folders[0], place / "empty", out, model)
    with pytest.raises(FileNotFoundError, match="^contents: face.jpg: no such file"):
        sweep("face.jpg", folders[1], out, model)
    with pytest.raises(TypeError, match="^contents: expected paths"):
        sweep(3, folders[1], out, model)
    with pytest.raises(TypeError, match="^styles: expected paths"):
        sweep(folders[0], [None], out, model)
    with pytest.raises(TypeError, match="^grid: expected"):
        sweep(*folders, out, model, grid={"gamma": 0.3})
    with pytest.raises(TypeError, match="^options: sweep takes"):
        sweep(*folders, out, model, options=styleid.Hooks())
    (place / "empty/bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="^styles: none of the 1 images can be read; .*bad.png"):
        sweep(folders[0], place / "empty", out, model)
    assert not done


def test_every_axis(place, model):
    """Each axis makes results of its own, named in files and columns; inversions are shared where they may be."""
    sampling = {"layers": ["6-7", [7]], "inject": [True, "kv", False], "adain": [True, False], "strength": [1, 0.5]}
    inversion = {"schedule": ["paper", "corrected"], "seed": ["mean", 3], "steps": [3, 4]}
    (place / "contents/a.bmp").unlink()
    (place / "styles/c.png").unlink()
    grids = [Grid(gamma=0.5, steps=3, **sampling), Grid(gamma=0.5, layers=[[7]], inject="kv", adain=False, **inversion)]
    rows = sweep(place / "contents", place / "styles", place / "out", model, grid=grids, options=styleid.Resize(16))
    assert len(rows) == len({row["output"] for row in rows}) == len({row["key"] for row in rows}) == 24 + 8 - 1
    assert len(list((place / "out/inversions").glob("*.safetensors"))) == 2 * 2**3
    (row,) = [row for row in rows if (row["schedule"], row["seed"], row["steps"]) == ("corrected", 3, 4)]
    assert row["output"].startswith(
        "a_b_gamma0.5_initialcontent_layers7_injectkv_strength1_steps4_schedulecorrected_seed3_"
    )
    inversions = [
        styleid.invert(
            row[which], model, steps=4, schedule="corrected", options=[styleid.Accuracy(seed=3), styleid.Resize(16)]
        )
        for which in ("content", "style")
    ]
    expected = styleid.inject_styles(*inversions, layers=[7], inject="kv", adain=False)
    np.testing.assert_array_equal(np.asarray(Image.open(place / "out" / row["output"])), expected)


def test_what_the_model_recommends(place, model, monkeypatch):
    monkeypatch.setattr(model, "recommended", {"gamma": 0.25, "layers": [7]})
    row = run(place, model)[0]
    assert (row["gamma"], row["temperature"], row["layers"], row["seed"]) == ("0.25", "1.5", "7", None)


def test_a_sample_that_the_model_recommends(place, model, monkeypatch):
    """It is the usual seed, so that no name says it; "mean" is another setting."""
    monkeypatch.setattr(model, "recommended", {"seed": 5})
    rows = run(place, model, seed=[None, 5, "mean"])
    assert {(row["seed"], "seedmean" in row["output"]) for row in rows} == {(5, False), (None, True)}
    usual = next(row for row in rows if row["seed"] == 5)
    expected = styleid.transfer(
        usual["content"], usual["style"], model, steps=usual["steps"],
        options=[styleid.Accuracy(seed=5), styleid.Resize(16)],
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(place / "out" / usual["output"])), expected)


NAMES = [
    b"\xff\xfe.png", "\u65e5\u672c\u8a9e.png".encode(), b"new\nline.png", b"quote\"'`$;.png", b"." + b"x" * 40 + b".png",
    b"%s {0}.png", ("\u00e9" * 100 + ".png").encode(), b"l" * 251 + b".png", b"A.png", b"UPPER.PNG", b"-o.png", b"a b.png",
]  # fmt: skip


def test_names_of_any_bytes(place, model):
    folder = os.fsencode(place / "odd")
    os.mkdir(folder)
    for number, name in enumerate(NAMES):
        with open(folder + b"/" + name, "wb") as file:
            Image.fromarray(random_image(100 + number)).save(file, format="PNG")
    rows = sweep(
        [place / "odd", os.fsdecode(folder + b"/" + NAMES[4])], os.fsencode(place / "styles/b.png"), place / "out", model,
        grid=Grid(steps=3), options=styleid.Resize(16),
    )  # fmt: skip
    assert {os.path.basename(os.fsencode(row["content"])) for row in rows} == set(NAMES)
    for row in rows:
        assert Image.open(place / "out" / row["output"]).size == (16, 16)
        assert not row["output"].startswith((".", "-")) and row["output"].isprintable()
    with open(place / "out/table.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(NAMES)
    assert (place / "out/sheet.png").exists() or list(place.glob("out/sheet*.png"))


def test_names_that_differ_in_case_only(place, model):
    Image.fromarray(random_image(50)).save(place / "contents/A.png")
    outputs = [row["output"].lower() for row in run(place, model)]
    assert len(set(outputs)) == len(outputs) == 6


def test_what_is_in_folders(place, model, done, monkeypatch):
    """Hidden files, folders with an image's name and files that are no images do not end a sweep; each is decoded once."""
    (place / "contents/._a.png").write_bytes(b"AppleDouble")
    (place / "contents/folder.jpg").mkdir()
    (place / "contents/broken.png").write_bytes(b"\x89PNG broken")
    for suffix in ".webp", ".TIF", ".ppm", ".tga":
        with open(place / f"contents/more{suffix}", "wb") as file:
            kind = {".webp": "WEBP", ".TIF": "TIFF", ".ppm": "PPM", ".tga": "TGA"}[suffix]
            Image.fromarray(random_image(ord(suffix[2]))).save(file, format=kind)
    decoded = []
    from styleid.study import inputs

    real = inputs.load_image
    monkeypatch.setattr(inputs, "load_image", lambda path, *rest: (decoded.append(path), real(path, *rest))[1])
    with pytest.warns(UserWarning, match=r"^left out: .*broken.png: ") as seen:
        rows = run(place, model, gamma=[0.3, 0.9])
    assert len(seen) == 1 and len(rows) == 6 * 2 * 2 and len(decoded) == len(set(decoded)) == 9
    assert {".avif", ".jp2", ".tiff", ".jpeg", ".gif"} <= suffixes()


def test_what_cannot_be_made_is_named(place, model, monkeypatch):
    """The rest goes on."""
    real = work.inject_styles

    def failing(*arguments, gamma, **options):
        if gamma == 0.3:
            raise MemoryError("too little")
        return real(*arguments, gamma=gamma, **options)

    monkeypatch.setattr(work, "inject_styles", failing)
    with pytest.raises(SweepIncomplete, match=r"(?s)^4 of 8 results could not be made\na_b_gamma0.3.*: too little\n"):
        run(place, model, gamma=[0.3, 0.5])
    assert len(lines(place)) == 4
    monkeypatch.setattr(work, "inject_styles", real)
    assert len(run(place, model, gamma=[0.3, 0.5])) == 8


def test_the_table_has_the_whole_manifest(place, model):
    first, second = run(place, model, gamma=0.3), run(place, model, gamma=0.9, strength=0.5)
    with open(place / "out/table.csv", newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == [row["key"] for row in second + first]


def test_sheets(place, model):
    arguments = [place / "contents"], [place / "styles"], place / "out", model
    sweep(*arguments, grid=Grid(steps=3), options=styleid.Resize(16), thumbnail=0)
    assert not list(place.glob("out/sheet*"))
    rows = sweep(*arguments, grid=Grid(steps=3), options=styleid.Resize(16), thumbnail=64)
    (sheet,) = place.glob("out/sheet*")
    image = np.asarray(Image.open(sheet))
    assert image.shape == (14 + 3 * 78, 3 * 64, 3)
    made = np.asarray(Image.open(place / "out" / rows[3]["output"]))  # the second content with the second style
    np.testing.assert_array_equal(image[14 + 2 * 78 + 14 :, 2 * 64 :][:16, :16], made)


def test_merge(place, model, done):
    one = run(place, model, gamma=0.3, name="one")
    two = run(place, model, gamma=[0.3, 0.9], name="two")
    (place / "two" / two[0]["output"]).write_bytes(b"damaged")
    done.clear()
    rows = merge([place / "one", place / "two"], place / "all")
    assert sorted(row["key"] for row in rows) == sorted({row["key"] for row in one + two})
    assert merge([place / "two", place / "one"], place / "all") == rows
    assert run(place, model, gamma=[0.3, 0.9], name="all") == two and not done
    assert len(lines(place, "all")) == 8
    with pytest.raises(ValueError, match="^folders: .*styles has no manifest"):
        merge([place / "styles"], place / "all")
    row = json.loads(lines(place, "one")[0]) | {"key": "0", "output": "../one/x.png"}
    Manifest(place / "one").add(row, b"x")
    with pytest.raises(ValueError, match=r"names '../one/x.png', which is not in it"):
        merge(place / "one", place / "all")


def test_stems():
    assert plain_stem(Path("a" * 300 + ".png")) == "a" * 40
    assert plain_stem(Path("\u00e9" * 30 + ".x.png")) == "\u00e9" * 20
    assert plain_stem(Path("..:?*.png")) == "image"


def test_a_image_of_both_folders_is_inverted_once(place, model, monkeypatch):
    count = []
    real = styleid.Inversion.save
    monkeypatch.setattr(styleid.Inversion, "save", lambda *arguments: (count.append(1), real(*arguments)))
    paths = [place / "contents/a.png", place / "styles/b.png"]
    rows = sweep(paths, paths, place / "out", model, grid=Grid(steps=3), options=styleid.Resize(16))
    assert len(rows) == 4 and len(count) == 2


@pytest.mark.parametrize("features", ["disk", "recompute"])
def test_features_elsewhere_give_the_same_results(place, model, features, done):
    rows = run(place, model)
    storage = styleid.Storage(features)
    assert run(place, model, [storage], "other") == rows
    done.clear()
    assert run(place, model, [storage]) == rows and not done


def test_prompts_are_settings(place, shared_folder):
    model = styleid.load_model(shared_folder, dtype="float32", threads=1)
    empty = model.empty_context
    model.encode_prompt = lambda text: empty + np.float32(0.1 * len(text))
    text = styleid.Text("ab", "c", 2.0)
    plain, other = run(place, model), run(place, model, [text], inject="kv")
    assert len({row["output"] for row in plain + other}) == 8
    assert all((row["prompt"], row["guidance"], row["inject"]) == ("ab", 2.0, "kv") for row in other)
    inversions = [
        styleid.invert(other[0][which], model, steps=3, options=styleid.Text("ab")) for which in ("content", "style")
    ]
    expected = styleid.inject_styles(*inversions, inject="kv", options=styleid.Text(negative="c", guidance=2.0))
    np.testing.assert_array_equal(np.asarray(Image.open(place / "out" / other[0]["output"])), expected)


def test_parquet(place, model):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = run(place, model, gamma=[0.3, 0.75])
    assert parquet.read_table(place / "out/table.parquet").to_pylist() == rows


def test_without_pyarrow(place, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run(place, model)
    assert (place / "out/table.csv").exists() and not (place / "out/table.parquet").exists()


# ---- processes ----

PROCESS = """
import sys, time
sys.path.insert(0, {tests!r})
import styleid
from styleid.study import Grid, sweep, work

real = work.inject_styles

def slow(*arguments, **options):
    time.sleep(0.1)  # so that a kill finds it at work
    print("inject", flush=True)
    return real(*arguments, **options)

work.inject_styles = slow
model = styleid.load_model({folder!r}, dtype="float32", threads=1)
sweep([{place!r} + "/contents"], [{place!r} + "/styles"], {place!r} + "/out", model, options=styleid.Resize(16),
      grid=Grid(steps=3, gamma=[0.1, 0.5, 0.9]))
"""


@pytest.fixture
def start(place, shared_folder):
    program = PROCESS.format(tests=str(Path(__file__).parent), folder=str(shared_folder), place=str(place))
    root = Path(styleid.__file__).parents[1]
    started = []

    def begin():
        process = subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def lines(place, name="out"):
    path = place / name / "manifest.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.long
def test_killed_at_any_moment(place, model, start, done):
    """SIGKILL: each time, what the manifest lists is there and whole, and no result is ever made again."""
    made = 0
    for delay in (0.0, 0.05, 0.15):
        process, before = start(), len(lines(place))
        while len(lines(place)) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        made += process.communicate(timeout=60)[0].count("inject")
        listed = [json.loads(line) for line in lines(place)]
        assert len(listed) > before and all((place / "out" / row["output"]).exists() for row in listed)
        assert made - len(listed) <= 3  # one for each kill
    rows = run(place, model, gamma=[0.1, 0.5, 0.9])
    assert len(rows) == 12 and done.count("inject_styles") == 12 - len(listed)
    assert not list((place / "out").glob(".*.lock"))  # the next sweep removes what killed ones left
    for row in rows:
        assert Image.open(place / "out" / row["output"]).size == (16, 16)


@pytest.mark.long
def test_two_at_once_share_the_work(place, model, start, done):
    outputs = [process.communicate(timeout=120)[0] for process in (start(), start())]
    assert sum(output.count("inject") for output in outputs) == 12
    listed = [json.loads(line) for line in lines(place)]
    assert len({row["key"] for row in listed}) == len(listed) == 12
    rows = run(place, model, gamma=[0.1, 0.5, 0.9])
    assert not done and len(rows) == 12
    assert not list((place / "out").glob(".*")) and not list((place / "out/inversions").glob(".*"))
