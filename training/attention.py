"""Self-attention whose queries, keys and values can be kept, and replaced by those of other images."""

from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional as F

DECODER_LAYERS = tuple(range(3, 12))
# Those that a method with layers 6-11 leaves alone.
DEEP_LAYERS = (3, 4, 5)
FEW_TOKENS = 1024


@dataclass
class Tap:
    """What the decoder's self-attention layers do beside attending; every layer reads it.

    share: the batch is [any, styles, results], of the sizes in `parts`; in the chosen layers the results take the styles'
    keys and values (equally many of them each style's, in order), and their queries are mixed with those in `queries`:
    the method itself, inside one training step. There the controls are tensors, and `deep` says whether DEEP_LAYERS are
    injected too: no Python code depends on their values.
    save: keeps (query, key, value) of the chosen layers in `kept`.
    inject: mixes its queries with those in `queries`, too, and takes keys and values from `style`, laid out like `kept`.
    """

    mode: str = "none"
    layers: tuple[int, ...] = ()
    gamma: float | torch.Tensor = 0.75
    temperature: float | torch.Tensor = 1.5
    deep: torch.Tensor | None = None
    parts: tuple[int, int, int] = (0, 0, 0)
    kept: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    style: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)


class SelfAttention:
    """A diffusers attention processor; `layer` is the decoder layer's number, None for all other layers."""

    def __init__(self, tap: Tap, layer: int | None) -> None:
        self.tap = tap
        self.layer = layer

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if self.layer is not None and self.layer in self.tap.layers:
            query, key, value = self._tapped(query, key, value)
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).contiguous() for x in (query, key, value)
        )
        mixed = attended(query, key, value)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _tapped(self, query, key, value):
        tap = self.tap
        if tap.mode == "save":
            tap.kept[self.layer] = (query, key, value)
        elif tap.mode == "share":
            query, key, value = self._shared(query, key, value)
        elif tap.mode == "inject":
            query = self._mixed(query)
            _, key, value = tap.style[self.layer]
        return query, key, value

    def _shared(self, query, key, value):
        tap, own = self.tap, (query, key, value)
        plain, style, results = query.split(tap.parts)
        mixed = self._mixed(results)
        injected = (torch.cat([plain, style, mixed]), shared(key, tap.parts), shared(value, tap.parts))
        if self.layer in DEEP_LAYERS:
            injected = tuple(torch.where(tap.deep, new, old) for new, old in zip(injected, own))
        return injected

    def _mixed(self, query):
        tap = self.tap
        mixed = tap.gamma * tap.queries[self.layer] + (1 - tap.gamma) * query
        return (tap.temperature * mixed).to(query.dtype)


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of (n, heads, tokens, width). On CPUs PyTorch's own takes twice as long backward where the scores are few."""
    if query.device.type == "cpu" and key.shape[2] <= FEW_TOKENS:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        return scores.softmax(-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


def shared(x: torch.Tensor, parts: tuple[int, int, int]) -> torch.Tensor:
    """Keys or values of [any, styles, results], the last of them replaced by the styles'."""
    plain, style, _ = x.split(parts)
    return torch.cat([plain, style, style.repeat_interleave(parts[2] // parts[1], 0)])


class OneTokenAttention:
    """Cross-attention to a context of one token: the softmax is 1, so queries and keys do not matter."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


def install(unet: UNet2DConditionModel) -> Tap:
    """Gives a UNet these processors; the returned tap steers them."""
    tap = Tap()
    processors = {}
    for name in unet.attn_processors:
        if ".attn2." in name:
            processors[name] = OneTokenAttention()
        else:
            parts = name.split(".")
            layer = 3 * int(parts[1]) + int(parts[3]) if parts[0] == "up_blocks" else None
            processors[name] = SelfAttention(tap, layer)
    unet.set_attn_processor(processors)
    return tap
