"""The memory that a run will take, and the memory that is free, so that too large a run is an error before work starts.

A run's peak is the largest scratch of its parts, which the engine measures exactly (`Model.scratch`,
`Model.vae_scratch`), the features that it keeps, and the arrays around them.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from styleid import _core
from styleid.images import padded_size

if TYPE_CHECKING:
    from styleid.models.model import Model

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
V1_LIMIT, V1_USAGE = "memory.limit_in_bytes", "memory.usage_in_bytes"


class Memory(NamedTuple):
    """Bytes that a run takes on top of the loaded model."""

    scratch: int  # the largest of its evaluations, of the encoder and of the decoder
    features: int  # kept queries, keys and values
    arrays: int  # images and latents

    @property
    def total(self) -> int:
        """The sum of scratch, features and arrays, which are in memory at the same time."""
        return sum(self)

    def __str__(self) -> str:
        return (
            f"{_gigabytes(self.total)} (scratch {_gigabytes(self.scratch)}, features {_gigabytes(self.features)}, "
            f"images and latents {_gigabytes(self.arrays)})"
        )


def of_transfer(
    model: Model,
    content: Sequence[int],
    styles: Sequence[Sequence[int]],
    steps: int,
    layers: Iterable[int],
    dtype: str,
    features: str,
) -> Memory:
    """The memory of a transfer, which keeps the content's queries and the styles' keys and values, and inverts one style of
    the content's size in one batch with it."""
    parts = [of_inversion(model, content, steps, layers, 1, dtype, features)]
    parts += [of_inversion(model, style, steps, layers, 2, dtype, features) for style in styles]
    scratch = max(part.scratch for part in parts)
    size = _padded(model, content)
    if len(styles) == 1 and _padded(model, styles[0]) == size:
        scratch = max(scratch, model.scratch(2, *size))
    return Memory(scratch, sum(part.features for part in parts), sum(part.arrays for part in parts))


def of_inversion(
    model: Model,
    size: Sequence[int],
    steps: int,
    layers: Iterable[int],
    kinds: int,
    dtype: str,
    features: str = "memory",
) -> Memory:
    """The memory of an inversion that keeps so many kinds of features (queries, keys, values), and of decoding a result."""
    height, width = _padded(model, size)
    item = item_size(dtype)
    latent = height // model.vae_factor, width // model.vae_factor
    numbers = sum(math.prod(model.layer_size(layer, latent)) * model.layer_channels(layer) for layer in layers)
    slots = steps if features in ("memory", "host") else 1
    latents = 2 * (steps + 1) * model.config["unet"]["in_channels"] * math.prod(latent) * 4
    images = height * width * 3 * (4 + 4 + 1)  # as numbers for the networks, as they came, as the result
    scratch = max(model.scratch(1, height, width), model.engine.vae_scratch(height, width))
    return Memory(scratch, kinds * slots * numbers * item, latents + images)


def check_memory(need: Memory, model: Model, what: str, features: str = "memory") -> None:
    """Raises a MemoryError with advice if a run needs more memory than is free, on the GPU of a model that is on one."""
    if model.device != "cpu":
        _check_device(need, model, what, features)
        return
    free, whose = free_memory()
    more = need.total - min(need.scratch, model.engine.idle)  # which is there already
    if more > free:
        raise MemoryError(
            f"{what} needs {need}, but {_gigabytes(free)} are free {whose}; try a smaller size, fewer layers or steps, "
            "features='disk' or 'recompute', feature_dtype='bfloat16', keep='query' for contents and keep='keys' for styles, "
            "or load_model(tiling=True)"
        )


def _check_device(need: Memory, model: Model, what: str, features: str) -> None:
    number = int(model.device.partition(":")[2])
    free, total = _core.cuda_free_memory(number), _core.cuda_devices()[number]["total"]
    kept = 0 if features == "host" else need.features
    more = need.scratch + kept - min(need.scratch, model.engine.idle)  # which is there already
    if more > free:
        name = f"{model.device} ({_core.cuda_devices()[number]['name']})"
        raise MemoryError(
            f"{name}: {what} takes {_gigabytes(need.scratch + kept)}, its features {_gigabytes(kept)} of them; "
            f"{_gigabytes(free)} of {total / 1e9:.1f} GB are free; use features='host' or 'recompute', or a smaller size"
        )


def item_size(dtype: str) -> int:
    """The bytes of a number of float32, bfloat16 or float16."""
    return 4 if dtype == "float32" else 2


def check_weights(numbers: int, dtype: str) -> None:
    """Raises a MemoryError if so many weights cannot be packed. They take at least this memory; some are stored twice."""
    least = numbers * item_size(dtype)
    free, whose = free_memory()
    if least > free:
        raise MemoryError(
            f"the model's weights need at least {_gigabytes(least)} in {dtype}, but {_gigabytes(free)} are free {whose}"
        )


def free_memory() -> tuple[float, str]:
    """The bytes that this process can still take without swapping, and by whose limit: the machine's, that of its
    control groups (versions 1 and 2), or that of its address space (ulimit -v). Infinite where nothing is known."""
    limits = [*_machine(), *_control_groups(), *_address_space()]
    return min(limits, default=(float("inf"), "in this system"))


def _machine() -> Iterator[tuple[float, str]]:
    for line in lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10, "in this machine"


def _control_groups() -> Iterator[tuple[float, str]]:
    for folder, version in control_groups("memory"):
        limit, usage = ("memory.max", "memory.current") if version == 2 else (V1_LIMIT, V1_USAGE)
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None:
            cache = _file_cache(folder / "memory.stat", "" if version == 2 else "total_")
            yield max(0, most - used + cache), "in its control group"


def control_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the process's groups and of their parents, with their version, 1 or 2; a container sees its own group
    as the root."""
    for line in lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = CGROUPS, 2
        elif controller in controllers.split(","):
            together = CGROUPS / controllers  # mounted as one, mostly with a link of each name
            root, version = together if together.is_dir() else CGROUPS / controller, 1
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(root):
                break
            yield folder, version


def _file_cache(path: Path, prefix: str) -> int:
    """The bytes that count as used but are given back when memory is needed."""
    names = f"{prefix}inactive_file", f"{prefix}active_file"
    return sum(int(words[1]) for words in map(str.split, lines(path)) if len(words) == 2 and words[0] in names)


def _address_space() -> Iterator[tuple[float, str]]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    for line in lines(PROC / "self" / "statm"):
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - int(line.split()[0]) * os.sysconf("SC_PAGE_SIZE")), "in its address space (ulimit -v)"


def lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = "".join(lines(path))
    return int(text) if text.isdecimal() else None  # "max": no limit


def _padded(model: Model, size: Sequence[int]) -> tuple[int, int]:
    return padded_size(tuple(size), model.image_multiple)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
