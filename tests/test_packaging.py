"""The layers of the C code, and that the package builds, installs and finds its library where users install it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path

import pytest

from styleid import _onednn

ROOT = Path(__file__).parents[1]
C_FILES = sorted((ROOT / "csrc").rglob("*.[ch]")) + sorted((ROOT / "csrc").rglob("*.cu*"))
# python -> style -> model -> core <- {cpu, cuda}. The module also describes CPU and GPUs: it may read cpu/cpu.h, cuda/cuda.h.
MAY_INCLUDE = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "model": {"core", "model"},
    "style": {"core", "model", "style"},
    "python": {"core", "model", "style", "python", "cpu/cpu.h", "cuda/cuda.h"},
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
        assert not name.startswith("cu") or layer(path) == "cuda" or name in allowed


def test_only_the_cpu_layer_calls_onednn():
    for path in C_FILES:
        if layer(path) != "cpu":
            assert not re.search(r"\bdnnl_\w+\s*\(", path.read_text()), path


def test_only_the_cuda_layer_names_nvidias_functions():
    for path in C_FILES:
        if layer(path) != "cuda":
            assert not re.search(r"\b(cu[A-Z]|nvrtc[A-Z]|cublasLt|cudnn[A-Z])\w*\s*\(", path.read_text()), path


def test_no_header_of_nvidias_is_included():
    own = {str(path.relative_to(ROOT / "csrc")) for path in C_FILES} | {"sid.cuh", "params.h", "attention.cuh"}
    for path in C_FILES:
        if layer(path) == "cuda":
            standard = ("std", "string.h", "pthread.h", "sys/", "unistd.h", "fcntl.h", "dlfcn.h", "errno.h", "math.h")
            assert all(name in own or name.startswith(standard) for name in included(path)), path


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
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        cwd="/",
    )


@pytest.mark.parametrize(
    "error, advice",
    [
        ("libgomp.so.1: cannot open shared object file", "apt install libgomp1"),
        ("libdnnl.so.3: cannot open shared object file", "install styleid again"),
        ("_core.so: undefined symbol: dnnl_memory_desc_create_with_blob", "needs oneDNN 3.2 or later"),
        ("cannot import name '_core' from 'styleid'", "pip install ."),
        ("STYLEID_ISA: unknown level", "STYLEID_ISA: unknown level"),
    ],
)
def test_errors_say_what_to_do(error, advice):
    assert advice in str(_onednn.explain(ImportError(error)))


@pytest.mark.parametrize(
    "chosen, spins", [({}, "300"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_waiting_threads_spin_for_microseconds(chosen, spins):
    """Unless the user chooses; and what the user's own programs inherit stays as it was."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import os, styleid; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | chosen | {"OMP_DISPLAY_ENV": "verbose"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in run.stderr
    assert run.stdout.strip() == str(chosen.get("GOMP_SPINCOUNT"))


def test_too_old_a_library_is_refused(monkeypatch):
    from styleid import _core

    monkeypatch.setattr(_core, "info", lambda: {"onednn": "3.1.1"})
    with pytest.raises(ImportError, match="needs oneDNN 3.2 or later.* found 3.1.1"):
        _onednn.load()


# ------------------------------------------------------------------------------------------------------ installing

IMPORT = "import styleid; from styleid import _core; print(_core.info()['onednn'], styleid.__file__)"
LIBRARY = (
    "from styleid import _core; print({line.split()[-1] for line in open('/proc/self/maps') if 'libdnnl' in line})"
)


def succeed(result):
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def make_environment(folder):
    succeed(python("-m", "venv", str(folder)))
    return folder / "bin" / "python"


def install(environment, *arguments, **variables):
    succeed(python("-m", "pip", "install", "-q", *arguments, executable=environment, **variables))


@pytest.fixture
def environment(tmp_path):
    """The Python of a new virtual environment."""
    return make_environment(tmp_path / "venv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built with pip's build isolation, as users do it."""
    folder = tmp_path_factory.mktemp("wheel")
    succeed(python("-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)))
    return next(folder.glob("styleid-*.whl"))


@pytest.fixture(scope="module")
def builder(tmp_path_factory, wheel):
    """An environment to build in without isolation."""
    environment = make_environment(tmp_path_factory.mktemp("builder"))
    install(environment, str(wheel), "setuptools>=77", "onednn-devel-cpu-gomp")
    return environment


@pytest.fixture
def source(tmp_path):
    """A copy of the sources, as a clone has them."""
    others = shutil.ignore_patterns(".*", "build", "demo", "*.so", "onednn", "*.egg-info", "__pycache__", "training")
    return shutil.copytree(ROOT, tmp_path / "source", ignore=others)


@pytest.mark.slow
def test_wheel_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"styleid/_core\.cpython-.*\.so", name) for name in names)
    inside = ("py.typed", "_core.pyi", "data/default-model/unet/config.json", "onednn/libdnnl.so.3", "onednn/LICENSE")
    for name in inside:
        assert f"styleid/{name}" in names
    assert all(name.startswith(("styleid/", "styleid-")) for name in names)
    assert not [name for name in names if name.endswith((".c", ".h"))]


@pytest.mark.slow
def test_source_distribution_contents(builder, source, tmp_path):
    backend = (
        "import os, sys; os.chdir(sys.argv[1]); from setuptools import build_meta; build_meta.build_sdist(sys.argv[2])"
    )
    succeed(python("-c", backend, str(source), str(tmp_path), executable=builder))
    archive = next(tmp_path.glob("styleid-*.tar.gz"))
    with tarfile.open(archive) as files_inside:
        names = {name.partition("/")[2] for name in files_inside.getnames()}
    assert {str(path.relative_to(ROOT)) for path in C_FILES} <= names
    assert {"pyproject.toml", "setup.py", "LICENSE", "Makefile", "styleid/_core.pyi", "tests/tiny.py"} <= names
    assert "styleid/data/default-model/unet/config.json" in names


@pytest.mark.slow
def test_a_virtual_environment(wheel, environment):
    install(environment, str(wheel))
    assert "site-packages/styleid/__init__.py" in succeed(python("-c", IMPORT, executable=environment))
    succeed(python("-m", "styleid", "info", executable=environment))
    library = next(environment.parents[1].glob("lib/*/site-packages/styleid/onednn/libdnnl.so.3"))
    library.unlink()
    result = python("-c", IMPORT, executable=environment)
    assert result.returncode == 1
    assert "ImportError: styleid needs oneDNN 3.2 or later" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_target_folder(wheel, environment, tmp_path):
    """`pip install --target` keeps nothing of a wheel outside of its packages."""
    install(environment, "--target", str(tmp_path / "site"), str(wheel))
    assert str(tmp_path) in succeed(
        python("-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {IMPORT}", executable=environment)
    )


@pytest.mark.slow
def test_an_editable_installation(environment, source):
    install(environment, "-e", str(source))
    assert str(source) in succeed(python("-c", IMPORT, executable=environment))


@pytest.mark.slow
def test_a_user_installation(wheel, tmp_path):
    interpreter, variables = sys._base_executable, {"PYTHONUSERBASE": str(tmp_path), "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    if python("-m", "pip", "--version", executable=interpreter).returncode:
        pytest.skip("the base Python has no pip")
    install(interpreter, "--user", "--ignore-installed", str(wheel), **variables)
    assert str(tmp_path) in succeed(python("-c", IMPORT, executable=interpreter, **variables))


@pytest.fixture(scope="module")
def portable(wheel):
    """The wheel as `make wheel` repairs it: with GNU OpenMP inside."""
    variables = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    succeed(python("-m", "auditwheel", "repair", "-w", str(wheel.parent / "portable"), str(wheel), **variables))
    return next((wheel.parent / "portable").glob("styleid-*-manylinux_*.whl"))


USE = """
import styleid, sys
inversion = styleid.invert(sys.argv[1], steps=2, options=styleid.Resize(64))
print(inversion.latent.shape)
print({line.split()[-1] for line in open("/proc/self/maps") if "libdnnl" in line or "libgomp" in line})
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", [False, True])
def test_a_portable_wheel(portable, environment, tmp_path, target):
    """It runs without a compiler, and with no library of the system's but those that every system has."""
    folder = tmp_path / "site"
    place = ["--target", str(folder)] if target else []
    install(environment, *place, str(portable), PATH=str(environment.parent))
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{USE}" if target else USE
    image = ROOT / "styleid" / "data" / "demo" / "content.jpg"
    printed = succeed(python("-c", code, str(image), executable=environment, PATH=str(environment.parent)))
    assert printed.startswith("(1, ")
    assert "styleid/onednn/libdnnl.so.3" in printed and "styleid.libs/libgomp" in printed
    assert "x86_64-linux-gnu" not in printed.splitlines()[-1]


# --------------------------------------------------------------------------------------------------- other toolchains


def onednn_root(folder, version):
    """A oneDNN of the user's own: the installed one under another path, whose header tells another version."""
    for path in files("onednn-devel-cpu-gomp"):
        if path.suffix == ".h":
            target = folder / "include" / path.as_posix().partition("/include/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path.locate(), target)
    library = next(path.locate() for path in files("onednn-cpu-gomp") if path.name == "libdnnl.so.3")
    (folder / "lib64").mkdir()
    for name in ("libdnnl.so", "libdnnl.so.3"):
        shutil.copy(library, folder / "lib64" / name)
    header = folder / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
    text = header.read_text()
    for part, number in zip(("MAJOR", "MINOR"), version, strict=True):
        text = re.sub(rf"(DNNL_VERSION_{part}\s+)\d+", rf"\g<1>{number}", text)
    header.write_text(text)
    return folder


def refused_build(builder, source, **variables):
    """What setup.py says."""
    program = "import os, sys; os.chdir(sys.argv.pop()); exec(open('setup.py').read())"
    result = python("-c", program, "-q", "build_ext", str(source), executable=builder, **variables)
    assert result.returncode == 1
    return result.stderr


@pytest.mark.slow
def test_another_onednn(builder, source, tmp_path):
    root = onednn_root(tmp_path / "onednn", (3, 2))
    install(builder, "--no-build-isolation", "--no-deps", "--force-reinstall", str(source), ONEDNN_ROOT=str(root))
    assert str(root / "lib64") in succeed(python("-c", LIBRARY, executable=builder))


@pytest.mark.slow
@pytest.mark.parametrize("version", [(3, 1), (2, 7)])
def test_too_old_a_onednn(builder, source, tmp_path, version):
    root = onednn_root(tmp_path / "onednn", version)
    message = refused_build(builder, source, ONEDNN_ROOT=str(root))
    assert f"is of oneDNN {version[0]}.{version[1]}, which is too old: install onednn-devel-cpu-gomp" in message


@pytest.mark.slow
def test_no_onednn(builder, source, tmp_path):
    message = refused_build(builder, source, ONEDNN_ROOT=str(tmp_path))
    assert "ONEDNN_ROOT: no lib/libdnnl.so or lib64/libdnnl.so in" in message


@pytest.mark.slow
def test_no_compiler(builder, source):
    message = refused_build(builder, source, CC="no-such-compiler")
    assert "styleid needs a C compiler, and there is no no-such-compiler" in message
