"""A function on buffers that stay where they are: called on CPUs; recorded once, and then replayed, on CUDA devices.

A training step is thousands of small operations. A recording (a CUDA graph) starts all of them at once.
"""

import functools
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

# Libraries choose their kernels and make their work space in the first calls.
WARM_UP = 3

Result = TypeVar("Result")


@functools.cache
def memory_pool() -> tuple[int, int]:
    """All recordings share their memory: none of them needs what another one has left there."""
    return torch.cuda.graph_pool_handle()


class Recorded(Generic[Result]):
    """Calls `function`, whose Python code must not depend on the values of tensors, nor wait for or copy any to the device.

    Replays write to the tensors of the first result: what is to last until the next call of any recording is to be
    copied. `changes` lists the tensors beside it that the function changes; recording leaves them as they are.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        device: torch.device,
        changes: Callable[[], list[torch.Tensor]] = lambda: [],
    ) -> None:
        self.function, self.device, self.changes = function, device, changes
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Result:
        if self.device.type != "cuda":
            return self.function()
        if self.graph is None:
            self.graph, self.result = self._record()
        self.graph.replay()
        return self.result

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Result]:
        before = {id(tensor): tensor.detach().clone() for tensor in self.changes()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory_pool()):
            result = self.function()
        restore(self.changes(), before)
        return graph, result


@torch.no_grad()
def restore(tensors: list[torch.Tensor], before: dict[int, torch.Tensor]) -> None:
    """Gives tensors their earlier values, by their identity; what came later (an optimiser's state) begins with zeros."""
    for tensor in tensors:
        if id(tensor) in before:
            tensor.copy_(before[id(tensor)])
        else:
            tensor.zero_()
