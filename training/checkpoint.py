"""What lets an interrupted run go on: atomic checkpoints, and a moving average of the weights."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from training import workers

SAVE_EVERY_SECONDS = 60


def save_atomically(value: object, path: Path) -> None:
    """torch.save that leaves either the old file or the whole new one, whenever it is interrupted."""
    partial = path.with_suffix(path.suffix + ".part")
    torch.save(value, partial)
    os.replace(partial, path)


class MovingAverage:
    """Exponential moving average of a module's parameters: a better model than any single step's."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.updates += 1
        # Young averages forget faster, so that the first weights do not linger.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [parameters[n].detach() for n in self.values], 1 - decay)

    @torch.no_grad()
    def swap(self, module: torch.nn.Module) -> None:
        """Exchanges the averaged and the trained weights; call it again to swap back."""
        for name, parameter in module.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)


# Makes the optimisers of parameters at a peak rate.
Optimisers = Callable[[list[torch.nn.Parameter], torch.Tensor], list[torch.optim.Optimizer]]


def adamw(parameters: list[torch.nn.Parameter], rate: torch.Tensor) -> list[torch.optim.Optimizer]:
    """The rate is a tensor on their device, so that a recorded step follows it."""
    options = {"fused": True, "capturable": rate.is_cuda}
    return [torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=1e-4, **options)]


class Run:
    """A module in training with its optimiser and average, saved and resumed as one.

    Random numbers need no saving: every step of every process seeds its own, from the run's seed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        path: Path,
        seed: int,
        rate: float,
        decay: float,
        optimisers: Optimisers = adamw,
    ) -> None:
        self.module = module
        self.path = path
        self.seed = seed
        self.rate = rate
        self.step = 0
        self.saved = self.ticked = time.monotonic()
        self.seconds = 0.0
        self.average = MovingAverage(module, decay)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimisers = optimisers(trained, torch.tensor(rate, device=trained[0].device))
        # Of the last step's gradient.
        self.norm = torch.zeros(())
        if path.exists():
            self._load()

    def progress(self, seconds: float) -> float:
        """How much of the time is used, all sittings together; the first process's clock holds for all."""
        return workers.agreed(self.seconds / seconds)

    def begin_step(self, progress: float, warmup: int) -> np.random.Generator:
        """Sets the learning rate (`progress` from 0 to 1 is through the whole run) and seeds this step's random numbers."""
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"].fill_(rate_at(self.step, progress, self.rate, warmup))
        sequence = np.random.SeedSequence([self.seed, self.step, workers.rank()])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        return np.random.default_rng(sequence)

    def descend(self, loss: torch.Tensor, clip: float) -> torch.Tensor:
        """Back-propagates and moves the weights, by tensors alone; returns the norm of the gradient."""
        self.module.zero_grad()
        loss.backward()
        parameters = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        workers.average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        for optimiser in self.optimisers:
            optimiser.step()
        return norm

    def changes(self) -> list[torch.Tensor]:
        """The tensors that `descend` changes."""
        states = [state for optimiser in self.optimisers for state in optimiser.state.values()]
        return [*self.module.parameters(), *(value for state in states for value in state.values())]

    def finish_step(self, norm: torch.Tensor) -> None:
        """After `descend`: moves the average and the clock."""
        self.norm = norm
        if not norm.is_cuda:
            self.check()
        self.average.update(self.module)
        self.step += 1
        now = time.monotonic()
        self.seconds, self.ticked = self.seconds + now - self.ticked, now

    def check(self) -> None:
        """Stops the run if the last gradient was no number; all after such a one are none. On a GPU this waits for the step."""
        if not math.isfinite(float(self.norm)):
            raise RuntimeError(f"the norm of the gradient is {float(self.norm)} after {self.step} steps")

    def save_now_and_then(self) -> bool:
        """Saves when the last time is a while ago, and says so; only the first process writes."""
        due = workers.rank() == 0 and time.monotonic() - self.saved > SAVE_EVERY_SECONDS
        if due:
            self.save()
            self.saved = time.monotonic()
        return due

    def save(self) -> None:
        self.check()
        save_atomically(
            {
                "module": self.module.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "average": self.average.values,
                "updates": self.average.updates,
                "step": self.step,
                "seconds": self.seconds,
            },
            self.path,
        )

    def _load(self) -> None:
        # weights_only: a checkpoint is data, and never runs code.
        device = next(self.module.parameters()).device
        state = torch.load(self.path, weights_only=True, map_location=device)
        self.module.load_state_dict(state["module"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(kept)
        self.average.values = state["average"]
        self.average.updates = state["updates"]
        self.step = state["step"]
        self.seconds = state["seconds"]
        print(f"resumed {self.path.name} at step {self.step}", flush=True)


def rate_at(step: int, progress: float, peak: float, warmup: int) -> float:
    """Warm up, stay, and fall along a cosine over the last 40 % of the run."""
    if step < warmup:
        return peak * (step + 1) / warmup
    fall = max(0.0, (progress - 0.6) / 0.4)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))
