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
from conftest import picture
from PIL import Image

import styleid
from styleid.study import sweep as sweeping
from styleid.study.sweep import sweep

OPTIONS = {"steps": 3, "size": 16}


@pytest.fixture
def place(tmp_path):
    """Folders of two contents and two styles; the contents' names differ in the suffix only."""
    for name, seed in ("contents/a.png", 0), ("contents/a.bmp", 1), ("styles/b.png", 2), ("styles/c.png", 3):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(seed)).save(tmp_path / name)
    (tmp_path / "contents/notes.txt").touch()
    return tmp_path


@pytest.fixture
def work(monkeypatch):
    """What has been computed: "invert" and "inject"."""
    done = []
    for name in "invert", "inject_styles":

        def counting(*arguments, _real=getattr(sweeping, name), _name=name, **options):
            result = _real(*arguments, **options)
            done.append(_name)
            return result

        monkeypatch.setattr(sweeping, name, counting)
    return done


def run(place, model, **options):
    return sweep([place / "contents"], [place / "styles"], place / "out", model, **OPTIONS | options)


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
        assert text["layers"] == "6,7" and text["steps"] == 3 and text["model"] == model.fingerprint
    with open(place / "out/table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["output"] for row in table] == [row["output"] for row in rows]
    assert float(table[0]["ssim"]) == pytest.approx(rows[0]["ssim"])
    assert Image.open(place / "out/contact-01.png").size == (6 * 128, 14 + 4 * 128)


def test_every_picture_is_inverted_once(place, model, monkeypatch):
    count = []
    real = styleid.Inversion.save
    monkeypatch.setattr(styleid.Inversion, "save", lambda *arguments: (count.append(1), real(*arguments)))
    run(place, model, gamma=[0.3, 0.75])
    assert len(count) == 4


def test_what_is_finished_is_kept(place, model, work):
    first = run(place, model)
    files = {row["output"]: (place / "out" / row["output"]).stat().st_mtime_ns for row in first}
    work.clear()
    assert run(place, model) == first and not work
    assert len(run(place, model, gamma=[0.75, 0.3])) == 8 and work.count("inject_styles") == 4
    assert all((place / "out" / name).stat().st_mtime_ns == when for name, when in files.items())


def test_stopped_and_continued(place, model, work, monkeypatch):
    """Killed while the third result is made: the two before it stay."""
    real = sweeping.Manifest.add

    def killed(self, row, picture):
        if len(self._rows) == 2:
            raise KeyboardInterrupt
        return real(self, row, picture)

    monkeypatch.setattr(sweeping.Manifest, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(place, model)
    assert len((place / "out/manifest.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(sweeping.Manifest, "add", real)
    work.clear()
    assert len(run(place, model)) == 4 and work.count("inject_styles") == 2


def test_results_that_are_not_what_was_written_are_made_again(place, model, work):
    rows = run(place, model)
    (place / "out" / rows[0]["output"]).write_bytes(b"damaged")
    (place / "out" / rows[1]["output"]).unlink()
    manifest = place / "out/manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-30])  # the last line was being written
    work.clear()
    assert run(place, model) == rows and work.count("inject_styles") == 3
    work.clear()
    assert run(place, model) == rows and not work


def test_changed_pictures_are_new_ones(place, model, work):
    run(place, model)
    Image.fromarray(picture(9)).save(place / "contents/a.png")
    work.clear()
    run(place, model)
    assert work.count("inject_styles") == 2


def test_renamed_pictures_are_not(place, model, work):
    run(place, model)
    (place / "styles").rename(place / "other")
    work.clear()
    rows = sweep([place / "contents"], [place / "other"], place / "out", model, **OPTIONS)
    assert not work and all("/other/" in row["style"] for row in rows)


def test_progress(place, model):
    calls = []
    run(place, model, progress=lambda *call: calls.append(call))
    assert calls == [(number, 4) for number in range(1, 5)]


def test_errors_come_before_the_work(place, model, work):
    (place / "empty").mkdir()
    for bad, message in (
        ({"gamma": [0.5, 2]}, "gamma: expected 0 to 1"),
        ({"temperature": ["0"]}, "temperature: expected"),
        ({"initial": ["noise"]}, "initial: expected some of"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            run(place, model, **bad)
    with pytest.raises(ValueError, match="^styles: expected at least one picture"):
        sweep([place / "contents"], [place / "empty"], place / "out", model, **OPTIONS)
    assert not work


def test_a_picture_of_both_folders_is_inverted_once(place, model, monkeypatch):
    count = []
    real = styleid.Inversion.save
    monkeypatch.setattr(styleid.Inversion, "save", lambda *arguments: (count.append(1), real(*arguments)))
    paths = [place / "contents/a.png", place / "styles/b.png"]
    rows = sweep(paths, paths, place / "out", model, **OPTIONS)
    assert len(rows) == 4 and len(count) == 2


@pytest.mark.parametrize("features", ["disk", "recompute"])
def test_features_elsewhere_give_the_same_results(place, model, features, work):
    rows = run(place, model)
    again = sweep([place / "contents"], [place / "styles"], place / "other", model, features=features, **OPTIONS)
    assert again == rows
    work.clear()
    assert run(place, model, features=features) == rows and not work


def test_prompts_are_settings(place, shared_folder):
    model = styleid.load_model(shared_folder, dtype="float32", threads=1)
    empty = model.empty_context
    model.encode_prompt = lambda text: empty + np.float32(0.1 * len(text))
    plain, other = run(place, model), run(place, model, prompt="ab", negative_prompt="c", guidance=2.0, inject="kv")
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
from styleid.study import sweep as sweeping

real = sweeping.inject_styles

def slow(*arguments, **options):
    time.sleep(0.1)  # so that a kill finds it at work
    print("inject", flush=True)
    return real(*arguments, **options)

sweeping.inject_styles = slow
model = styleid.load_model({folder!r}, dtype="float32", threads=1)
sweeping.sweep([{place!r} + "/contents"], [{place!r} + "/styles"], {place!r} + "/out", model, steps=3, size=16,
               gamma=[0.1, 0.5, 0.9])
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


def lines(place):
    path = place / "out/manifest.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.long
def test_killed_at_any_moment(place, model, start, work):
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
    assert len(rows) == 12 and work.count("inject_styles") == 12 - len(listed)
    assert not list((place / "out").glob(".*.lock"))  # the next one who makes a result removes its lock
    for row in rows:
        assert Image.open(place / "out" / row["output"]).size == (16, 16)


@pytest.mark.long
def test_two_at_once_share_the_work(place, model, start, work):
    outputs = [process.communicate(timeout=120)[0] for process in (start(), start())]
    assert sum(output.count("inject") for output in outputs) == 12
    listed = [json.loads(line) for line in lines(place)]
    assert len({row["key"] for row in listed}) == len(listed) == 12
    rows = run(place, model, gamma=[0.1, 0.5, 0.9])
    assert not work and len(rows) == 12
    assert not list((place / "out").glob(".*")) and not list((place / "out/inversions").glob(".*"))
