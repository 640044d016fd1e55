"""python -m training [STAGE]: trains the default model, or measures it.

unet      (default) teaches the UNet of a model folder to draw; the program behind the shipped weights
linear    the autoencoder as a linear transform coder (minutes); only for a model from nothing
decoder   its decoder as a deep network; after `linear`
evaluate  scores and sheets of a model folder, by the engine

Every training stage goes on from its last checkpoint, at most a minute old, wherever it was interrupted.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from training import attribution, crops, images, pairs, unet, vae, workers

SHIPPED = Path(__file__).parents[1] / "styleid" / "data" / "default-model"
STEPS = {"linear": 1600, "decoder": 3000, "evaluate": 20}


def weight(text: str) -> tuple[str, float]:
    """NAME=VALUE of --weight."""
    name, _, value = text.partition("=")
    names = [field.name for field in dataclasses.fields(unet.Weights)]
    if name not in names:
        raise argparse.ArgumentTypeError(f"is NAME=VALUE with one of {', '.join(names)}, not {text!r}")
    return name, float(value)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", nargs="?", default="unet", choices=["unet", "linear", "decoder", "evaluate"])
    parser.add_argument("--images", type=Path, help="a folder of training images; training/README.md says which")
    parser.add_argument("--held-out", type=Path, help="a folder with the images of --pairs, which are never trained on")
    parser.add_argument("--pairs", type=Path, default=pairs.CHOSEN, help="a table of contents and styles")
    parser.add_argument("--out", type=Path, default=Path("build/training"), help="the model folder to make or measure")
    parser.add_argument("--init", type=Path, help="unet: the model folder to begin with (default: the shipped one)")
    parser.add_argument("--seconds", type=float, default=36000, help="unet: training time, all sittings together")
    parser.add_argument("--batch", type=int, default=4, help="unet: transfers of 32x32 latents in a step; 32 on a GPU")
    parser.add_argument(
        "--rate", type=float, default=8e-4, help="unet: the peak learning rate; 1.2e-3 with batches of 32"
    )
    parser.add_argument("--weight", type=weight, action="append", default=[], metavar="NAME=VALUE", help="of a loss")
    parser.add_argument("--device", default="cpu", help="unet: cpu, or cuda for all of it on one GPU")
    parser.add_argument("--steps", type=int, help="linear, decoder: training steps; evaluate: DDIM steps")
    parser.add_argument("--parts", nargs="+", help="evaluate: some of its parts (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="training processes on the CPU, one core each")
    options = parser.parse_args()
    if options.stage != "evaluate" and options.images is None:
        parser.error(f"{options.stage} needs --images")
    if options.stage != "unet" and options.held_out is None:
        parser.error(f"{options.stage} needs --held-out")
    if options.init and options.init.resolve() == options.out.resolve():
        parser.error("--init and --out are the same folder; a run goes on from its own checkpoint without --init")
    options.steps = options.steps or STEPS.get(options.stage)
    return options


def train_autoencoder(options: argparse.Namespace) -> None:
    training, held_out = (list(images.read_folder(folder).values()) for folder in (options.images, options.held_out))
    settings = vae.Settings(training, held_out, options.out, options.steps, options.seed)
    if options.stage == "linear":
        workers.run(1, lambda: vae.train_linear(settings))
    else:
        workers.run(options.workers, lambda: vae.train_decoder(settings))


def train_unet(options: argparse.Namespace) -> None:
    squares = []
    if options.held_out:
        squares = [
            pairs.squares(pair, 256) for pair in pairs.read(options.pairs, options.held_out)[: unet.SCORED_PAIRS]
        ]
    settings = unet.Settings(
        images=images.read_folder(options.images),
        kinds=crops.kinds_of(options.images),
        init=options.init or SHIPPED,
        out=options.out,
        seconds=options.seconds,
        seed=options.seed,
        batch=options.batch,
        device=options.device,
        rate=options.rate,
        weights=unet.Weights(**dict(options.weight)),
        pairs=squares,
    )
    # One process feeds a GPU.
    workers.run(options.workers if options.device == "cpu" else 1, lambda: unet.train(settings))
    manifest = options.images / "manifest.csv"
    if manifest.exists():
        attribution.write(manifest, options.out / "ATTRIBUTION")


def main() -> None:
    options = parse()
    if options.stage == "evaluate":
        from training import evaluate  # needs the built engine, which training does not

        chosen = pairs.read(options.pairs, options.held_out)
        evaluate.run(options.out, chosen, options.out / "evaluation", options.steps, options.parts)
        return
    (options.out / "work").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.stage == "unet":
        train_unet(options)
    else:
        train_autoencoder(options)


if __name__ == "__main__":
    main()
