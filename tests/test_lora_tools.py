"""LoRA files as public tools write them: the numbers are those of diffusers and PEFT, which read the same file."""

import json

import formats
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import styleid
from styleid import ModelError

pytest.importorskip("peft")
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import (
    LoraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from transformers import CLIPTextModel, CLIPTokenizer

pytestmark = pytest.mark.torch

pytestmark = pytest.mark.torch

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [
    *ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out",
    "time_emb_proj", "time_embedding.linear_1", "downsamplers.0.conv", "upsamplers.0.conv",
]  # fmt: skip
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return formats.write_diffusers(tmp_path_factory.mktemp("lora") / "model", formats.configuration("1.x"))


@pytest.fixture
def pipeline(folder):
    """diffusers' own, of the same folder, freshly loaded: changes stay in it."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer(str(folder / "tokenizer/vocab.json"), str(folder / "tokenizer/merges.txt")),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def randomize(module, seed=0):
    """Fresh adapters change nothing: random numbers in their place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                size = 2 * parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 2
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / size)


def lora_of(module):
    """The tensors of an injected adapter by PEFT's names."""
    found = module.state_dict().items()
    return {name.replace(".default", ""): tensor for name, tensor in found if ".lora_" in name}


def latents():
    return np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)


def compare(folder, path, unet, text_encoder=None, weight=1.0):
    """The model with the LoRA merged computes what theirs does, and not what it does without."""
    model = styleid.load_model(folder, dtype="float32", threads=1, loras=[(path, weight)])
    plain = styleid.load_model(folder, dtype="float32", threads=1)
    tokens = model._tokenizer("a cat")
    with torch.no_grad():
        if text_encoder is not None:
            expected = text_encoder(torch.from_numpy(tokens).long())[0].numpy()
            near(model.encode_prompt("a cat"), expected)
            assert not np.allclose(expected, plain.encode_prompt("a cat"), atol=1e-3)
        context = plain.encode_prompt("a cat")
        expected = unet(torch.from_numpy(latents()), 301, torch.from_numpy(context)).sample.numpy()
    near(model.predict_noise(latents(), 301, context), expected)
    assert not np.allclose(expected, plain.predict_noise(latents(), 301, context), atol=1e-3)


def near(result, expected):
    assert np.abs(result - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def config(targets, **options):
    return LoraConfig(**{"r": 4, "lora_alpha": 7, "target_modules": targets, "init_lora_weights": False} | options)


CONFIGS = {
    "alpha": {},
    "rank-stabilized": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"to_k": 2, "^down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 3},
        "alpha_pattern": {"to_v": 1, "attn2.to_q": 16, "up_blocks.*.to_k": 3},
    },
    "alpha of a fraction": {"lora_alpha": 0.5},
    "convolutions": {"target_modules": EVERYTHING},
    "with biases": {"target_modules": ["to_out.0", "conv1", "ff.net.2"], "lora_bias": True},
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS.keys())
def test_save_lora_adapter(folder, pipeline, tmp_path, options):
    """Of the UNet alone: its names begin with no prefix, and its settings are in the metadata."""
    pipeline.unet.add_adapter(config(ATTENTION, **options))
    randomize(pipeline.unet)
    pipeline.unet.save_lora_adapter(tmp_path)
    compare(folder, tmp_path, pipeline.unet)
    compare(folder, tmp_path / "pytorch_lora_weights.safetensors", pipeline.unet)


@pytest.mark.parametrize("safe", [True, False])
def test_save_lora_weights(folder, pipeline, tmp_path, safe):
    """Both networks in one file, of different settings; without metadata, in a checkpoint, alpha is the rank."""
    pipeline.unet.add_adapter(config(ATTENTION, lora_alpha=7 if safe else 4))
    text = config(TEXT, r=2, lora_alpha=5 if safe else 2, use_rslora=safe)
    inject_adapter_in_model(text, pipeline.text_encoder)
    settings = {}
    for part, found in ("unet", pipeline.unet.peft_config["default"]), ("text_encoder", text):
        module = getattr(pipeline, part)
        randomize(module)
        settings[f"{part}_lora_layers"] = lora_of(module)
        if safe:
            items = found.to_dict().items()
            settings[f"{part}_lora_adapter_metadata"] = {k: list(v) if isinstance(v, set) else v for k, v in items}
    StableDiffusionPipeline.save_lora_weights(tmp_path, safe_serialization=safe, **settings)
    compare(folder, tmp_path, pipeline.unet, pipeline.text_encoder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_peft_folder(folder, pipeline, tmp_path, part):
    """adapter_config.json and adapter_model.safetensors."""
    targets = ATTENTION if part == "unet" else TEXT
    wrapped = get_peft_model(getattr(pipeline, part), config(targets, use_rslora=True))
    randomize(wrapped)
    wrapped.save_pretrained(tmp_path)
    model = styleid.load_model(folder, dtype="float32", threads=1, loras=[(tmp_path, 1)])
    if part == "unet":
        compare(folder, tmp_path, wrapped)
    else:
        with torch.no_grad():
            near(model.encode_prompt("a cat"), wrapped(torch.from_numpy(model._tokenizer("a cat")).long())[0].numpy())
    (tmp_path / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match="alpha is taken for the rank"):
        styleid.load_model(folder, dtype="float32", threads=1, loras=[(tmp_path, 1)])


def kohya(state, alpha, unet="lora_unet_", text="lora_te_", separator="_"):
    """kohya-ss's names of diffusers' tensors ({prefix}.{layer}.lora_A.weight)."""
    file = {}
    for name, array in state.items():
        part, _, layer = name.partition(".")
        stem, kind = layer.split(".lora_")
        prefix = unet if part == "unet" else text
        full = prefix + stem.replace(".", separator)
        file[f"{full}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = array
        if alpha is not None:
            file[f"{full}.alpha"] = alpha
    return file


@pytest.fixture
def state(pipeline):
    """Random changes of both networks by diffusers' names; the pipeline has none of them."""
    arrays = {}
    for part, targets in (("unet", EVERYTHING), ("text_encoder", TEXT)):
        module = getattr(pipeline, part)
        inject_adapter_in_model(config(targets), module)
        randomize(module)
        for name, tensor in lora_of(module).items():
            level = "text_model." if part == "text_encoder" and not name.startswith("text_model.") else ""
            arrays[f"{part}.{level}{name}"] = tensor.numpy().copy()
    return arrays


@pytest.fixture
def reference(pipeline, state):
    """diffusers' UNet and transformers' text encoder with the random changes times a factor."""

    def make(scale):
        for module in (*pipeline.unet.modules(), *pipeline.text_encoder.modules()):
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] = scale
        return pipeline.unet, pipeline.text_encoder

    return make


ALPHAS = {
    f"{dtype} {shape}": np.full(shape, 2, dtype)
    for dtype in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8")
    for shape in ((), (1,), (1, 1))
}


@pytest.mark.parametrize("alpha", [*ALPHAS.values(), None], ids=[*ALPHAS, "none"])
def test_alphas(folder, tmp_path, alpha):
    """Every numeric type, every shape of one number: the same model."""
    down, up = (
        np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate([(4, 32), (32, 4)])
    )
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    state = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    save_file(kohya(state, alpha), tmp_path / "a.safetensors")
    scaled = state | {f"unet.{layer}.lora_B.weight": up * np.float32(0.5 if alpha is not None else 1)}
    save_file(scaled, tmp_path / "b.safetensors")
    models = [styleid.load_model(folder, dtype="float32", threads=1, loras=[(tmp_path / name, 1)]) for name in ("a.safetensors", "b.safetensors")]  # fmt: skip
    assert models[0].fingerprint == models[1].fingerprint


def test_bfloat16_alpha(folder, tmp_path):
    from safetensors.torch import save_file as save_torch

    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{layer}.lora_down.weight": torch.ones(4, 64), f"{layer}.lora_up.weight": torch.ones(64, 4) / 64}
    save_torch(tensors | {f"{layer}.alpha": torch.tensor(2.0, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    save_torch(tensors | {f"{layer}.alpha": torch.tensor(2)}, tmp_path / "b.safetensors")
    models = [styleid.load_model(folder, threads=1, loras=[(tmp_path / f"{name}.safetensors", 1)]) for name in "ab"]
    assert models[0].fingerprint == models[1].fingerprint


NAMINGS = {
    "kohya": {},
    "kohya with a number": {"text": "lora_te1_"},
    "OneTrainer": {"unet": "lora_unet.", "text": "lora_te.", "separator": "."},
    "OneTrainer's new": {"unet": "unet.", "text": "text_encoder.", "separator": "."},
    "wrapped": {"unet": "base_model.model.unet.", "text": "base_model.model.text_encoder.", "separator": "."},
    "transformer": {"unet": "transformer.", "text": "text_encoder.", "separator": "."},
    "LyCORIS": {"unet": "lycoris_"},
    "UNet's own": {"unet": "diffusion_model.", "text": "lora_te_", "separator": "."},
}


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS.keys())
def test_namings(folder, reference, state, tmp_path, naming):
    save_file(kohya(state, np.array(2, np.float32), **naming), tmp_path / "k.safetensors")
    compare(folder, tmp_path / "k.safetensors", *reference(2 / 4))


def test_names_of_the_original_program(folder, reference, state, tmp_path):
    """lora_unet_input_blocks_1_1_... and diffusion_model.input_blocks.1.1..."""
    settings = formats.configuration("1.x")
    unet = {name: array for name, array in state.items() if name.startswith("unet.")}
    file = {}
    for name, array in unet.items():
        stem, kind = name.removeprefix("unet.").split(".lora_")
        original = formats.unet_name(f"{stem}.weight", settings).removesuffix(".weight")
        file[f"lora_unet_{original.replace('.', '_')}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = array
    save_file(file, tmp_path / "k.safetensors")
    compare(folder, tmp_path / "k.safetensors", reference(1)[0])


def test_kohya_as_diffusers_reads_it(folder, pipeline, state, tmp_path):
    """The very file in their loader, of the layers that it knows."""
    unet = {name: array for name, array in state.items() if name.startswith("unet.") and "attn" in name}
    save_file(kohya(unet, np.array(2, np.float32)), tmp_path / "k.safetensors")
    found, alphas = pipeline.lora_state_dict(tmp_path / "k.safetensors")
    theirs = UNet2DConditionModel.from_pretrained(folder / "unet")
    pipeline.load_lora_into_unet(found, network_alphas=alphas, unet=theirs)
    compare(folder, tmp_path / "k.safetensors", theirs)


def test_weight_of_a_lora(folder, reference, state, tmp_path):
    save_file(state, tmp_path / "k.safetensors")
    compare(folder, tmp_path / "k.safetensors", *reference(0.25), weight=0.25)


def test_three_convolutions(folder, pipeline, tmp_path):
    """LyCORIS's LoCon with `mid`: down, mid and up as layers one after the other."""
    random = np.random.default_rng(0)
    down, mid, up = (
        random.standard_normal(shape).astype(np.float32) / 8 for shape in ((4, 32, 1, 1), (4, 4, 3, 3), (32, 4, 1, 1))
    )
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    file = {f"{layer}.lora_down.weight": down, f"{layer}.lora_mid.weight": mid, f"{layer}.lora_up.weight": up}
    save_file(file | {f"{layer}.alpha": np.array(2, np.float32)}, tmp_path / "k.safetensors")
    convolution = pipeline.unet.down_blocks[0].resnets[0].conv1
    plain = convolution.forward

    def changed(x):
        functional = torch.nn.functional
        inner = functional.conv2d(functional.conv2d(x, torch.from_numpy(down)), torch.from_numpy(mid), padding=1)
        return plain(x) + 0.5 * functional.conv2d(inner, torch.from_numpy(up))

    convolution.forward = changed
    compare(folder, tmp_path / "k.safetensors", pipeline.unet)


# ---- what is refused ----

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
GOOD = {
    f"unet.{LAYER}.lora_A.weight": np.ones((4, 32), np.float32),
    f"unet.{LAYER}.lora_B.weight": np.ones((32, 4), np.float32),
}


@pytest.mark.parametrize(
    "name",
    [
        f"unet.{LAYER}.lora_magnitude_vector", f"unet.{LAYER}.lora_magnitude_vector.default.weight",
        "lora_unet_x.dora_scale", "lora_unet_x.hada_w1_a", "lora_unet_x.hada_t1", "lora_unet_x.lokr_w1",
        "lora_unet_x.lokr_w2_a", "unet.x.lokr_t2", "lora_unet_x.on_input", "unet.x.ia3_l", "lora_unet_x.oft_blocks",
        "lora_unet_x.oft_diag", "lora_unet_x.diff", "lora_unet_x.diff_b", "lora_unet_x.a1.weight", "lora_unet_x.b2.weight",
        "unet.x.vera_lambda_b", "bundle_emb.word.string_to_param", "text_encoder.x.lora_embedding_A",
        "lora_unet_x.scalar", "unet.conv_in.weight", "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "lora_unet_.lora_down.weight", ".alpha", "alpha",
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "x" * 5000 + ".lora_A.weight",
    ],
)  # fmt: skip
def test_keys_that_are_no_lora(folder, tmp_path, name):
    save_file(GOOD | {name: np.ones((4, 32), np.float32)}, tmp_path / "l.safetensors")
    with pytest.raises(ModelError) as caught:
        styleid.load_model(folder, loras=[(tmp_path / "l.safetensors", 1)])
    assert "l.safetensors" in str(caught.value) and repr(name[:120]) in str(caught.value)


@pytest.mark.parametrize(
    "settings, key",
    [
        ("{", "lora_adapter_metadata"), ("[]", "lora_adapter_metadata"), ("null", "lora_adapter_metadata"), ("", "lora_adapter_metadata"),
        ('{"r": 4, "r": 5}', "'r' comes twice"), ('{"r": NaN}', "NaN"),
        ({"r": "4"}, "r"), ({"r": 0}, "r"), ({"r": True}, "r"), ({"r": None}, "r"), ({"r": 8}, "rank 4, but .* says 8"),
        ({"lora_alpha": "x"}, "lora_alpha"), ({"lora_alpha": None}, "lora_alpha"), ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"), ({"rank_pattern": []}, "rank_pattern"), ({"rank_pattern": 3}, "rank_pattern"),
        ({"rank_pattern": {"to_q": 1.5}}, "rank_pattern"), ({"rank_pattern": {"to_q": 3}}, "rank 4, but .* says 3"),
        ({"alpha_pattern": {"to_q": "1"}}, "alpha_pattern"), ({"alpha_pattern": "x"}, "alpha_pattern"),
        ({"alpha_pattern": {"((a*)*)*b": 1}}, "alpha_pattern"), ({"alpha_pattern": {".*.*.*.*x": 1}}, "alpha_pattern"),
        ({"alpha_pattern": {"[": 1}}, "alpha_pattern"), ({"use_rslora": 1}, "use_rslora"), ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOKR"}, "peft_type"), ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["x"]}, "modules_to_save"), ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"unet.r": "4"}, "r"), ({"unet.use_dora": True}, "use_dora"),
    ],
    ids=str,
)  # fmt: skip
def test_unusable_settings(folder, tmp_path, settings, key):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    save_file(GOOD, tmp_path / "l.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(ModelError, match=rf"l\.safetensors: .*{key}"):
        styleid.load_model(folder, loras=[(tmp_path / "l.safetensors", 1)])
    (tmp_path / "l.safetensors").rename(tmp_path / "adapter_model.safetensors")
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match="adapter_config.json" if "rank 4" not in key else key):
        styleid.load_model(folder, loras=[(tmp_path, 1)])


def test_alpha_and_settings_that_contradict(folder, tmp_path):
    def load(alpha, settings):
        tensors = GOOD | {f"unet.{LAYER}.alpha": np.array(alpha, np.float32)}
        save_file(tensors, tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
        return styleid.load_model(folder, loras=[(tmp_path / "l.safetensors", 1)])

    load(2, {"r": 4, "lora_alpha": 2})
    with pytest.raises(ModelError, match="its alpha makes the factor 0.5, but .* 1"):
        load(2, {"r": 4, "lora_alpha": 4})
    with pytest.raises(ModelError, match="alpha holds"):
        load(np.nan, {})


def test_a_bias_that_the_layer_does_not_have(folder, tmp_path):
    save_file(GOOD | {f"unet.{LAYER}.lora_B.bias": np.ones(32, np.float32)}, tmp_path / "l.safetensors")
    with pytest.raises(ModelError, match="lora_B.bias: the model's layer has no bias"):
        styleid.load_model(folder, loras=[(tmp_path / "l.safetensors", 1)])


def test_a_folder_without_a_lora(folder, tmp_path):
    with pytest.raises(ModelError, match="a folder with none of pytorch_lora_weights.safetensors"):
        styleid.load_model(folder, loras=[(tmp_path, 1)])
