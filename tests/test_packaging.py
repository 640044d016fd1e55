"""The layers of the C code, and that the package builds, installs and finds its library where users install it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from styleid import _onednn

ROOT = Path(__file__).parents[1]
C_FILES = sorted((ROOT / "csrc").rglob("*.[ch]")) + sorted((ROOT / "csrc").rglob("*.cu"))
# python -> style -> model -> core <- {cpu, cuda}. The module also describes the CPU: it may read cpu/cpu.h.
MAY_INCLUDE = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "model": {"core", "model"},
    "style": {"core", "model", "style"},
    "python": {"core", "model", "style", "python", "cpu/cpu.h"},
}


def included(path):
    return re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', path.read_text(), re.MULTILINE)


def layer(path):
    return path.relative_to(ROOT / "csrc").parts[0]


# --------------------------------------------------------------------------------------------------------- the layers


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layering(path):
    allowed = MAY_INCLUDE[layer(path)]
    for name in included(path):
        if name.split("/")[0] in MAY_INCLUDE:
            assert name in allowed or name.split("/")[0] in allowed, f"{layer(path)} includes {name}"
        assert name != "Python.h" or layer(path) == "python"
        assert not name.startswith("numpy/") or path.name == "ndarray.c"
        assert "dnnl" not in name or layer(path) == "cpu"
        assert not name.startswith("cu") or layer(path) == "cuda"


def test_only_the_cpu_layer_calls_onednn():
    for path in C_FILES:
        if layer(path) != "cpu":
            assert not re.search(r"\bdnnl_\w+\s*\(", path.read_text()), path


def test_only_ops_calls_the_backend():
    for path in C_FILES:
        if layer(path) in ("model", "style", "python"):
            assert not re.search(
                r"backend->(conv|linear|group_norm|layer_norm|attention|combine)\b", path.read_text()
            ), path


@pytest.mark.parametrize("path", [path for path in C_FILES if path.suffix == ".h"], ids=lambda path: path.name)
def test_headers_are_guarded(path):
    relative = path.relative_to(ROOT / "csrc")
    guard = "SID_" + "_".join(relative.with_suffix("").parts).upper() + "_H"
    assert f"#ifndef {guard}\n#define {guard}\n" in path.read_text()


# ------------------------------------------------------------------------------------------------- finding the library


def python(*arguments, executable=sys.executable, **environment):
    return subprocess.run(
        [executable, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        cwd="/",
    )


def test_a_missing_library_is_one_clear_error(monkeypatch):
    def nothing(distribution):
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(_onednn, "files", nothing)
    with pytest.raises(ImportError, match="libdnnl.so.3 not found. .*pip install 'onednn-cpu-gomp"):
        _onednn.preload()


@pytest.mark.parametrize(
    "error, advice",
    [
        ("libgomp.so.1: cannot open shared object file", "apt install libgomp1"),
        ("libdnnl.so.3: cannot open shared object file", "pip install 'onednn-cpu-gomp"),
        ("_core.so: undefined symbol: dnnl_memory_desc_create_with_blob", "pip install 'onednn-cpu-gomp"),
        ("cannot import name '_core' from 'styleid'", "pip install ."),
        ("STYLEID_ISA: unknown level", "STYLEID_ISA: unknown level"),
    ],
)
def test_errors_say_what_to_do(error, advice):
    assert advice in str(_onednn.explain(ImportError(error)))


def test_too_old_a_library_is_refused(monkeypatch):
    from styleid import _core

    monkeypatch.setattr(_core, "info", lambda: {"onednn": "3.1.1"})
    with pytest.raises(ImportError, match="needs oneDNN 3.2 or later.* found 3.1.1"):
        _onednn.load()


# ------------------------------------------------------------------------------------------------------ installing

IMPORT = "import styleid; from styleid import _core; print(_core.info()['onednn'], styleid.__file__)"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Built with pip's build isolation, as users do it."""
    folder = tmp_path_factory.mktemp("wheel")
    result = python("-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
    assert result.returncode == 0, result.stderr
    return next(folder.glob("styleid-*.whl"))


@pytest.fixture
def environment(tmp_path):
    """A virtual environment's Python."""
    result = python("-m", "venv", str(tmp_path / "venv"))
    assert result.returncode == 0, result.stderr
    return tmp_path / "venv" / "bin" / "python"


def install(environment, *arguments, **variables):
    return python("-m", "pip", "install", "-q", *arguments, executable=environment, **variables)


@pytest.mark.slow
def test_wheel_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"styleid/_core\.cpython-.*\.so", name) for name in names)
    for name in ("py.typed", "_core.pyi", "data/default-model/unet/config.json"):
        assert f"styleid/{name}" in names
    assert all(name.startswith(("styleid/", "styleid-")) for name in names)
    assert not [name for name in names if name.endswith((".c", ".h"))]


@pytest.mark.slow
def test_a_virtual_environment(wheel, environment):
    result = install(environment, str(wheel))
    assert result.returncode == 0, result.stderr
    result = python("-c", IMPORT, executable=environment)
    assert result.returncode == 0, result.stderr
    assert "site-packages/styleid/__init__.py" in result.stdout
    assert python("-m", "styleid", "info", executable=environment).returncode == 0

    result = python("-m", "pip", "uninstall", "-q", "-y", "onednn-cpu-gomp", executable=environment)
    assert result.returncode == 0, result.stderr
    result = python("-c", IMPORT, executable=environment)
    assert result.returncode == 1
    assert "ImportError: libdnnl.so.3 not found. styleid needs oneDNN 3.2 or later" in result.stderr.splitlines()[-1]


@pytest.fixture
def source(tmp_path):
    """A copy of the sources, as a clone has them."""
    built = shutil.ignore_patterns(
        ".*", "build", "demo", "*.so", "*.egg-info", "__pycache__", "shared", "training", "tests"
    )
    return shutil.copytree(ROOT, tmp_path / "source", ignore=built)


@pytest.mark.slow
def test_an_editable_installation(environment, source):
    result = install(environment, "-e", str(source))
    assert result.returncode == 0, result.stderr
    result = python("-c", IMPORT, executable=environment)
    assert result.returncode == 0, result.stderr
    assert str(source) in result.stdout


@pytest.mark.slow
def test_a_user_installation(wheel, tmp_path):
    interpreter, variables = sys._base_executable, {"PYTHONUSERBASE": str(tmp_path), "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    if python("-m", "pip", "--version", executable=interpreter).returncode:
        pytest.skip("the base Python has no pip")
    result = install(interpreter, "--user", "--ignore-installed", str(wheel), **variables)
    assert result.returncode == 0, result.stderr
    result = python("-c", IMPORT, executable=interpreter, **variables)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout


@pytest.mark.slow
def test_a_source_distribution_builds(environment, source, tmp_path):
    backend = (
        "import os, sys; os.chdir(sys.argv[1]); from setuptools import build_meta; build_meta.build_sdist(sys.argv[2])"
    )
    assert install(environment, "setuptools>=77").returncode == 0
    result = python("-c", backend, str(source), str(tmp_path), executable=environment)
    assert result.returncode == 0, result.stderr
    result = install(environment, str(next(tmp_path.glob("styleid-*.tar.gz"))))
    assert result.returncode == 0, result.stderr
    assert python("-c", IMPORT, executable=environment).returncode == 0


def onednn_root(folder, version):
    """A oneDNN of the user's own: the installed one under another path, whose header tells another version."""
    headers = folder / "include" / "oneapi" / "dnnl"
    headers.mkdir(parents=True)
    for path in files("onednn-devel-cpu-gomp"):
        if path.as_posix().endswith(".h"):
            target = folder / "include" / path.as_posix().split("/include/")[1]
            shutil.copy(path.locate(), target)
    library = next(path.locate() for path in files("onednn-cpu-gomp") if path.name == "libdnnl.so.3")
    (folder / "lib64").mkdir()
    for name in ("libdnnl.so", "libdnnl.so.3"):
        shutil.copy(library, folder / "lib64" / name)
    header = headers / "dnnl_version.h"
    major, minor = version
    text = re.sub(r"(VERSION_MAJOR\s+)\d+", rf"\g<1>{major}", header.read_text())
    header.write_text(re.sub(r"(VERSION_MINOR\s+)\d+", rf"\g<1>{minor}", text))
    return folder


@pytest.mark.slow
def test_another_onednn(environment, source, tmp_path):
    root = onednn_root(tmp_path / "onednn", (3, 2))
    result = install(environment, "-v", str(source), ONEDNN_ROOT=str(root))
    assert result.returncode == 0, result.stderr
    assert python("-m", "pip", "uninstall", "-y", "onednn-cpu-gomp", executable=environment).returncode == 0
    result = python("-c", IMPORT, executable=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", [(3, 1), (2, 7)])
def test_building_with_too_old_a_onednn(environment, source, tmp_path, version):
    root = onednn_root(tmp_path / "onednn", version)
    result = install(environment, str(source), ONEDNN_ROOT=str(root))
    assert result.returncode == 1
    assert f"oneDNN {version[0]}.{version[1]} in {root} is too old: install onednn-devel-cpu-gomp" in result.stderr


@pytest.mark.slow
def test_building_without_a_onednn(environment, source, tmp_path):
    result = install(environment, str(source), ONEDNN_ROOT=str(tmp_path))
    assert result.returncode == 1 and "ONEDNN_ROOT: no lib/libdnnl.so or lib64/libdnnl.so" in result.stderr


@pytest.mark.slow
def test_building_without_a_compiler(environment, source):
    result = install(environment, str(source), CC="no-such-compiler")
    assert result.returncode == 1 and "styleid needs a C compiler, and there is no no-such-compiler" in result.stderr
