"""Model folders: what loads, and what is refused, by name and without harm."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import tiny

import styleid
from styleid import ModelError, _core
from styleid.files.tensors import Tensor, read_tensors, write_tensors
from styleid.models.config import read_config, read_scheduler, read_text, read_unet, read_vae
from styleid.models.loading import default_model
from styleid.models.weights import engine_weights, read_component
from styleid.processors import default_threads

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"


def load(folder):
    return styleid.load_model(folder, dtype="float32", threads=1)


def tensor(array, dtype="F32"):
    return Tensor(dtype, array.shape, memoryview(array.tobytes()))


def edit_json(path, **changes):
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            values.pop(key, None)
        else:
            values[key] = value
    path.unlink()
    path.write_text(json.dumps(values))


def edit_tensors(path, change):
    tensors, _ = read_tensors(path)
    tensors = dict(change(dict(tensors)))
    path.unlink()
    write_tensors(path, tensors, {})


def same_output(model, other):
    channels = model.config["unet"]["in_channels"]
    latents = np.random.default_rng(0).standard_normal((1, channels, 8, 8)).astype(np.float32)
    for name in ("predict_noise", "decode"):
        arguments = (latents, 500) if name == "predict_noise" else (latents,)
        np.testing.assert_array_equal(getattr(model, name)(*arguments), getattr(other, name)(*arguments))


# ---- what loads ----


def test_default_model():
    model = styleid.load_model(threads=2)
    assert model.source == "default" and model.threads == 2
    assert model.dtype == ("bfloat16" if _core.info()["native_bfloat16"] else "float32")
    assert model.empty_context.shape[2] == model.config["unet"]["context_size"]
    assert model.layer_count == 12 and set(model.attention_layers) <= set(range(12))
    assert default_model() is default_model()


def test_facts_of_a_model(model, shared_folder):
    assert (model.vae_factor, model.image_multiple, model.image_size) == (2, 16, 16)
    assert (model.layer_count, model.attention_layers) == (8, (4, 5, 6, 7))
    assert (model.dtype, model.threads, model.source) == ("float32", 1, str(shared_folder))
    assert model.memory > 0 and model.scratch(2, 32, 32) > model.scratch(1, 16, 16) > 0
    np.testing.assert_array_equal(model.empty_context, tiny.CONTEXT)


def test_a_folder_of_links_is_the_same_model(model, shared_folder, tmp_path):
    for path in shared_folder.rglob("*.*"):
        link = tmp_path / path.relative_to(shared_folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    other = load(tmp_path)
    assert other.fingerprint == model.fingerprint
    same_output(model, other)


def test_folder_without_model_index(folder):
    (folder / "model_index.json").unlink()
    load(folder)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants(model, folder, variant):
    for part in "unet", "vae":
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.rename(plain.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    same_output(model, load(folder))


def shards(folder, count=3):
    """Cuts the UNet's file into shards. -> the path of the index"""
    path = folder / UNET
    tensors, _ = read_tensors(path)
    weight_map = {}
    for i in range(count):
        name = f"diffusion_pytorch_model-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::count]}
        write_tensors(path.with_name(name), part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    path.unlink()
    index = path.with_name(path.name + ".index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards(model, folder):
    shards(folder)
    other = load(folder)
    assert other.fingerprint == model.fingerprint
    same_output(model, other)


def test_shards_in_a_hub_cache(folder, tmp_path):
    """There, snapshots/<revision>/<part>/<file> are links to blobs/<hash>."""
    index = shards(folder)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    for i, shard in enumerate(index.parent.glob("*.safetensors")):
        shutil.move(shard, tmp_path / "blobs" / str(i))
        shard.symlink_to(tmp_path / "blobs" / str(i))
    load(folder.rename(tmp_path / "snapshots" / "1234"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_stored_types_are_read_as_they_are(folder, dtype):
    """The same numbers, exact in all three types, give the same model."""
    numbers = {}

    def rewrite(tensors, dtype):
        for name, old in tensors.items():
            bits = (old.float32().view(np.uint32) & 0xFFE00000).view(np.float32)  # two bits of mantissa
            bits[np.abs(bits) < 1e-4] = 0
            numbers[name] = bits
            stored = {
                "F32": bits,
                "F16": bits.astype(np.float16),
                "BF16": (bits.view(np.uint32) >> 16).astype(np.uint16),
            }
            yield name, tensor(stored[dtype], dtype)

    edit_tensors(folder / VAE, lambda tensors: rewrite(tensors, "F32"))
    expected = load(folder)
    edit_tensors(folder / VAE, lambda tensors: rewrite(tensors, dtype))
    for name, read in read_tensors(folder / VAE)[0].items():
        np.testing.assert_array_equal(read.float32(), numbers[name])
    same_output(expected, load(folder))


def test_old_names_of_the_vaes_attention(model, folder):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name, value in tensors.items():
            for new, old in names.items():
                if f"attentions.0.{new}." in name:
                    name = name.replace(new, old)
                    if name.endswith("weight"):
                        value = value._replace(shape=(*value.shape, 1, 1))
            yield name, value

    edit_tensors(folder / VAE, rename)
    assert any("proj_attn" in name for name in read_tensors(folder / VAE)[0])
    same_output(model, load(folder))


@pytest.fixture
def text_folder(folder, tmp_path):
    """The model with a small text encoder and tokenizer instead of the stored context."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    channels = json.loads((folder / "unet/config.json").read_text())["cross_attention_dim"]
    config = transformers.CLIPTextConfig(
        vocab_size=520, hidden_size=channels, intermediate_size=2 * channels, num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    (folder / "context.safetensors").unlink()
    (folder / "tokenizer").mkdir()
    characters = [chr(c) for c in range(33, 127)]
    pieces = [*characters, *(c + "</w>" for c in characters), "th", "the</w>", "ca", "cat</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\nt h\nth e</w>\nc a\nca t</w>\n")
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoder_with_and_without_its_prefix(text_folder, prefix):
    def rename(tensors):
        for name, value in tensors.items():
            yield prefix + name.removeprefix("text_model."), value
        yield prefix + "embeddings.position_ids", tensor(np.arange(77, dtype=np.int64)[np.newaxis], "I64")
        yield "text_projection.weight", tensor(np.zeros((4, 4), np.float32))

    edit_tensors(text_folder / "text_encoder/model.safetensors", rename)
    model = load(text_folder)
    assert model.encode_prompt("the cat").shape == (1, 77, model.config["unet"]["context_size"])
    assert not np.array_equal(model.encode_prompt("the cat"), model.empty_context)
    np.testing.assert_array_equal(model.encode_prompt(""), model.empty_context)


def test_prompts_need_a_text_encoder(model):
    np.testing.assert_array_equal(model.encode_prompt(""), model.empty_context)
    with pytest.raises(ValueError, match="no text encoder"):
        model.encode_prompt("a cat")
    with pytest.raises(TypeError, match="prompt"):
        model.encode_prompt(None)


# ---- arguments ----


@pytest.mark.parametrize(
    "error, name, arguments",
    [
        (ValueError, "dtype", {"dtype": "float16"}),
        (ValueError, "dtype", {"dtype": None}),
        (ValueError, "device", {"device": "gpu"}),
        (TypeError, "device", {"device": 0}),
        (TypeError, "threads", {"threads": 1.5}),
        (TypeError, "threads", {"threads": "2"}),
        (ValueError, "threads", {"threads": 0}),
        (ValueError, "threads", {"threads": 100_000}),
        (TypeError, "source", {"source": 3}),
        (TypeError, "source", {"source": None}),
    ],
)
def test_wrong_arguments(error, name, arguments):
    with pytest.raises(error, match=f"^{name}: "):
        styleid.load_model(**arguments)


@pytest.mark.parametrize("value, threads", [("3", 3), ("2,1", 2), (" 1 ", 1), ("many", None), ("0", None), ("", None)])
def test_threads_follow_the_environment(shared_folder, value, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert styleid.load_model(shared_folder).threads == (threads or default_threads()[0])


@pytest.mark.bfloat16
def test_dtype_auto(shared_folder, monkeypatch):
    info = _core.info()
    for native, dtype in (True, "bfloat16"), (False, "float32"):
        monkeypatch.setattr(_core, "info", lambda native=native: info | {"native_bfloat16": native})
        assert styleid.load_model(shared_folder).dtype == dtype


# ---- broken folders ----


def test_no_folder(tmp_path):
    with pytest.raises(ModelError, match="nothing: no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"scheduler_config\.json: no such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "context.safetensors", UNET, VAE]
)
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=str((folder / name).parent)):
        load(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "broken JSON"),
        (b"{", "broken JSON"),
        (b'{"a": 1,}', "broken JSON"),
        (b"\xff\xfe", "broken JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"act_fn": "silu", "act_fn": "mish"}', "'act_fn' comes twice"),
        (b'{"norm_eps": NaN}', "NaN"),
        (b'{"norm_eps": -Infinity}', "Infinity"),
        (b'{"in_channels": ' + b"1" * 10_000 + b"}", "broken JSON"),
        (b"[" * 200_000, "broken JSON"),
        (b" " * (17 << 20), "larger than"),
    ],
)
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_json(folder, name, text, message):
    (folder / name).unlink()
    (folder / name).write_bytes(text)
    with pytest.raises(ModelError, match=f"{name}: .*{message}"):
        load(folder)


UNUSABLE_UNETS = [
    {"_class_name": "UNet2DModel"},
    {"act_fn": "mish"},
    {"addition_embed_type": "text_time"},
    {"attention_head_dim": [2, 2]},
    {"attention_head_dim": "8"},
    {"attention_head_dim": 0},
    {"attention_type": "gated"},
    {"block_out_channels": []},
    {"block_out_channels": [16, -16, 16, 16]},
    {"block_out_channels": [16, 16.5, 16, 16]},
    {"block_out_channels": 64},
    {"center_input_sample": True},
    {"class_embed_type": "timestep"},
    {"conv_in_kernel": 1},
    {"conv_out_kernel": 5},
    {"cross_attention_dim": [64, 64, 64, 64]},
    {"cross_attention_norm": "layer_norm"},
    {"down_block_types": ["AttnDownBlock2D"] * 4},
    {"down_block_types": ["DownBlock2D"] * 3},
    {"down_block_types": ["DownBlock2D"] * 4},
    {"downsample_padding": 0},
    {"dual_cross_attention": True},
    {"encoder_hid_dim": 64},
    {"encoder_hid_dim_type": "text_proj"},
    {"flip_sin_to_cos": False},
    {"freq_shift": 1},
    {"in_channels": 9},
    {"in_channels": True},
    {"layers_per_block": [1, 2, 2, 2]},
    {"layers_per_block": 2.0},
    {"mid_block_scale_factor": 2},
    {"mid_block_type": "UNetMidBlock2D"},
    {"mid_block_type": None},
    {"norm_eps": 0},
    {"norm_num_groups": None},
    {"num_attention_heads": "8"},
    {"num_class_embeds": 10},
    {"only_cross_attention": True},
    {"only_cross_attention": [False, False, False, True]},
    {"out_channels": 3},
    {"resnet_out_scale_factor": 0.7},
    {"resnet_skip_time_act": True},
    {"resnet_time_scale_shift": "scale_shift"},
    {"reverse_transformer_layers_per_block": [1]},
    {"sample_size": [64, 32]},
    {"time_cond_proj_dim": 32},
    {"time_embedding_act_fn": "silu"},
    {"time_embedding_dim": 128},
    {"time_embedding_type": "fourier"},
    {"timestep_post_act": "silu"},
    {"transformer_layers_per_block": 2},
    {"transformer_layers_per_block": [1, 1, 1, 2]},
    {"up_block_types": ["CrossAttnUpBlock2D"] * 4},
    {"use_linear_projection": "yes"},
]


@pytest.mark.parametrize("change", UNUSABLE_UNETS, ids=str)
def test_unets_that_are_not_computed(folder, change):
    edit_json(folder / "unet/config.json", **change)
    key = "up_block_types" if change == {"down_block_types": ["DownBlock2D"] * 4} else next(iter(change))
    with pytest.raises(ModelError, match=rf"unet/config\.json: {key} is "):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "swish"},
        {"attention_head_dim": 2},
        {"attention_head_dim": 7, "num_attention_heads": 2},
        {"dropout": 0.1},
        {"layers_per_block": [1, 1, 1, 1]},
        {"mid_block_scale_factor": 1.0},
        {"only_cross_attention": [False] * 4},
        {"transformer_layers_per_block": [1, 1, 1, 1]},
        {"upcast_attention": True},
        {"mid_block_type": "UNetMidBlock2DCrossAttn", "freq_shift": 0, "time_embedding_type": "positional"},
    ],
    ids=str,
)
def test_other_spellings_of_the_same_unet(model, folder, change):
    edit_json(folder / "unet/config.json", **change)
    assert load(folder).config["unet"] == model.config["unet"]


def test_unknown_keys_are_named(folder):
    edit_json(folder / "unet/config.json", new_invention=3)
    with pytest.warns(UserWarning, match="new_invention"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "AsymmetricAutoencoderKL"},
        {"act_fn": "relu"},
        {"block_out_channels": []},
        {"down_block_types": ["DownEncoderBlock2D"] * 3},
        {"down_block_types": ["AttnDownEncoderBlock2D"] * 2},
        {"in_channels": 1},
        {"latents_mean": [0.0] * 8},
        {"latents_std": [1.0] * 8},
        {"layers_per_block": 0},
        {"mid_block_add_attention": None},
        {"scaling_factor": 0},
        {"scaling_factor": None},
        {"shift_factor": 0.1},
        {"up_block_types": ["UpDecoderBlock2D"] * 4},
        {"use_quant_conv": "true"},
    ],
    ids=str,
)
def test_vaes_that_are_not_computed(folder, change):
    edit_json(folder / "vae/config.json", **change)
    with pytest.raises(ModelError, match=rf"vae/config\.json: {next(iter(change))} is "):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "relu"},
        {"hidden_size": 0},
        {"layer_norm_eps": 1e-6},
        {"model_type": "bert"},
        {"num_attention_heads": None},
        {"num_hidden_layers": 1.5},
    ],
    ids=str,
)
def test_text_encoders_that_are_not_computed(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match=rf"config\.json: {next(iter(change))} is "):
        read_text(tmp_path / "config.json")


def test_context_and_text_encoder_must_fit_the_unet(folder):
    edit_json(folder / "unet/config.json", cross_attention_dim=768)
    with pytest.raises(ModelError, match=r"empty_prompt has the shape .* expected \(1, tokens, 768\)"):
        load(folder)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").write_text('{"hidden_size": 1024}')
    with pytest.raises(ModelError, match="cross_attention_dim is 768, but the text encoder's hidden_size is 1024"):
        load(folder)


def test_latent_channels_must_agree(folder):
    edit_json(folder / "vae/config.json", latent_channels=5)
    with pytest.raises(ModelError, match="in_channels is 4, but the VAE's latents have 5 channels"):
        load(folder)


# ---- schedulers ----


def scheduler(tmp_path, **values):
    (tmp_path / "s.json").write_text(json.dumps(values))
    return read_scheduler(tmp_path / "s.json")


def test_betas(tmp_path):
    prediction, alphas = scheduler(tmp_path, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert prediction == "epsilon" and alphas.shape == (1000,) and alphas.dtype == np.float64
    np.testing.assert_allclose(alphas[[0, 500, 999]], [0.99915, 0.2763327, 0.0046601], rtol=1e-5)
    assert scheduler(tmp_path, prediction_type="v_prediction")[0] == "v_prediction"
    _, linear = scheduler(tmp_path)
    np.testing.assert_allclose(linear[[0, 999]], [0.9999, np.prod(1 - np.linspace(0.0001, 0.02, 1000))])
    _, trained = scheduler(tmp_path, trained_betas=list(np.linspace(0.0001, 0.02, 1000)))
    np.testing.assert_array_equal(trained, linear)


@pytest.mark.torch
def test_betas_are_those_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    for kind in "linear", "scaled_linear":
        theirs = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind)
        _, ours = scheduler(tmp_path, beta_start=0.00085, beta_end=0.012, beta_schedule=kind)
        np.testing.assert_allclose(ours, theirs.alphas_cumprod.numpy(), rtol=1e-4)  # theirs are float32


@pytest.mark.parametrize(
    "values",
    [
        {"num_train_timesteps": 500},
        {"rescale_betas_zero_snr": True},
        {"prediction_type": "sample"},
        {"prediction_type": ["epsilon"]},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_start": -1},
        {"beta_end": "0.02"},
        {"trained_betas": []},
        {"trained_betas": [1] * 1000},
    ],
    ids=lambda values: str(values)[:40],
)
def test_schedulers_that_are_not_honoured(tmp_path, values):
    with pytest.raises(ValueError, match=rf"s\.json: {next(iter(values))} is "):
        scheduler(tmp_path, **values)


@pytest.mark.parametrize("values", [{"beta_end": 1}, {"trained_betas": [0.1] * 999}, {"trained_betas": [1.5] * 1000}])
def test_betas_out_of_range(tmp_path, values):
    with pytest.raises(ValueError, match="1000 numbers between 0 and 1"):
        scheduler(tmp_path, **values)


def test_configurations_of_published_models(tmp_path):
    """SD 2.1's UNet and scheduler, SD 1.x's VAE and text encoder, as their files have them."""
    (tmp_path / "unet").write_text(
        json.dumps(
            {
                "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.8.0", "act_fn": "silu",
                "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
                "center_input_sample": False, "cross_attention_dim": 1024,
                "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
                "dual_cross_attention": False, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
                "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "num_class_embeds": None,
                "only_cross_attention": False, "out_channels": 4, "sample_size": 96,
                "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "use_linear_projection": True,
                "upcast_attention": True,
            }
        )
    )  # fmt: skip
    (tmp_path / "vae").write_text(
        json.dumps(
            {
                "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
                "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
                "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
            }
        )
    )  # fmt: skip
    (tmp_path / "scheduler").write_text(
        json.dumps(
            {
                "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False,
                "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
            }
        )
    )  # fmt: skip
    (tmp_path / "text").write_text(
        json.dumps(
            {
                "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2,
                "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "layer_norm_eps": 1e-05,
                "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 16,
                "num_hidden_layers": 23, "projection_dim": 512, "vocab_size": 49408,
            }
        )
    )  # fmt: skip
    config = read_config(*(tmp_path / name for name in ("unet", "vae", "scheduler", "text")))
    assert config["unet"]["heads"] == [5, 10, 20, 20] and config["unet"]["linear_projection"]
    assert config["unet"]["attention"] == [True, True, True, False] and config["unet"]["prediction"] == "v_prediction"
    assert config["vae"]["scaling_factor"] == 0.18215 and config["vae"]["quant_conv"]
    assert config["text"]["layers"] == 23 and config["text"]["activation"] == "gelu"


# ---- hostile and damaged weights ----


def test_missing_extra_and_misshaped_tensors(folder):
    original = (folder / VAE).read_bytes()

    def refused(change, message):
        (folder / VAE).write_bytes(original)
        edit_tensors(folder / VAE, change)
        with pytest.raises(ModelError, match=message):
            load(folder)

    name = "decoder.conv_in.weight"
    refused(lambda t: {k: v for k, v in t.items() if k != name}, name)
    refused(lambda t: t | {"decoder.surprise.weight": t[name]}, "surprise")
    refused(lambda t: t | {name: t[name]._replace(shape=(3, 3, *t[name].shape[:2]))}, name)
    refused(lambda t: t | {name: tensor(np.zeros(3, np.float32))}, name)
    refused(lambda t: t | {name: tensor(np.zeros((1, 2, 3, 4, 5), np.float32))}, name)
    refused(lambda t: t | {name: tensor(np.zeros((0, 3, 3, 3), np.float32))}, name)
    refused(lambda t: t | {name: tensor(np.zeros((4, 4), np.int64), "I64")}, name)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.999])
def test_truncated_file(folder, keep):
    path = folder / VAE
    size = path.stat().st_size
    os.truncate(path, keep if keep > 1 or keep == 0 else int(size * keep))
    with pytest.raises(ModelError, match=str(path)):
        load(folder)


def test_trailing_bytes(folder):
    with open(folder / VAE, "ab") as file:
        file.write(b"more")
    with pytest.raises(ModelError, match=VAE):
        load(folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("this-must-not-exist",)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_named_safetensors(folder, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(folder)
    assert not os.path.exists("this-must-not-exist")


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"GGUF" * 9, "GGUF"),
    ],
)
def test_other_files_named_safetensors(folder, content, kind):
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(content)
    with pytest.raises(ModelError, match=kind):
        load(folder)


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(header, data=b""):
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


HOSTILE = {
    "overlap": file_of({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "gap": file_of({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)),
    "first offset not 0": file_of({"a": entry(4, 12, [2])}, bytes(12)),
    "beyond the end": file_of({"a": entry(0, 800, [200])}, bytes(8)),
    "end before begin": file_of({"a": entry(8, 0, [2])}, bytes(8)),
    "negative offset": file_of({"a": entry(-8, 0, [2])}, bytes(8)),
    "offset of 2^64": file_of({"a": entry(0, 2**64, [2])}, bytes(8)),
    "size does not fit the shape": file_of({"a": entry(0, 8, [3])}, bytes(8)),
    "shape whose product wraps to 2": file_of({"a": entry(0, 8, [2**63, 4, 2, 2])}, bytes(8)),
    "shape of 2^64": file_of({"a": entry(0, 8, [2**64])}, bytes(8)),
    "negative shape": file_of({"a": entry(0, 8, [-1, -2])}, bytes(8)),
    "shape of floats": file_of({"a": entry(0, 8, [2.0])}, bytes(8)),
    "shape that is no list": file_of({"a": entry(0, 8, 2)}, bytes(8)),
    "zero dimension of something": file_of({"a": entry(0, 8, [0, 2])}, bytes(8)),
    "unknown dtype": file_of({"a": entry(0, 8, [2], "F33")}, bytes(8)),
    "dtype F64": file_of({"a": entry(0, 8, [1], "F64")}, bytes(8)),
    "dtype F8": file_of({"a": entry(0, 8, [8], "F8_E4M3")}, bytes(8)),
    "dtype that is no text": file_of({"a": entry(0, 8, [2], None)}, bytes(8)),
    "entry that is no object": file_of({"a": 3}),
    "entry without a shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "three offsets": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)),
    "duplicate name": file_of(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "duplicate key": file_of(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "header padded with zeros": file_of(json.dumps({"a": entry(0, 8, [2])}).encode() + bytes(8), bytes(8)),
    "header that is no object": file_of(b"[]"),
    "header that is no JSON": file_of(b"{" * 100),
    "deep header": file_of(b'{"a":' * 100_000),
    "header in UTF-16": file_of(json.dumps({"a": entry(0, 8, [2])}).encode("utf-16"), bytes(8)),
    "metadata that is no text": file_of({"__metadata__": {"a": [1]}, "a": entry(0, 8, [2])}, bytes(8)),
    "header length 0": bytes(8),
    "header length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "header length just beyond": (3).to_bytes(8, "little") + b"{}",
    "empty": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers(folder, content):
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(content)
    with pytest.raises(ModelError, match=UNET):
        load(folder)


def test_weight_of_no_numbers(folder):
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(file_of({"conv_in.weight": entry(0, 0, [0, 4, 3, 3])}))
    with pytest.raises(ModelError, match=r"model: weight unet.conv_in.weight: .*positive sizes, got \(0, 4, 3, 3\)"):
        load(folder)


def test_giant_header(folder):
    (folder / UNET).unlink()
    (folder / UNET).write_bytes((20 << 20).to_bytes(8, "little") + b"{" + b" " * (21 << 20))
    with pytest.raises(ModelError, match="a header of 20971520 bytes"):
        load(folder)


@pytest.mark.long
def test_a_hundred_thousand_tensors(folder):
    (folder / UNET).unlink()
    header = {f"t{i}": entry(0, 0, [0]) for i in range(100_000)}
    (folder / UNET).write_bytes(file_of(header))
    with pytest.raises(ModelError):
        load(folder)


def test_giant_sparse_file_is_not_read(folder):
    """A terabyte that nobody wants: refused by its name, and not touched."""
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(file_of({"a": entry(0, 1 << 40, [1 << 38])}))
    with open(folder / UNET, "ab") as file:
        file.truncate(file.tell() + (1 << 40))
    with pytest.raises(ModelError):
        load(folder)


# ---- shards ----


def break_index(folder, change):
    index = shards(folder)
    values = json.loads(index.read_text())
    change(values, values["weight_map"])
    index.write_text(json.dumps(values))
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert index.name in str(caught.value) or "shard" in str(caught.value) or "no such file" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "..",
        "",
        ".",
        "a/b.safetensors",
        "a\0b",
        "none",
        "x" * 300,
        "\ud800",
        "a\nb",
    ],
)
def test_shard_names(folder, name):
    break_index(folder, lambda values, weights: weights.update({next(iter(weights)): name}))


def test_index_without_a_map(folder):
    break_index(folder, lambda values, weights: values.pop("weight_map"))


def test_index_with_numbers_for_names(folder):
    break_index(folder, lambda values, weights: weights.update({next(iter(weights)): 3}))


def test_index_of_a_tensor_that_is_nowhere(folder):
    break_index(folder, lambda values, weights: weights.update({"nowhere": next(iter(weights.values()))}))


def test_shard_that_is_a_link_out_of_the_folder(folder, tmp_path):
    index = shards(folder)
    shard = next(index.parent.glob("*-00001-of-*"))
    shutil.move(shard, tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match="link that leaves the folder"):
        load(folder)


def test_tensor_in_two_shards(folder):
    index = shards(folder)
    first, second, _ = sorted(index.parent.glob("*-of-*"))
    shutil.copyfile(first, second)
    with pytest.raises(ModelError, match="is in two shards"):
        load(folder)


def test_weight_under_two_names(folder):
    vae = read_component(folder / "vae", "diffusion_pytorch_model")
    name = "encoder.mid_block.attentions.0.to_q.weight"
    with pytest.raises(ValueError, match="two names"):
        engine_weights({}, vae | {name.replace("to_q", "query"): vae[name]}, None)


# ---- contexts ----


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"other": tensor(np.zeros((1, 1, 24), np.float32))},
        {"empty_prompt": tensor(np.zeros((1, 24), np.float32))},
        {"empty_prompt": tensor(np.zeros((2, 1, 24), np.float32))},
        {"empty_prompt": tensor(np.zeros((1, 0, 24), np.float32))},
        {"empty_prompt": tensor(np.zeros((1, 1, 24), np.int32), "I32")},
        {"empty_prompt": tensor(np.full((1, 1, 24), np.nan, np.float32))},
    ],
)
def test_unusable_contexts(folder, tensors):
    (folder / "context.safetensors").unlink()
    write_tensors(folder / "context.safetensors", tensors, {})
    with pytest.raises(ModelError, match=r"context\.safetensors: .*empty_prompt"):
        load(folder)


# ---- fingerprints ----


def test_fingerprint_sees_configuration_and_weights(model, folder):
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    changed = load(folder)
    assert changed.fingerprint != model.fingerprint
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="epsilon")
    assert load(folder).fingerprint == model.fingerprint
    edit_tensors(
        folder / VAE,
        lambda t: t | {"decoder.conv_out.bias": tensor(t["decoder.conv_out.bias"].float32() + np.float32(1))},
    )
    assert load(folder).fingerprint != model.fingerprint


def change_one(array, place):
    array = array.copy()
    array.flat[place] += np.float32(0.5)
    return array


@pytest.mark.parametrize("place", [0, 17, 200, -1])
def test_fingerprint_sees_every_number(model, folder, place):
    for file, name in (UNET, "up_blocks.0.resnets.0.conv1.weight"), (VAE, "decoder.conv_in.weight"):
        original = (folder / file).read_bytes()
        edit_tensors(folder / file, lambda t, name=name: t | {name: tensor(change_one(t[name].float32(), place))})
        assert load(folder).fingerprint != model.fingerprint
        (folder / file).unlink()
        (folder / file).write_bytes(original)
    assert load(folder).fingerprint == model.fingerprint


def test_a_fingerprint_does_not_depend_on_how_it_is_computed(model, shared_folder):
    for threads in 2, 8:
        assert styleid.load_model(shared_folder, threads=threads).fingerprint == model.fingerprint
    with pytest.raises(AttributeError):
        model.fingerprint = "x"


def test_readers_alone(folder):
    assert read_unet(folder / "unet/config.json", "epsilon")["prediction"] == "epsilon"
    assert read_vae(folder / "vae/config.json")["image_channels"] == 3


# ---- recommended settings ----


def test_a_folder_recommends_settings(folder):
    assert styleid.load_model(folder).recommended == {}
    (folder / "styleid.json").write_text('{"gamma": 0.5, "temperature": 3, "layers": [6, 7], "seed": 0}')
    assert styleid.load_model(folder).recommended == {"gamma": 0.5, "temperature": 3, "layers": [6, 7], "seed": 0}


@pytest.mark.parametrize(
    "text",
    [
        '{"gamma": 2}',
        '{"gamma": true}',
        '{"temperature": 0}',
        '{"layers": 6}',
        '{"layers": [1.5]}',
        '{"seed": -1}',
        '{"seed": true}',
        '{"seed": "mean"}',
        '{"seed": 9223372036854775808}',
        '{"x": 1}',
        "[]",
    ],
)
def test_broken_recommendations(folder, text):
    (folder / "styleid.json").write_text(text)
    with pytest.raises(styleid.ModelError, match=r"styleid\.json"):
        styleid.load_model(folder)
