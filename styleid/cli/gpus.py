"""One command on every GPU of the machine: a process for each, which share the work through the folder that they write to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from styleid import _core, _cuda

ALL = "all"  # the --device that asks for it


def run_on_every_gpu(words: Sequence[str]) -> None:
    """Runs `styleid WORDS` once for each GPU and waits for all. ValueError if there is none, or if one of them fails."""
    _cuda.open_libraries()
    command = [sys.executable, "-m", "styleid", *words, "--device"]  # the last one counts where there are two
    processes = [subprocess.Popen([*command, f"cuda:{number}"]) for number in range(len(_core.cuda_devices()))]
    try:
        codes = [process.wait() for process in processes]
    except KeyboardInterrupt:  # the processes got it as well
        for process in processes:
            process.wait()
        raise
    if failed := [f"cuda:{number}" for number, code in enumerate(codes) if code]:
        raise ValueError(f"device: the process of {', '.join(failed)} failed; what the others did is kept")
