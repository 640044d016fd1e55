"""Measures by networks: with seeded random weights, against what the well-kept packages say (references/metrics.json)."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from random_networks import smooth_image, summary, write_weights
from scipy import linalg

from styleid import metrics

torch = pytest.importorskip("torch")
from styleid.metrics.weights import FILES

pytestmark = pytest.mark.torch

EXPECTED = json.loads((Path(__file__).parent / "references/metrics.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


def test_lpips(folder):
    sizes = (64, 64), (48, 100)
    found = [metrics.lpips(smooth_image(0, *size), smooth_image(1, *size), folder) for size in sizes]
    np.testing.assert_allclose(found, EXPECTED["lpips"], rtol=1e-5)
    assert metrics.lpips(smooth_image(0, 64, 64), smooth_image(0, 64, 64) / 255, folder) == pytest.approx(0, abs=1e-6)


def test_vgg_features_and_cfsd(folder):
    network = metrics.learned._network("vgg19", folder)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for seed, expected in enumerate(EXPECTED["vgg19"]["features"]):
        image = (smooth_image(seed, 32, 48) / 255 - mean) / deviation
        (maps,) = network(torch.tensor(image.transpose(2, 0, 1)[np.newaxis], dtype=torch.float32))
        np.testing.assert_allclose(summary(maps.detach().numpy()), expected, rtol=1e-4)
    found = metrics.cfsd(smooth_image(0, 32, 48), smooth_image(1, 32, 48), folder)
    assert found == pytest.approx(EXPECTED["vgg19"]["cfsd"], rel=1e-3)


@pytest.mark.parametrize("kind", ["art", "inception"])
def test_inception_features(folder, kind):
    features = metrics.inception_features([smooth_image(0, 96, 120), smooth_image(1, 96, 96)], kind, folder)
    assert features.shape == (2, 2048) and features.dtype == np.float32
    np.testing.assert_allclose(summary(features[0]), EXPECTED["features"][kind], rtol=1e-4)


def test_fid(folder):
    first, second = ([smooth_image(seed, 80, 80) for seed in seeds] for seeds in (range(3), range(3, 5)))
    features = [metrics.inception_features(each, "art", folder).astype(float) for each in (first, second)]
    assert metrics.fid(first, second, "art", folder) == pytest.approx(metrics.frechet_distance(*features))
    assert metrics.fid(first, first, "art", folder) == pytest.approx(0, abs=1e-6)


def test_evaluate_with_networks(folder):
    content, style = smooth_image(0, 64, 64), smooth_image(1, 48, 48)
    values = metrics.evaluate(smooth_image(2, 64, 64), content, style, networks=True, weights=folder)
    large = [metrics.at_protocol_size(image) for image in (smooth_image(2, 64, 64), content)]
    assert large[0].size == (512, 512)
    assert values["lpips"] == metrics.lpips(*large, folder)
    assert values["cfsd"] == metrics.cfsd(smooth_image(2, 64, 64), content, folder)
    assert list(values) == ["histogram_loss", "ssim", "psnr", "gradient_correlation", "lpips", "cfsd"]


def test_protocol_size():
    """As torchvision's Resize(512): the longer side is cut off to whole pixels."""
    assert metrics.at_protocol_size(smooth_image(0, 100, 151)).size == (773, 512)
    same = smooth_image(0, 512, 520)
    np.testing.assert_array_equal(metrics.at_protocol_size(same), same)


# ---- distances ----


def test_frechet_distance_by_scipy():
    """And by pytorch-fid; for fewer images than features, where the root of a singular product loses digits."""
    random = np.random.default_rng(0)
    first, second = (
        random.standard_normal((60, 16)),
        random.standard_normal((50, 16)) @ random.standard_normal((16, 16)),
    )
    assert metrics.frechet_distance(first, second) == pytest.approx(EXPECTED["distances"]["frechet"], rel=1e-9)
    for x, y in (first, second), (first[:5], second[:9]), (first, second[:9]):
        s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        root = np.trace(linalg.sqrtm(s1 @ s2)).real
        expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root
        assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_by_hand():
    """One feature: (m1 - m2)^2 + (s1 - s2)^2."""
    assert metrics.frechet_distance([[0.0], [2.0]], [[3.0], [7.0]]) == pytest.approx(4**2 + (2**0.5 - 8**0.5) ** 2)


def test_extrapolated_distance():
    """By art-fid, which takes all each time where images are few, so that its result is the plain one."""
    random = np.random.default_rng(1)
    first, second = random.standard_normal((10000, 4)), random.standard_normal((10000, 4)) * 1.5 + 0.5
    assert metrics.extrapolated_distance(first, second) == pytest.approx(EXPECTED["extrapolated"]["all"], rel=1e-6)
    few = metrics.frechet_distance(first[:800], second[:800])
    assert few == pytest.approx(EXPECTED["extrapolated"]["few"])
    assert metrics.extrapolated_distance(first[:800], second[:800]) != pytest.approx(few, rel=1e-4)


def test_extrapolation_is_a_line_over_1_by_n(monkeypatch):
    monkeypatch.setattr(metrics.sets, "frechet_distance", lambda x, _: 3 + 5 / len(x))
    assert metrics.extrapolated_distance(np.zeros((50, 2)), np.zeros((50, 2))) == pytest.approx(3)


def test_art_fid_of_the_paper():
    assert metrics.art_fid(0.5055, 18.131) == pytest.approx(28.801, abs=1e-3)


def test_structural_distance_by_hand():
    """Several blocks of rows, of 33 x 40 positions; the plain formula in float64."""
    random = np.random.default_rng(0)
    result, content = 4 * random.random((2, 3, 33, 40))
    maps = [x.reshape(3, -1).T / 3 for x in (result, content)]
    logits = [f @ f.T for f in maps]
    q, p = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in logits)
    expected = (p * np.log(p / q)).sum()
    assert metrics.structural_distance(result, content) == pytest.approx(expected, rel=1e-6)
    assert metrics.structural_distance(content, content) == 0
    moved = content[:, ::-1]  # the same similarities at other places
    assert metrics.structural_distance(moved[:, ::-1], content) == 0 < metrics.structural_distance(moved, content)


# ---- errors ----


def test_bad_arguments(folder):
    small = smooth_image(0, 20, 40)
    with pytest.raises(ValueError, match="^image: expected at least 32 pixels"):
        metrics.lpips(small, small, folder)
    with pytest.raises(ValueError, match="^reference: the shape is"):
        metrics.cfsd(small, smooth_image(0, 40, 20), folder)
    with pytest.raises(ValueError, match=r"^images\[0\]: expected at least 75"):
        metrics.inception_features([small], "art", folder)
    with pytest.raises(ValueError, match="^kind: expected"):
        metrics.fid([small], [small], "vgg")
    with pytest.raises(ValueError, match="^features: expected the shape"):
        metrics.frechet_distance(np.zeros((1, 4)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="^reference: has 3 features"):
        metrics.frechet_distance(np.zeros((3, 4)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="^reference: holds NaN"):
        metrics.frechet_distance(np.zeros((3, 4)), np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="^reference: expected the shape of features"):
        metrics.structural_distance(np.zeros((3, 4, 4)), np.zeros((3, 4, 5)))
    with pytest.raises(TypeError, match="^features: expected an array of numbers"):
        metrics.structural_distance(np.array("a"), np.zeros((3, 4, 5)))
    for options in {"start": 1}, {"start": 8}, {"points": 1}:
        with pytest.raises(ValueError, match="^start, points: expected"):
            metrics.extrapolated_distance(np.zeros((8, 2)), np.zeros((8, 2)), **options)


def test_weights_that_are_not_there(folder, tmp_path, monkeypatch):
    image = smooth_image(0, 64, 64)
    with pytest.raises(ValueError, match="alexnet-owt-7be5be79.pth is missing; it is published as https://"):
        metrics.lpips(image, image, tmp_path)
    (tmp_path / FILES["vgg19"].file).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"vgg19-dcbb9e9d.pth: not the weights of vgg19"):
        metrics.cfsd(image, image, tmp_path)
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / FILES["alexnet"].file)
    with pytest.raises(ValueError, match="not the weights of alexnet"):
        metrics.lpips(image, image, tmp_path)


def test_offline(tmp_path, monkeypatch):
    """One clear line; and nothing half-written stays behind."""
    image = smooth_image(0, 80, 80)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        ValueError, match="vgg19-dcbb9e9d.pth could not be downloaded from https.*no route to host.*weights$"
    ):
        metrics.cfsd(image, image)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        ValueError, match="art_inception.pth could not be downloaded from matthias-wright/art_inception"
    ):
        metrics.fid([image], [image])


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"need PyTorch: pip install styleid\[metrics\]"):
        metrics.lpips(smooth_image(0, 64, 64), smooth_image(0, 64, 64))


def test_what_pytorch_has_kept_is_used(folder, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").symlink_to(folder)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    sizes = smooth_image(0, 64, 64), smooth_image(1, 64, 64)
    assert metrics.lpips(*sizes) == metrics.lpips(*sizes, folder)
