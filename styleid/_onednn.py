"""Importing this module loads styleid._core, and with it oneDNN and GNU OpenMP, or says what keeps them from loading."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

LEAST = (3, 2)
HELP = (
    "styleid needs oneDNN 3.2 or later, built for GNU OpenMP; it is part of the package, in styleid/onednn, unless it was "
    "built with ONEDNN_ROOT; install styleid again"
)
SPINS = "300"  # turns of a waiting thread's loop before it sleeps, some microseconds; GNU OpenMP's own: milliseconds


@contextmanager
def bounded_spin() -> Iterator[None]:
    """Sets how long GNU OpenMP's threads spin, unless the user has set it, while the library is loaded and reads this. Threads
    that spin for milliseconds keep the cores from other programs, and from the thread that they wait for."""
    chosen = os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        yield
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]


def load() -> None:
    """Imports styleid._core, or raises one ImportError that says what to install."""
    try:
        from styleid import _core
    except ImportError as error:
        raise explain(error) from error
    version = _core.info()["onednn"]
    if tuple(int(number) for number in version.split(".")[:2]) < LEAST:
        raise ImportError(f"{HELP}; found {version}")


def explain(error: Exception) -> ImportError:
    """Says what to do about a library or module that did not load."""
    text = str(error)
    if "libgomp" in text:
        return ImportError(f"styleid needs GNU OpenMP's libgomp.so.1; on Debian: apt install libgomp1 ({text})")
    if "dnnl" in text:
        return ImportError(f"{HELP} ({text})")
    if "_core" in text:
        return ImportError(f"styleid's C module is missing or broken; install styleid again: pip install . ({text})")
    return ImportError(text)


with bounded_spin():
    load()
