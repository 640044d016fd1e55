"""Measures a model folder on held-out pictures, by the engine: writes scores.json and sheets for the docs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import styleid
from training import gaussian, networks, pictures, scores, sheets
from training.attention import DECODER_LAYERS
from training.unet import SCORED_TIMES

GAMMAS = (0.3, 0.5, 0.75, 0.9)
TEMPERATURES = (1.0, 1.5, 2.0)
# The four pairs of the side-by-side comparison.
PAIRS = (
    ("kodak__kodim23", "styleid__wave"),
    ("kodak__kodim15", "styleid__the_starry_night"),
    ("kodak__kodim19", "mst21__composition_vii"),
    ("kodak__kodim03", "standardebooks__frances-hodgson-burnett_the-secret-garden"),
)
SHEET_CONTENTS = tuple(f"kodak__kodim{number}" for number in ("03", "07", "15", "19", "21", "23"))
SHEET_STYLES = (
    "styleid__wave",
    "styleid__the_starry_night",
    "mst21__composition_vii",
    "standardebooks__frances-hodgson-burnett_the-secret-garden",
    "styleid__the_scream",
    "styleid__udnie",
)


@dataclass(frozen=True)
class Recipe:
    """How to inject: what styleid.json of a model folder recommends, or the published defaults."""

    gamma: float = 0.75
    temperature: float = 1.5
    layers: tuple[int, ...] = tuple(range(6, 12))

    @classmethod
    def of(cls, folder: Path) -> "Recipe":
        path = folder / "styleid.json"
        if not path.exists():
            return cls()
        values = json.loads(path.read_text())
        return cls(values["gamma"], values["temperature"], tuple(values["layers"]))


class Bench:
    """A loaded model with held-out pictures; each is inverted once, by the corrected schedule."""

    def __init__(self, folder: Path, squares: dict[str, np.ndarray], steps: int) -> None:
        self.model = styleid.load_model(str(folder))
        self.squares = squares
        self.steps = steps
        self.inversions: dict[tuple[str, str], styleid.Inversion] = {}

    def inversion(self, name: str, keep: str) -> styleid.Inversion:
        """`keep`: "query" of a content, "keys" (and values) of a style, as styleid.invert takes it."""
        if (name, keep) not in self.inversions:
            self.inversions[name, keep] = styleid.invert(
                self.squares[name],
                self.model,
                self.steps,
                schedule="corrected",
                layers=DECODER_LAYERS,
                keep=keep,
                feature_dtype="bfloat16",
            )
        return self.inversions[name, keep]

    def transfer(self, content: str, style: str, recipe: Recipe, **switches: bool) -> np.ndarray:
        return styleid.inject_styles(
            self.inversion(content, "query"),
            self.inversion(style, "keys"),
            self.model,
            recipe.gamma,
            recipe.temperature,
            layers=recipe.layers,
            **switches,
        )

    def compare(self, content: str, style: str, result: np.ndarray) -> tuple[float, float]:
        """(palette, structure); training/scores.py defines them."""
        pixels = self.squares[content]
        return scores.palette(pixels, self.squares[style], result), scores.structure(pixels, result)


def squares_of(held_out: Path, side: int) -> dict[str, np.ndarray]:
    """The held-out pictures by name, as centred squares."""
    read = pictures.read_folder(held_out)
    return {Path(name).stem: pictures.centre_square(pixels, side) for name, pixels in read.items()}


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two uint8 pictures."""
    return float(-10 * np.log10(max(1e-12, np.square((a.astype(float) - b) / 255).mean())))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two uint8 pictures."""
    return scores.ssim(*(pictures.to_tensor(x)[None] / 2 + 0.5 for x in (a, b))).item()


def autoencoder(bench: Bench) -> dict[str, object]:
    """PSNR and SSIM of encoding and decoding, in the mean and picture by picture."""
    each = {}
    for name, square in bench.squares.items():
        output = bench.model.decode(bench.model.encode(square))
        each[name] = (round(decibels(square, output), 2), round(similarity(square, output), 3))
    mean = np.mean(list(each.values()), 0)
    return {"psnr": round(float(mean[0]), 2), "ssim": round(float(mean[1]), 3), "each": each}


def inversion_error(bench: Bench, names: list[str]) -> dict[str, object]:
    """PSNR of inversion and sampling without style, against the autoencoder's own reconstruction."""
    each = {}
    for name in names:
        target = bench.model.decode(bench.model.encode(bench.squares[name]))
        each[name] = round(decibels(target, bench.inversion(name, "query").reconstruct()), 2)
    return {"mean": round(float(np.mean(list(each.values()))), 2), "each": each}


def denoising(bench: Bench) -> dict[int, tuple[float, float]]:
    """By timestep: the UNet's loss, and that of the Gaussian denoiser fitted to the same latents."""
    latents = np.concatenate([bench.model.encode(square) for square in bench.squares.values()])
    noise = np.random.default_rng(0).standard_normal(latents.shape, np.float32)
    alpha = networks.noise_levels()
    losses = {}
    for time in SCORED_TIMES:
        level = float(alpha[time])
        noisy = np.float32(level**0.5) * latents + np.float32((1 - level) ** 0.5) * noise
        # The engine gives what the UNet predicts, v: e = sqrt(alpha) v + sqrt(1 - alpha) z.
        estimates = [level**0.5 * bench.model.predict_noise(x[None], time)[0] + (1 - level) ** 0.5 * x for x in noisy]
        errors = [np.square(estimate - e).mean() for estimate, e in zip(estimates, noise)]
        losses[time] = round(float(np.mean(errors)), 4), round(gaussian.loss(torch.from_numpy(latents), alpha[time]), 4)
    return losses


def mean_scores(bench: Bench, pairs, recipe: Recipe, **switches: bool) -> tuple[dict[str, object], list[np.ndarray]]:
    """Mean palette and structure over pairs, and the results."""
    results = [bench.transfer(content, style, recipe, **switches) for content, style in pairs]
    rows = [bench.compare(content, style, result) for (content, style), result in zip(pairs, results)]
    palette, structure = (round(float(value), 3) for value in np.mean(rows, 0))
    each = [[round(value, 3) for value in row] for row in rows]
    return {"palette": palette, "structure": structure, "each": each}, results


def settings_sweep(bench: Bench, layers: tuple[int, ...]) -> dict[str, object]:
    """The four pairs at every gamma and temperature."""
    table = {}
    for gamma in GAMMAS:
        for temperature in TEMPERATURES:
            table[f"{gamma} {temperature}"], _ = mean_scores(bench, PAIRS, Recipe(gamma, temperature, layers))
    return table


def ablation(bench: Bench, recipe: Recipe, target: Path) -> dict[str, object]:
    """The four pairs with AdaIN alone, injection alone, and both."""
    rows = [[bench.squares[content] for content, _ in PAIRS], [bench.squares[style] for _, style in PAIRS]]
    table = {}
    switches = {"AdaIN alone": {"inject": False}, "injection alone": {"adain": False}, "both": {}}
    for name, chosen in switches.items():
        table[name], results = mean_scores(bench, PAIRS, recipe, **chosen)
        rows.append(results)
    sheets.save(sheets.grid(rows), target)
    return table


def sheet(bench: Bench, recipe: Recipe, target: Path) -> dict[str, float]:
    """All contents (rows) with all styles (columns); returns the mean scores."""
    rows = [[None] + [bench.squares[style] for style in SHEET_STYLES]]
    values = []
    for content in SHEET_CONTENTS:
        results = [bench.transfer(content, style, recipe) for style in SHEET_STYLES]
        values += [bench.compare(content, style, result) for style, result in zip(SHEET_STYLES, results)]
        rows.append([bench.squares[content]] + results)
    sheets.save(sheets.grid(rows), target)
    palette, structure = (round(float(value), 3) for value in np.mean(values, 0))
    return {"palette": palette, "structure": structure}


def large(folder: Path, held_out: Path, steps: int, recipe: Recipe, target: Path) -> dict[str, object]:
    """The four pairs at 512x512."""
    bench = Bench(folder, squares_of(held_out, 512), steps)
    table, results = {}, []
    for pair in PAIRS:
        table[" x ".join(pair)], (result,) = mean_scores(bench, [pair], recipe)
        results.append(result)
        # The features of one pair fill more than a gigabyte at this size.
        bench.inversions.clear()
    sheets.save(sheets.grid([results]), target)
    return table


def run(folder: Path, held_out: Path, out: Path, steps: int) -> None:
    """Everything that docs/default-model.md reports."""
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, squares_of(held_out, 256), steps)
    recipe = Recipe.of(folder)
    contents = [name for name in bench.squares if name.startswith("kodak")]
    parts = {
        "autoencoder": lambda: autoencoder(bench),
        "denoising": lambda: denoising(bench),
        "published settings": lambda: mean_scores(bench, PAIRS, Recipe())[0],
        "ablation": lambda: ablation(bench, recipe, out / "ablation.jpg"),
        "sweep": lambda: settings_sweep(bench, recipe.layers),
        "sheet": lambda: sheet(bench, recipe, out / "sheet.jpg"),
        "inversion": lambda: inversion_error(bench, contents),
        "512x512": lambda: large(folder, held_out, steps, recipe, out / "large.jpg"),
    }
    results: dict[str, object] = {}
    for name, part in parts.items():
        results[name] = part()
        print(name, results[name], flush=True)
        networks.write_json(out / "scores.json", results)
