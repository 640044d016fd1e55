"""Finds the weights of perceptual measures: in a given folder, in caches of this machine, or at their publishers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from styleid.models.hub import reason

if TYPE_CHECKING:
    from torch import nn

Folder = str | os.PathLike[str] | None


class Published(NamedTuple):
    """A file of weights."""

    file: str
    source: str  # an address, or owner/name on the hub
    sha256: str | None = None  # its beginning


FILES = {
    "alexnet": Published(
        "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"
    ),
    "lpips": Published(
        "alex.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
        "df73285e35b22355",
    ),
    "vgg19": Published("vgg19-dcbb9e9d.pth", "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"),
    "inception": Published(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "art": Published("art_inception.pth", "matthias-wright/art_inception"),
}


def load(name: str, network: nn.Module, folder: Folder) -> nn.Module:
    """The network with its weights, ready to be evaluated. ValueError naming the file and the fault."""
    import torch

    path = find(name, folder)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        needed = {key: state[key] for key in network.state_dict() if not key.endswith("num_batches_tracked")}
        network.load_state_dict(needed, strict=False)
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{path}: not the weights of {name}: {reason(error)}") from error
    return network.eval().requires_grad_(False)


def find(name: str, folder: Folder = None) -> Path:
    """The file of a network's weights: in `folder` if given; else in PyTorch's own cache (where torchvision and lpips
    keep them too), in an installed lpips package, or in the hub's cache; else it is downloaded.

    Raises:
        ValueError: it is not in `folder`, or could not be downloaded
    """
    published = FILES[name]
    if folder is not None:
        path = Path(folder) / published.file
        if not path.is_file():
            raise ValueError(f"weights: {path} is missing; it is published as {published.source}")
        return path
    return _installed(name) or _downloaded(published)


def _installed(name: str) -> Path | None:
    """LPIPS' heads lie in the wheel of its package, which need not be imported for them."""
    package = importlib.util.find_spec("lpips") if name == "lpips" else None
    path = Path(package.origin).parent / "weights/v0.1" / FILES[name].file if package and package.origin else None
    return path if path and path.is_file() else None


def _downloaded(published: Published) -> Path:
    from huggingface_hub import hf_hub_download
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / published.file
    if path.is_file():
        return path
    try:
        if not published.source.startswith("https:"):
            return Path(hf_hub_download(published.source, published.file))
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(published.source, str(path), published.sha256, progress=False)
    except Exception as error:
        raise ValueError(
            f"weights: {published.file} could not be downloaded from {published.source} ({reason(error)}); put it into a "
            f"folder, or into {path.parent}, and give that folder as weights"
        ) from error
    return path
