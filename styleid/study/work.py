"""The two kinds of work of a study: an inversion and a sampling with its measures, wherever they are done."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from styleid import _core
from styleid._core import __version__
from styleid.inversions.cache import Cache
from styleid.inversions.inversion import Inversion
from styleid.method.calls import inject_styles, invert
from styleid.method.options import Start, Storage, Text, parse_layers
from styleid.method.rates import parse_rate
from styleid.metrics import evaluate
from styleid.models.model import Model
from styleid.progress import Report
from styleid.study.manifest import encode_result
from styleid.study.plan import Inverting, Result, Row


def make_inversion(task: Inverting, model: Model, cache: Cache, features: str, report: Report = None) -> Inversion:
    """The inversion of a plan, from the cache or made; errors as `styleid.invert`.

    features: where they are kept: "memory", "disk" or "recompute"
    """
    common = task.common
    storage = Storage(features, common.feature_dtype, cache)
    return invert(
        np.asarray(task.source.pixels),
        model,
        steps=task.steps,
        schedule=task.schedule,
        layers=task.layers,
        keep=task.keep,
        progress=report or False,
        options=[Text(common.prompt), storage, common.accuracy(task.seed)],
    )


def make_result(
    task: Result, content: Inversion, style: Inversion, model: Model, isas: Iterable[str] = (), report: Report = None
) -> tuple[Row, bytes]:
    """The row of a result and its PNG; errors as `styleid.inject_styles`.

    isas: the instruction sets that the inversions were computed with elsewhere
    """
    settings = task.settings
    parts = "qkv" if settings["inject"] is True else settings["inject"] or ""
    image = inject_styles(
        content,
        style,
        model,
        gamma=parse_rate(settings["gamma"]) if "q" in parts else None,
        temperature=parse_rate(settings["temperature"]) if set("qk") & set(parts) else None,
        layers=parse_layers(settings["layers"]),
        inject=settings["inject"],
        progress=report or False,
        options=[
            Text(settings["prompt"], settings["negative_prompt"], settings["guidance"]),
            Start(settings["initial"], settings["strength"]),
        ],
    )
    measures = evaluate(image, np.asarray(task.content.source.pixels), np.asarray(task.style.source.pixels))
    # Beyond seven digits, sums depend on the number of threads of NumPy's BLAS.
    measures = {name: float(f"{value:.7g}") for name, value in measures.items()}
    machine = "+".join(sorted({_core.info()["isa"], *isas}))
    made_by = {"model": model.fingerprint, "dtype": model.dtype, "isa": machine, "version": __version__}
    row = {"key": task.key, **task.names, **settings, **made_by, **measures, "output": task.output}
    return row, encode_result(row, image)
