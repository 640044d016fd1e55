"""Runs inputs, one after the other, and watches what each costs."""

import faulthandler
import os
import signal
import time
import warnings
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

import numpy as np

from fuzz import engine, files, images

ENTRIES = {entry.__name__: entry for entry in (*files.ENTRIES, images.image, *engine.ENTRIES)}
# The engine may refuse by any of these; for files it has to be a ValueError that names the file.
REFUSED = (TypeError, ValueError, OverflowError, MemoryError)
# The limits of one input. Time is the processor's, because the process may be stopped for others.
SECONDS, MEGABYTES = 20, 300
HANG = 120  # seconds of the processor after which an input counts as hanging: the process shows where it is, and dies


class Result(NamedTuple):
    """The outcome of some inputs."""

    inputs: int
    accepted: int
    refusals: int  # different texts, apart from numbers in them
    seconds: float
    slowest: float  # the processor's seconds for one input
    grown: int  # bytes of memory


@contextmanager
def _quietly(folder):
    """Suppresses warnings, and puts the output of C libraries into a file of the folder."""
    before = os.dup(2)
    with open(folder / "stderr", "ab", buffering=0) as file, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        os.dup2(file.fileno(), 2)
        try:
            yield before
        finally:
            os.dup2(before, 2)
            os.close(before)


def run(name, place, first=0, count=10**12, seconds=float("inf"), seed=0):
    """Runs inputs of an entry point from a number on, so many or for so long, with `place` as the folder for files.

    Raises an AssertionError that names the first input that is not survived.
    """
    with _quietly(place) as screen, _alarm(screen):
        return _run(name, place, first, count, seconds, seed)


@contextmanager
def _alarm(screen):
    """Ends a process that hangs. However the inputs end, no alarm is left behind."""
    faulthandler.register(signal.SIGPROF, file=screen, chain=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.unregister(signal.SIGPROF)


def _run(name, place, first, count, seconds, seed):
    make, attempt = ENTRIES[name](place)
    home = place if ENTRIES[name] not in engine.ENTRIES else None
    for number in range(20):  # one-time preparations do not count
        _survive(attempt, make(_random(name, seed, number)), home)
    _forget_peak()
    accepted, refusals, slowest, base, number = 0, set(), 0.0, _peak(), first
    start = now = time.monotonic()
    armed = 0.0
    with open(place / "number", "w") as trying:  # tells which input it was if the process dies
        while number < first + count and now - start < seconds:
            if now - armed > 1:
                signal.setitimer(signal.ITIMER_PROF, HANG)
                os.ftruncate(2, 0)
                armed = now
            os.pwrite(trying.fileno(), b"%d" % number, 0)
            given = make(_random(name, seed, number))
            begin = time.process_time()
            try:
                message = _survive(attempt, given, home)
            except BaseException as error:
                raise AssertionError(f"{name}, seed {seed}, input {number}: {type(error).__name__}: {error}") from error
            took, now = time.process_time() - begin, time.monotonic()
            slowest = max(slowest, took)
            assert took < SECONDS, f"{name}, seed {seed}, input {number}: {took:.1f} s"
            assert _peak() - base < MEGABYTES << 20, f"{name}, seed {seed}, input {number}: {_peak() - base >> 20} MB"
            if message is None:
                accepted += 1
            else:
                refusals.add("".join(c for c in message if c.isalpha() or c == " ")[-60:])
            number += 1
    return Result(number - first, accepted, len(refusals), now - start, slowest, _peak() - base)


def _random(name, seed, number):
    return Random(f"{name} {seed} {number}")


def _survive(attempt, given, place):
    """Returns None if the input was accepted, else the text of the refusal."""
    try:
        attempt(given)
    except REFUSED as error:
        if place is None:
            assert str(error) or isinstance(error, MemoryError)
        elif not isinstance(error, ValueError) or str(place) not in str(error):
            raise
        return str(error)
    return None


def _forget_peak():
    """Resets the peak, because what another test needed says nothing about the inputs to come."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak():
    """The most bytes that this process had in memory since the peak was forgotten."""
    status = os.pread(_STATUS, 4096, 0)
    begin = status.index(b"VmHWM:") + 6
    return int(status[begin : status.index(b"kB", begin)]) << 10


_STATUS = os.open("/proc/self/status", os.O_RDONLY)
