"""Processes made from one that has used a model: the child computes what its parent does, or ends; it never waits."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

START = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
import team_program as p

def in_child(call):
    '''The exit status of a child that makes the call.'''
    child = os.fork()
    if not child:
        signal.alarm(60)
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]

def same(model=None):
    found = p.digest(p.model(threads=2) if model is None else model)
    assert found == expected, found

model = p.model(threads=2)
expected = p.digest(model)
"""


def run(program, first=""):
    process = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", first + START + program],
        capture_output=True, text=True, cwd="/", timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr


def test_the_parents_model_in_a_child():
    run("""
assert in_child(lambda: same(model)) == 0
same(model)
assert in_child(lambda: (same(model), same())) == 0  # a second child, which makes a model of its own as well
""")


def test_children_of_children_and_of_threads():
    run("""
def with_child():
    same(model)
    assert in_child(lambda: same(model)) == 0
    same(model)

assert in_child(with_child) == 0
thread = threading.Thread(target=with_child)
thread.start()
thread.join()
same(model)
""")


def test_a_child_of_a_process_that_has_not_computed():
    run("""
fresh = p.model(threads=2)
thread = threading.Thread(target=lambda: None)
assert in_child(lambda: same(fresh)) == 0
""")


def test_a_fork_within_a_run():
    """In a callback: child and parent both finish the run that they are in."""
    run("""
children = []

def fork(step, steps):
    if step == 2:
        children.append(os.fork())
        if not children[0]:
            signal.alarm(60)

try:
    assert p.digest(model, progress=fork) == expected
except BaseException:
    if not children[0]:
        os._exit(1)
    raise
if not children[0]:
    os._exit(0)
assert os.waitpid(children[0], 0)[1] == 0
""")


def test_forks_while_other_threads_compute_and_load():
    run("""
import tiny
done = threading.Event()

def compute(i):
    side = 4
    while not done.is_set():  # sizes that the model has not seen, so that primitives are made
        side = side % 60 + 2
        model.predict_noise(tiny.latents(height=side, width=2 + 2 * i), 1, tiny.CONTEXT)

def load():
    while not done.is_set():
        p.model(threads=2)

threads = [threading.Thread(target=compute, args=(i,)) for i in range(2)] + [threading.Thread(target=load)]
for thread in threads:
    thread.start()
try:
    for i in range(12):
        assert in_child(lambda: (same(model), i % 3 or same())) == 0
finally:
    done.set()
for thread in threads:
    thread.join()
same(model)
""")


def test_the_default_model_while_another_thread_loads_it():
    run("""
from styleid.models import loading
held, done = threading.Event(), threading.Event()

def hold():
    with loading._default_lock:
        held.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
assert in_child(lambda: loading.default_model()) == 0
done.set()
""")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_start_methods(method, tmp_path):
    """Those of multiprocessing, with a model made before the workers (fork) or by each of them."""
    script = tmp_path / "workers.py"
    script.write_text(
        START
        + f"""
import multiprocessing

def work(_):
    return p.digest(model)

if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert pool.map_async(work, range(4)).get(timeout=120) == [expected] * 4
    same(model)
"""
    )
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert process.returncode == 0, process.stderr


def test_a_pool_of_the_standard_library():
    run("""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def work(_):
    return p.digest(model)

with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    assert list(pool.map(work, range(4), timeout=120)) == [expected] * 4
""")


@pytest.mark.torch
@pytest.mark.parametrize("first", ["import torch", ""], ids=["before", "after"])
def test_workers_of_pytorch(first):
    """A DataLoader whose data set transfers styles, as in an augmentation; PyTorch brings an OpenMP of its own."""
    pytest.importorskip("torch")
    run(
        first=first,
        program="""
import torch

class Styled(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return p.digest(model)

torch.ones(1 << 18).sum()
loader = torch.utils.data.DataLoader(Styled(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120)
assert list(loader) == [expected] * 4
""",
    )
