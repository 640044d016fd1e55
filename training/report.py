"""What a run tells of itself: rows of losses, and scores and a sheet of a few transfers now and then."""

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import log, method, networks, scores, sheets
from training.checkpoint import Run

LOSS_STEPS = 25
# The transfers that are scored during training: quick ones.
STEPS, LAYERS, GAMMA, TEMPERATURE = 10, tuple(range(6, 12)), 0.0, 2.0


class Report:
    """Writes losses.csv, scores.csv, their plots and sheets into a folder."""

    def __init__(
        self, folder: Path, losses: list[str], pairs: list[tuple[np.ndarray, np.ndarray]], score_every_seconds: float
    ) -> None:
        self.folder, self.losses, self.pairs, self.score_every_seconds = folder, losses, pairs, score_every_seconds
        self.scored = time.monotonic()
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, run: Run, parts: dict[str, torch.Tensor]) -> None:
        """Counts the losses of a step; writes their means now and then. The sums stay on their device until then."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        if run.step % LOSS_STEPS == 0:
            self.write_losses(run)

    def write_losses(self, run: Run) -> None:
        """A row of means since the last one; a loss that no step had is left empty."""
        if self.counts:
            means: dict[str, float | str] = dict.fromkeys(self.losses, "")
            means |= {name: round(float(total) / self.counts[name], 4) for name, total in self.sums.items()}
            if not all(math.isfinite(value) for value in means.values() if value != ""):
                raise RuntimeError(f"losses are no numbers: {means}")
            row = {"step": run.step, "seconds": round(run.seconds)} | means
            print(row, flush=True)
            log.append_row(self.folder / "losses.csv", row)
            self.sums, self.counts = {}, {}

    def plot(self) -> None:
        """Draws the losses; a GPU takes many steps in that time."""
        if (self.folder / "losses.csv").exists():
            log.plot(self.folder / "losses.csv", self.losses, self.folder / "losses.png")

    def due(self) -> bool:
        return bool(self.pairs) and time.monotonic() - self.scored > self.score_every_seconds

    def write(self, run: Run, vae: AutoencoderKL) -> None:
        """Scores the averaged weights on the pairs, if there are any, and lays the results out."""
        self.write_losses(run)
        self.plot()
        if not self.pairs:
            return
        run.average.swap(run.module)
        results = [transferred(run.module, vae, content, style) for content, style in self.pairs]
        run.average.swap(run.module)
        measures = scores.Measures(copy.deepcopy(vae).cpu())
        rows = [measures(content, style, result) for (content, style), result in zip(self.pairs, results)]
        row = {"step": run.step, "seconds": round(run.seconds)} | scores.Row.mean(rows).rounded()
        print("scores", row, flush=True)
        log.append_row(self.folder / "scores.csv", row)
        log.plot(self.folder / "scores.csv", list(row)[2:], self.folder / "scores.png")
        columns = [[content for content, _ in self.pairs], [style for _, style in self.pairs], results]
        sheets.save(sheets.grid(columns), self.folder / f"sheet-{run.step:06d}.jpg")
        self.scored = time.monotonic()


@torch.no_grad()
def transferred(model: method.Denoiser, vae: AutoencoderKL, content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """One quick transfer."""
    with networks.quick_arithmetic(vae.device):
        latents = method.encode(vae, [content, style]).float()
        inversions = [method.invert(model, part, method.timesteps(STEPS), LAYERS) for part in latents.chunk(2)]
        return method.decode(vae, method.transfer(model, *inversions, STEPS, LAYERS, GAMMA, TEMPERATURE).float())[0]
