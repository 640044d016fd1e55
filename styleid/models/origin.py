"""Pickled models: what travels between processes are the arguments of their loading, not gigabytes of weights."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from styleid._core import ModelError


class Loaded(Protocol):
    """A model or a VAE."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its weights."""
        ...


class Origin(NamedTuple):
    """The public function that loaded it, and its arguments."""

    load: Callable[..., Any]
    options: Mapping[str, Any]


_known: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _renew_lock() -> None:
    """In the child of a fork, where the thread that may have held it is gone."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def remember(model: Loaded, origin: Origin | None, fingerprint: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The value that `__reduce__` returns. Raises TypeError for a model without an origin."""
    if origin is None:
        raise TypeError(f"{model!r} was made from arrays: only what load_model and load_vae loaded can be pickled")
    options = {name: _anywhere(name, value) for name, value in origin.options.items()}
    return reload, (origin.load, options, fingerprint)


def reload(load: Callable[..., Any], options: dict[str, Any], fingerprint: str) -> Any:
    """The model of an unpickled origin: one that this process has, or else a newly loaded one.

    Raises ModelError if the files are not there, or hold other weights than the pickled model had.
    """
    key = repr((load.__name__, sorted(options.items()), fingerprint))
    with _lock:  # several threads that unpickle the same load it once
        model = _known.get(key)
        if model is None:
            model = load(**options)
            if model.fingerprint != fingerprint:
                raise ModelError(f"{options['source']}: the model has changed since it was pickled")
            _known[key] = model
    return model


def _anywhere(name: str, value: Any) -> Any:
    """Makes paths absolute, so that they are right in a process with another working directory; others stay as they are."""
    if name == "loras":
        return [(os.path.abspath(path), weight) for path, weight in value]
    is_path = name in ("source", "vae") and value not in (None, "default") and os.path.exists(value)
    return os.path.abspath(value) if is_path else value
