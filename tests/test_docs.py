"""The documentation: the site is built without a warning, its Python runs, and what is public is described."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import formats
import numpy
import pytest
from conftest import random_image
from PIL import Image

import styleid
from styleid import metrics
from styleid.models import loading

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.long
def test_site(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    reference = (tmp_path / "reference/index.html").read_text()
    for name in set(styleid.__all__) - {"ModelError", "__version__"}:
        assert f'id="styleid.{name}"' in reference, f"{name} is missing in docs/reference.md"


def test_page_names():
    """Each page has one name: in the menu, as its first heading, and, but for the first page, as its file."""
    menu = re.findall(r"^ +- (.+): (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {page for _, page in menu} == {page.name for page in (ROOT / "docs").glob("*.md")}
    for name, page in menu:
        assert (ROOT / "docs" / page).read_text().startswith(f"# {name}\n"), page
        short = name.lower().removeprefix("the ").replace(" ", "-")
        assert page in ("index.md", "howto.md", f"{short}.md")


# ---- snippets ----


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A model of four levels for 16 x 16 pixels that takes prompts."""
    config = formats.configuration("1.x")
    config["unet"] |= {
        "channels": [32] * 4, "heads": [8] * 4, "attention": [True, True, False, False], "sample_size": 8
    }  # fmt: skip
    return formats.write_diffusers(tmp_path_factory.mktemp("docs") / "model", config)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_snippets(page, tiny_folder, tmp_path, monkeypatch):
    """All of a page in turn, with a tiny model in the default one's place, and images of the names that are used."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(loading, "DEFAULT_FOLDER", tiny_folder)
    loading._load_default.cache_clear()
    names = "photo", "painting", "etching"
    for seed, name in enumerate(names):
        Image.fromarray(random_image(seed, 40, 40)).save(f"{name}.jpg")
    model = styleid.load_model()
    content, first, second = (styleid.invert(f"{name}.jpg", model, steps=3) for name in names)
    known = {"styleid": styleid, "numpy": numpy, "model": model, "folder": tiny_folder}
    known |= {"content": content, "style": first, "first": first, "second": second}
    try:
        for snippet in snippets(page):
            exec(compile(snippet, page.name, "exec"), known)  # noqa: S102  they are our own
    finally:
        loading._load_default.cache_clear()


# ---- docstrings ----


def public():
    """(name, object) of all public classes, functions and methods."""
    for module in styleid, metrics:
        for name in module.__all__:
            item = getattr(module, name)
            if name.startswith("__"):
                continue
            yield f"{module.__name__}.{name}", item
            if inspect.isclass(item):
                for member, value in vars(item).items():
                    function = getattr(value, "fget", None) or getattr(value, "func", None)
                    function = function or getattr(value, "__func__", value)
                    if not member.startswith("_") and inspect.isfunction(function):
                        yield f"{module.__name__}.{name}.{member}", function


@pytest.mark.parametrize("name, item", [pytest.param(*each, id=each[0]) for each in public()])
def test_docstrings(name, item):
    """Every argument is named; arrays have a shape and a type; what takes arrays, images or files says what it raises."""
    text = inspect.getdoc(item)
    assert text, "no docstring"
    if not inspect.isfunction(item) or "are theirs" in text:  # those of the functions that the docstring names
        return
    signature = inspect.signature(item)
    unnamed = [parameter for parameter in signature.parameters if not re.search(rf"\b{parameter}\b", text)]
    assert set(unnamed) <= {"self", "cls"}
    if "NDArray" in str(signature.return_annotation) or "Float32" in str(signature.return_annotation):
        assert re.search(r"\([\w, +]*,[\w, +]*\)", text), "no shape"
        assert re.search("float32|float64|uint8", text), "no dtype"
    if re.search("ImageLike|Array|[Pp]ath", " ".join(str(each.annotation) for each in signature.parameters.values())):
        assert re.search("Error|errors", text), "no errors"
