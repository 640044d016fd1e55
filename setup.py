"""Builds styleid._core: C11 against oneDNN's C API and GNU OpenMP. Everything else is in pyproject.toml. Nothing of NVIDIA's
is needed: its libraries are found at run time.

oneDNN's library becomes part of the package, in styleid/onednn with its licence, so that nothing else has to be found at
run time.

ONEDNN_ROOT=DIR       link to the oneDNN (3.2 or later) in DIR/include and DIR/lib or DIR/lib64 where it lies instead
STYLEID_WERROR=1      warnings are errors
STYLEID_SANITIZE=...  e.g. address,undefined: build with these sanitizers

Only what changed is compiled again: a source, a header that it includes, or the command. build/compile_commands.json is for
editors and checkers.
"""

import json
import os
import re
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

LAYERS = ("core", "cpu", "cuda", "model", "style", "python")
EMBEDS = Path("csrc/cuda/module.c")  # the kernels' sources, in the module as text
KERNELS = sorted(Path("csrc/cuda/kernels").iterdir())
LEAST_ONEDNN = (3, 2)
LIBRARY = "libdnnl.so.3"
VERSION_HEADER = "oneapi/dnnl/dnnl_version.h"
HELP = "install onednn-devel-cpu-gomp, or set ONEDNN_ROOT to the directory of a oneDNN 3.2 or later with GNU OpenMP"


def installed(distribution: str, name: str) -> Path:
    """Where the file of that name lies that a distribution brought."""
    try:
        found = [file for file in files(distribution) or [] if file.as_posix().endswith("/" + name)]
    except PackageNotFoundError:
        found = []
    if not found:
        raise SetupError(f"{name} not found: {HELP}")
    return Path(found[0].locate()).resolve()


def find_onednn() -> tuple[Path, Path]:
    """The directory of oneDNN's headers and that of its library."""
    root = os.environ.get("ONEDNN_ROOT")
    if root:
        headers = Path(root).resolve() / "include"
        library = next(iter(sorted(Path(root).resolve().glob("lib*/libdnnl.so"))), None)
        if library is None:
            raise SetupError(f"ONEDNN_ROOT: no lib/libdnnl.so or lib64/libdnnl.so in {root}")
    else:
        headers = installed("onednn-devel-cpu-gomp", "include/" + VERSION_HEADER).parents[2]
        library = installed("onednn-cpu-gomp", LIBRARY)
    check_version(headers / VERSION_HEADER)
    return headers, library.parent


def check_version(header: Path) -> None:
    if not header.is_file():
        raise SetupError(f"{header} not found: {HELP}")
    numbers = dict(re.findall(r"#define DNNL_VERSION_(\w+)\s+(\d+)", header.read_text()))
    version = int(numbers["MAJOR"]), int(numbers["MINOR"])
    if version < LEAST_ONEDNN:
        raise SetupError(f"{header} is of oneDNN {version[0]}.{version[1]}, which is too old: {HELP}")


class BuildCore(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # whether there is anything to do is decided by object, below

    def run(self) -> None:
        super().run()
        if not os.environ.get("ONEDNN_ROOT"):
            self.bundle_onednn(Path(self.get_ext_fullpath("styleid._core")).with_name("onednn"))

    def build_extension(self, extension: Extension) -> None:
        import numpy  # a build requirement: needed by no other command

        self.check_tools()
        headers, libraries = find_onednn()
        extension.include_dirs += [str(headers), numpy.get_include()]
        extension.library_dirs.append(str(libraries))
        if os.environ.get("ONEDNN_ROOT"):
            extension.runtime_library_dirs.append(str(libraries))
        else:
            extension.runtime_library_dirs.append("$ORIGIN/onednn")
        extension.define_macros.append(("STYLEID_VERSION", f'"{self.distribution.get_version()}"'))
        self.compile_what_changed()
        linked = Path(self.build_temp, "linked")
        target = Path(self.get_ext_fullpath(extension.name))
        # The link depends on the objects alone, as long as what is there is what this folder's objects made.
        self.compiler.force = not linked.is_file() or linked.read_text() != time_of(target)
        super().build_extension(extension)
        linked.write_text(time_of(target))
        records = [Path(self.build_temp, source).with_suffix(".json") for source in extension.sources]
        Path("build").mkdir(exist_ok=True)
        commands = ",\n".join(record.read_text() for record in records)
        Path("build", "compile_commands.json").write_text(f"[\n{commands}\n]\n")

    def check_tools(self) -> None:
        compiler = self.compiler.compiler[0]
        if shutil.which(compiler) is None:
            raise SetupError(f"styleid needs a C compiler, and there is no {compiler}; on Debian: apt install gcc")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            raise SetupError("styleid needs Python's headers (Python.h); on Debian: apt install python3-dev")

    def bundle_onednn(self, folder: Path) -> None:
        """Copies oneDNN's library, without its symbols for debuggers, and its licence into the package."""
        folder.mkdir(parents=True, exist_ok=True)
        source, target = installed("onednn-cpu-gomp", LIBRARY), folder / LIBRARY
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.copyfile(source, target)
            if shutil.which("strip"):
                self.spawn(["strip", "--strip-unneeded", str(target)])
        for name in ("LICENSE", "THIRD-PARTY-PROGRAMS"):
            shutil.copyfile(installed("onednn-cpu-gomp", f"doc/onednn/{name}"), folder / name)

    def compile_what_changed(self) -> None:
        """Each object has its command beside it, as an entry of compile_commands.json, and a list of what it was made of."""
        compile_file, compile_files = self.compiler._compile, self.compiler.compile

        def compile_if_changed(
            target: str, source: str, suffix: str, flags: list[str], more: list[str], *rest: object
        ) -> None:
            command = [*self.compiler.compiler_so, *flags, source, "-o", target, *more]
            entry = json.dumps({"directory": os.getcwd(), "file": source, "output": target, "arguments": command})
            record = Path(target).with_suffix(".json")
            if not is_current(Path(target), record, entry):
                record.unlink(missing_ok=True)
                compile_file(target, source, suffix, flags, [*more, "-MMD"], *rest)
                record.write_text(entry)

        def compile_all(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_files([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler._compile, self.compiler.compile = compile_if_changed, compile_all


def is_current(target: Path, record: Path, entry: str) -> bool:
    """Whether the object was made by this very command, from files that are not newer."""
    parts = target.with_suffix(".d")
    if not (target.is_file() and parts.is_file() and record.is_file() and record.read_text() == entry):
        return False
    made_of = parts.read_text().replace("\\\n", " ").split(": ", 1)[1].split()
    made_of += map(str, KERNELS if Path(made_of[0]) == EMBEDS else [])  # no list of the compiler's has embedded files
    return all(Path(name).is_file() and Path(name).stat().st_mtime <= target.stat().st_mtime for name in made_of)


def time_of(path: Path) -> str:
    return str(path.stat().st_mtime_ns) if path.is_file() else ""


compile_flags = ["-std=c11", "-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]
link_flags = ["-fopenmp"]
if os.environ.get("STYLEID_WERROR") == "1":
    compile_flags.append("-Werror")
if os.environ.get("STYLEID_SANITIZE"):
    sanitize = "-fsanitize=" + os.environ["STYLEID_SANITIZE"]
    compile_flags += [sanitize, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"]
    link_flags.append(sanitize)

setup(
    cmdclass={"build_ext": BuildCore},
    ext_modules=[
        Extension(
            "styleid._core",
            sources=sorted(str(path) for layer in LAYERS for path in Path("csrc", layer).glob("*.c")),
            # Kernels for GPUs are embedded in csrc/cuda/module.c and compiled where they run.
            depends=sorted(str(path) for suffix in ("h", "cu", "cuh") for path in Path("csrc").rglob(f"*.{suffix}")),
            include_dirs=["csrc"],
            define_macros=[("_GNU_SOURCE", None)],
            libraries=["dnnl", "m", "dl"],
            extra_compile_args=compile_flags,
            extra_link_args=link_flags,
        )
    ],
)
