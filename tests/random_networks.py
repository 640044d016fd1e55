"""Seeded random weights under the published names, and images, for tests of measures by networks. NumPy alone, so that
tests/references/make_metrics.py gives the well-kept packages the same."""

import numpy as np


def weights(shapes, seed=0):
    """{name: float32 array} that keeps the activations' size; positive where the published weights are."""
    random = np.random.default_rng(seed)
    values = {}
    for name, shape in sorted(shapes.items()):
        noise = random.standard_normal(shape, np.float32)
        if name.startswith("lin"):
            values[name] = np.abs(noise)
        elif len(shape) == 4:
            values[name] = noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif name.endswith("running_var"):
            values[name] = 1 + np.abs(noise) / 4
        else:
            values[name] = noise / 10 + np.float32(name.endswith("bn.weight"))
    return values


def smooth_image(seed, height, width):
    """(height, width, 3) uint8: smooth, with some noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [
        np.sin(random.uniform(2, 20, 2) @ [rows.ravel(), columns.ravel()] + random.uniform(0, 6)) for _ in range(3)
    ]
    smooth = np.stack(waves, -1).reshape(height, width, 3)
    return np.uint8(np.clip(128 + 90 * smooth + 20 * random.standard_normal(smooth.shape), 0, 255))


def summary(features):
    """Three numbers that change if any feature does, or two change places."""
    values = features.astype(np.float64).ravel()
    places = np.arange(values.size)
    return [float(values @ weights) for weights in (np.ones(values.size), np.cos(places), np.cos(places * 1.7))]


def write_weights(root):
    """Random weights of all networks under the published files' names, with layers in them that nothing here needs."""
    import torch

    from styleid.metrics import networks
    from styleid.metrics.weights import FILES

    art, original = (networks.inception(tensorflow) for tensorflow in (False, True))
    made = {"alexnet": networks.alexnet(), "lpips": networks.Heads(), "vgg19": networks.vgg19()}
    for name, network in (made | {"art": art, "inception": original}).items():
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items() if value.ndim}
        state = {key: torch.tensor(value) for key, value in weights(shapes).items()}
        torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, root / FILES[name].file)
    return root
