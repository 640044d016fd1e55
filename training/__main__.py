"""python -m training STAGE: makes the default model, or one stage of it.

linear    the autoencoder as a linear transform coder (minutes)
decoder   its decoder as a deep network
unet      the UNet; needs `linear`, and does not need `decoder`
all       the three in turn, then the attribution file
evaluate  scores and sheets of a model folder

Every stage goes on from its last checkpoint, at most a minute old, wherever it was interrupted.
"""

import argparse
from pathlib import Path

from training import attribution, pictures, unet, vae, workers

STEPS = {"linear": 1600, "decoder": 3000, "unet": 6000}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STEPS, "all", "evaluate"])
    parser.add_argument("--pictures", type=Path, default=Path("../shared/training-images"), help="a folder of pictures")
    parser.add_argument("--held-out", type=Path, default=Path("../shared/test-images/free"), help="never trained on")
    parser.add_argument("--out", type=Path, default=Path("build/training"), help="the model folder to make or measure")
    parser.add_argument("--init", type=Path, help="a model folder with fewer latent channels, whose UNet to take over")
    parser.add_argument(
        "--steps",
        type=int,
        help="of the stage; of a stage under way too: its learning rate follows; evaluate: DDIM steps",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="training processes, one core each")
    return parser.parse_args()


def train(stage: str, options: argparse.Namespace, training: list, held_out: list) -> None:
    common = {
        "training": training,
        "held_out": held_out,
        "out": options.out,
        "steps": options.steps or STEPS[stage],
        "seed": options.seed,
    }
    if stage == "linear":
        settings = vae.Settings(**common, init=options.init)
        workers.run(1, lambda: vae.train_linear(settings))
    elif stage == "decoder":
        workers.run(options.workers, lambda: vae.train_decoder(vae.Settings(**common)))
    else:
        settings = unet.Settings(**common, init=options.init)
        workers.run(options.workers, lambda: unet.train(settings))


def main() -> None:
    options = parse()
    if options.stage == "evaluate":
        from training import evaluate  # needs the built engine, which training does not

        evaluate.run(options.out, options.held_out, options.out / "evaluation", options.steps or 50)
        return
    (options.out / "work").mkdir(parents=True, exist_ok=True)
    # Read before the worker processes start, so that they share one copy.
    training = list(pictures.read_folder(options.pictures).values())
    held_out = list(pictures.read_folder(options.held_out).values())
    if options.stage != "all":
        train(options.stage, options, training, held_out)
        return
    if not (options.out / "vae").exists():
        train("linear", options, training, held_out)
    for stage in ("decoder", "unet"):
        train(stage, options, training, held_out)
    manifest = options.pictures / "manifest.csv"
    if manifest.exists():
        attribution.write(manifest, options.out / "ATTRIBUTION")


if __name__ == "__main__":
    main()
