"""Several single-threaded processes that train one model: each takes its share of the batch, gradients are averaged.

One process with two threads waits for its slower thread at every operation, so it crawls where other programs use the
same cores; processes wait for each other once a step.
"""

import os
import tempfile
from collections.abc import Callable

import torch
from torch import distributed, multiprocessing


def run(count: int, work: Callable[[], None]) -> None:
    """Calls work() in `count` processes; returns when all are done, and fails when one fails. A single one is this process."""
    if count == 1:
        # CUDA does not outlive a fork where something has initialized it before.
        work()
        return
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        # fork: the processes keep this program's name, so that they can be found, paused and ended together.
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_enter, args=(rank, count, rendezvous, work)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("a training process failed")


def _enter(rank: int, count: int, rendezvous: str, work: Callable[[], None]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=count)
    work()
    distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes, in one exchange."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= count()
    place = 0
    for gradient in gradients:
        gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
        place += gradient.numel()


def agreed(value: float) -> float:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    distributed.broadcast(shared, 0)
    return shared.item()


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        distributed.barrier()
