"""python -m training STAGE: one stage of the default model's training, or all of them."""

import argparse
from pathlib import Path

import torch

from training import vae


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=["vae", "decoder"])
    parser.add_argument("--pictures", type=Path, default=Path("../shared/training-images"))
    parser.add_argument("--held-out", type=Path, default=Path("../shared/test-images/free"))
    parser.add_argument("--out", type=Path, default=Path("build/training"), help="the model folder to make")
    parser.add_argument("--init", type=Path, help="a model folder to start from instead of random weights")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    settings = vae.Settings(
        training_folder=options.pictures,
        held_out_folder=options.held_out,
        out=options.out,
        init=options.init,
        steps=options.steps or 3000,
        seed=options.seed,
        decoder_only=options.stage == "decoder",
    )
    vae.train(settings)


if __name__ == "__main__":
    main()
