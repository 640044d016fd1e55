"""Writes metrics.json: what the well-kept packages say, with seeded random weights, of seeded images.

Not run by the tests. In an environment of its own: lpips 0.1.4, pytorch-fid 0.3.0, art-fid 0.0.2 (without their
dependencies' pins), torchvision, SciPy and scikit-learn, with the tests' folder on PYTHONPATH.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
library = torch.library.Library(
    "torchvision", "DEF"
)  # its import fails beside a CPU build of PyTorch unless these exist
for name in "nms", "qnms":
    library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

import art_fid.art_fid
import art_fid.inception
import lpips
import pytorch_fid.fid_score
import pytorch_fid.inception
import torchvision
from random_networks import smooth_image, summary, weights


def tensor(image):
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


def of_lpips():
    network = torchvision.models.alexnet(weights=None)
    shapes = {name: tuple(value.shape) for name, value in network.features.state_dict().items()}
    values = weights({f"features.{name}": shape for name, shape in shapes.items()})
    network.features.load_state_dict({name: torch.tensor(values[f"features.{name}"]) for name in shapes})
    with mock.patch.object(lpips.pn.tv, "alexnet", lambda **_: network):
        distance = lpips.LPIPS(net="alex", pretrained=False, verbose=False)
    heads = weights({f"lin{i}.model.1.weight": (1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))})
    distance.load_state_dict({name: torch.tensor(value) for name, value in heads.items()}, strict=False)
    return [
        float(distance(tensor(smooth_image(0, *s)), tensor(smooth_image(1, *s)), normalize=True))
        for s in ((64, 64), (48, 100))
    ]


def of_vgg():
    network = torchvision.models.vgg19(weights=None).features[:12]
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    values = weights({f"features.{name}": shape for name, shape in shapes.items()})
    network.load_state_dict({name: torch.tensor(values[f"features.{name}"]) for name in shapes})
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = [network((tensor(smooth_image(seed, 32, 48)) - mean) / deviation)[0] for seed in (0, 1)]
    features = [(m.permute(1, 2, 0).reshape(-1, 256) / 256).double() for m in maps]
    logs = [torch.log_softmax(f @ f.T, -1) for f in features]
    return {
        "features": [summary(m.numpy()) for m in maps],
        "cfsd": float(torch.nn.functional.kl_div(logs[0], logs[1].exp(), reduction="sum")),
    }


def of_inception():
    art = art_fid.inception.Inception3()
    shapes = {n: tuple(v.shape) for n, v in art.state_dict().items() if v.ndim and "Aux" not in n and "fc" not in n}
    state = {name: torch.tensor(value) for name, value in weights(shapes).items()}
    art.load_state_dict(state, strict=False)
    art.eval()

    def load(url, progress):
        return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)} | counters

    counters = {name: torch.tensor(0) for name in art.state_dict() if name.endswith("tracked") and "Aux" not in name}
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", load):
        original = pytorch_fid.inception.InceptionV3().eval()
    found = {}
    for name, run in {
        "art": lambda x: art(x, return_features=True)[0],
        "inception": lambda x: original(x)[0][0, :, 0, 0],
    }.items():
        features = run(tensor(smooth_image(0, 96, 120)))
        found[name] = summary(features.numpy())
    return found


def of_distances():
    random = np.random.default_rng(0)
    first, second = (
        random.standard_normal((60, 16)),
        random.standard_normal((50, 16)) @ random.standard_normal((16, 16)),
    )
    moments = [x for features in (first, second) for x in (features.mean(0), np.cov(features, rowvar=False))]
    return {"frechet": float(pytorch_fid.fid_score.calculate_frechet_distance(*moments))}


def of_extrapolation():
    """art-fid's own, of features that are given to it in place of images', with our choice of pairs: 4 numbers each."""
    random = np.random.default_rng(1)
    features = {"a": random.standard_normal((10000, 4)), "b": random.standard_normal((10000, 4)) * 1.5 + 0.5}
    module = art_fid.art_fid
    found = {}
    for name, count in ("all", 10000), ("few", 800):
        ours = np.random.default_rng(0)
        with (
            mock.patch.object(
                np.random, "shuffle", lambda places, r=ours: np.copyto(places, r.permutation(len(places)))
            ),
            mock.patch.object(module.utils, "download", lambda _: None),
            mock.patch.object(module.torch, "load", lambda *_, **__: {}),
            mock.patch.object(module.inception, "Inception3", lambda: mock.MagicMock()),
            mock.patch.object(module, "get_image_paths", lambda path, n=count: [path] * n),
            mock.patch.object(module, "get_activations", lambda paths, *_: features[paths[0]][: len(paths)]),
        ):
            found[name] = float(module.compute_fid_infinity("a", "b", 1, "cpu"))
    return found


with torch.no_grad():
    found = {
        "lpips": of_lpips(),
        "vgg19": of_vgg(),
        "features": of_inception(),
        "distances": of_distances(),
        "extrapolated": of_extrapolation(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "lpips", "pytorch-fid", "art-fid")},
    }
Path(__file__).with_name("metrics.json").write_text(json.dumps(found, indent=1) + "\n")
