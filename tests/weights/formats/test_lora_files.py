"""LoRA files in every spelling, compared with diffusers' result for the same files."""

import json

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.files.pickles import PickleFile
from persongen_jax.weights.files.safetensors_file import TensorFile
from persongen_jax.weights.files.source import DictSource, subsource
from persongen_jax.weights.formats.lora.kinds import LoraWeights
from persongen_jax.weights.formats.lora.reading import read_lora
from persongen_jax.weights.formats.lora.writing import write_lora
from tests.helpers.lora_files import ATTENTION, CHOSEN, delta, kohya, random_adapters, save
from tests.weights.formats.test_original_sdxl import twins

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def models():
    return twins()


def layers(model):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        name.removeprefix("text_model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
    }


@pytest.fixture(scope="module")
def modules(shapes):
    return {name: paths for name, paths in shapes.items() if name != "vae"}


@pytest.fixture(scope="module")
def shapes(models):
    return {
        name: {path: tuple(layer.weight.shape) for path, layer in layers(model).items()}
        for name, model in models.items()
    }


@pytest.fixture
def pipeline():
    return diffusers.StableDiffusionXLPipeline(
        **twins(), tokenizer=None, tokenizer_2=None, scheduler=diffusers.DDIMScheduler()
    )


def assert_same(ours, wanted):
    assert {c: set(m) for c, m in ours.items()} == {c: set(m) for c, m in wanted.items()}
    for component, paths in wanted.items():
        for path, lora in paths.items():
            got = ours[component][path]
            assert got.alpha == lora.alpha, path
            for a, b in ((got.down, lora.down), (got.up, lora.up)):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert a.tobytes() == b.tobytes(), path


def diffusers_deltas(pipeline, path):
    """Component -> module -> what diffusers adds to its weight after loading the file."""
    components = {name: getattr(pipeline, name) for name in CHOSEN}
    before = {
        name: {p: layer.weight.detach().clone() for p, layer in layers(model).items()}
        for name, model in components.items()
    }
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    out = {}
    for name, model in components.items():
        for p, layer in layers(model).items():
            change = (layer.weight.detach() - before[name][p]).numpy()
            if np.abs(change).max() > 0:
                out.setdefault(name, {})[p] = change
    return out


def assert_diffusers_agrees(pipeline, path, adapters):
    theirs = diffusers_deltas(pipeline, path)
    assert {c: set(m) for c, m in theirs.items()} == {c: set(m) for c, m in adapters.items()}
    for component, paths in adapters.items():
        for module, lora in paths.items():
            np.testing.assert_allclose(
                theirs[component][module], delta(lora), rtol=1e-4, atol=1e-4, err_msg=module
            )


CASES = {
    "no alpha": {},
    "one alpha": {"alphas": (2.0,)},
    "one alpha, several ranks": {"alphas": (2.0,), "ranks": (4, 3)},
    "many alphas and ranks": {"alphas": (1.7, 8.0, 0.5), "ranks": (4, 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_written_files_return_bit_equal_and_diffusers_agrees(
    tmp_path, shapes, modules, pipeline, case
):
    adapters = random_adapters(shapes, **CASES[case])
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write_lora(path, adapters, {"method": "photomaker"})
    with TensorFile(path) as file:
        assert f"unet.{ATTENTION}.attn2.to_out.0.lora.down.weight" in file.keys()
        key = (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight"
        )
        assert key in file.keys() and file.metadata["method"] == "photomaker"
        assert ("lora_adapter_metadata" in file.metadata) == (case != "no alpha")
    assert_same(read_lora(path, modules), adapters)
    assert_diffusers_agrees(pipeline, path, adapters)


@pytest.mark.parametrize("component", CHOSEN)
def test_one_component_alone(tmp_path, shapes, modules, pipeline, component):
    chosen = {component: CHOSEN[component]}
    adapters = random_adapters(shapes, chosen, ranks=(4, 2), alphas=(3.0, 1.0, 1.0))
    path = tmp_path / "a.safetensors"
    write_lora(path, adapters)
    assert_same(read_lora(path, modules), adapters)
    assert_diffusers_agrees(pipeline, path, adapters)


def test_bfloat16_and_mixed_alphas_round_trip(tmp_path, modules):
    bf16 = ml_dtypes.bfloat16
    a, b = "encoder.layers.0.mlp.fc1", "encoder.layers.1.mlp.fc1"
    first = LoraWeights(np.ones((2, 8), bf16), np.full((16, 2), 1 / 3, bf16), 5.0)
    second = LoraWeights(np.ones((3, 8), np.float16), np.ones((16, 3), np.float32))
    write_lora(tmp_path / "a.safetensors", {"text_encoder": {a: first, b: second}})
    got = read_lora(tmp_path / "a.safetensors", modules)
    # A None among numbers cannot be stored, and means alpha = rank.
    assert_same(got, {"text_encoder": {a: first, b: LoraWeights(second.down, second.up, 3.0)}})


# diffusers 0.42 applies one alpha to all attention layers of a kohya file even where they differ
# (it looks the others up under a name that no module has), so it is compared with one alpha only.
@pytest.mark.parametrize("alphas", [(None,), (2.0,), (2.0, 1.5, 7.0)])
@pytest.mark.parametrize("sgm", [False, True])
def test_kohya(tmp_path, shapes, modules, pipeline, sgm, alphas):
    adapters = random_adapters(shapes, alphas=alphas)
    path = save(tmp_path / "kohya.safetensors", kohya(adapters, sgm))
    with TensorFile(path) as file:
        assert any("input_blocks_4_1_" in key for key in file.keys()) == sgm
    assert_same(read_lora(path, modules), adapters)
    if len(alphas) == 1:
        assert_diffusers_agrees(pipeline, path, adapters)


def test_every_module_has_one_kohya_name(shapes, modules):
    paths = {c: sorted(m) for c, m in modules.items()}
    adapters = random_adapters(shapes, paths, ranks=(1,))
    for sgm in (False, True):
        assert_same(read_lora(DictSource(kohya(adapters, sgm)), modules), adapters)


def test_one_layer_per_block_changes_sgm_numbers(modules):
    pair = {"lora_down": np.ones((1, 4)), "lora_up": np.ones((4, 1))}
    name = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    source = DictSource({f"{name}.{half}.weight": value for half, value in pair.items()})
    found = read_lora(source, modules, layers_per_block=1)
    assert list(found["unet"]) == [f"{ATTENTION}.attn1.to_q"]
    with pytest.raises(KeyMismatch):
        read_lora(source, modules)


def test_peft_names_with_and_without_alpha(tmp_path, shapes, modules, pipeline):
    adapters = random_adapters(shapes)
    tensors = {}
    for component, paths in adapters.items():
        for path, lora in paths.items():
            inner = path if component == "unet" else "text_model." + path
            tensors[f"{component}.{inner}.lora_A.weight"] = lora.down
            tensors[f"{component}.{inner}.lora_B.weight"] = lora.up
    path = save(tmp_path / "peft.safetensors", tensors)
    assert_same(read_lora(path, modules), adapters)
    assert_diffusers_agrees(pipeline, path, adapters)
    tensors[f"unet.{ATTENTION}.attn1.to_q.alpha"] = np.array([6.0], ml_dtypes.bfloat16)
    assert read_lora(DictSource(tensors), modules)["unet"][f"{ATTENTION}.attn1.to_q"].alpha == 6.0


OLD = {
    "unet": {
        f"{ATTENTION}.attn1.to_q": f"{ATTENTION}.attn1.processor.to_q_lora",
        f"{ATTENTION}.attn2.to_out.0": f"{ATTENTION}.attn2.processor.to_out_lora",
    },
    "text_encoder": {
        "encoder.layers.0.self_attn.q_proj": "text_model.encoder.layers.0.self_attn.to_q_lora",
        "encoder.layers.1.self_attn.out_proj": "text_model.encoder.layers.1.self_attn.to_out_lora",
    },
}


@pytest.mark.parametrize("prefixed", [True, False])
def test_old_attention_processor_names(tmp_path, shapes, modules, pipeline, prefixed):
    names = OLD if prefixed else {"unet": OLD["unet"]}
    adapters = random_adapters(shapes, {c: list(paths) for c, paths in names.items()})
    tensors = {}
    for component, paths in adapters.items():
        for path, lora in paths.items():
            name = ("" if not prefixed else component + ".") + names[component][path]
            tensors[f"{name}.down.weight"], tensors[f"{name}.up.weight"] = lora.down, lora.up
    path = save(tmp_path / "old.safetensors", tensors)
    assert_same(read_lora(path, modules), adapters)
    if prefixed:
        assert_diffusers_agrees(pipeline, path, adapters)


def test_out_of_a_photomaker_file(tmp_path, shapes, modules):
    adapters = random_adapters(shapes, {"unet": list(OLD["unet"])})
    lora_weights = {
        f"unet.{OLD['unet'][path]}.{half}.weight": torch.tensor(getattr(lora, half))
        for path, lora in adapters["unet"].items()
        for half in ("down", "up")
    }
    content = {"id_encoder": {"x": torch.zeros(1)}, "lora_weights": lora_weights}
    torch.save(content, tmp_path / "photomaker-v1.bin")
    with PickleFile(tmp_path / "photomaker-v1.bin") as file:
        assert_same(read_lora(subsource(file, "lora_weights."), modules), adapters)


def test_what_diffusers_saves(tmp_path, modules, pipeline):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    config = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["to_q", "to_v"],
        "alpha_pattern": {"attn2.to_v": 3, "^" + f"{ATTENTION}.attn1.to_v": 2},
        "init_lora_weights": "gaussian",
    }
    pipeline.unet.add_adapter(LoraConfig(**config))
    torch.manual_seed(1)
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    wanted = {
        name: layer.get_delta_weight("default").detach().numpy()
        for name, layer in pipeline.unet.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=state,
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
    )
    found = read_lora(tmp_path / "pytorch_lora_weights.safetensors", modules)
    assert set(found) == {"unet"} and set(found["unet"]) == set(wanted)
    assert {lora.alpha for lora in found["unet"].values()} == {6.0, 3.0, 2.0}
    for name, value in wanted.items():
        np.testing.assert_allclose(delta(found["unet"][name]), value, rtol=1e-5, atol=1e-6)


def pair(path="encoder.layers.0.mlp.fc1", rank=2, component="text_encoder"):
    return {
        f"{component}.{path}.lora_A.weight": np.ones((rank, 8), np.float32),
        f"{component}.{path}.lora_B.weight": np.ones((16, rank), np.float32),
    }


@pytest.mark.parametrize(
    "key",
    [
        "unet.down_blocks.9.attentions.0.proj_in.lora.down.weight",
        "lora_unet_down_blocks_1_attentions_0_proj_im.lora_down.weight",
        "lora_te9_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "controlnet.x.lora_A.weight",
        "text_encoder.encoder.layers.0.mlp.fc1.weight",
        "emb_params",
    ],
)
def test_keys_of_no_module_are_listed(modules, key):
    source = DictSource({**pair(), key: np.ones((2, 3))}, "x.safetensors")
    with pytest.raises(KeyMismatch, match="x.safetensors") as caught:
        read_lora(source, modules)
    assert caught.value.unexpected == {key: (2, 3)}


def test_a_component_that_was_not_asked_for(modules):
    with pytest.raises(KeyMismatch) as caught:
        read_lora(DictSource(pair()), {"unet": modules["unet"]})
    assert len(caught.value.unexpected) == 2


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("w_norm", "norms"),
        ("oft_blocks", "OFT"),
        ("oft_diag", "OFT"),
        ("boft_blocks", "OFT"),
        ("a1.weight", "GLoRA"),
        ("lora_embedding_A", "token embeddings"),
        ("vera_lambda_b", "VeRA"),
        ("set_weight", "replaced weights"),
    ],
)
def test_other_kinds_are_named(modules, ending, kind):
    key = f"lora_unet_down_blocks_1_attentions_0_proj_in.{ending}"
    with pytest.raises(UnsupportedAdapter, match=f"x.bin.*{kind}"):
        read_lora(DictSource({**pair(), key: np.ones(1)}, "x.bin"), modules)


def changed(**changes):
    tensors = pair()
    for half, value in changes.items():
        key = f"text_encoder.encoder.layers.0.mlp.fc1.{half}"
        key += "" if half == "alpha" else ".weight"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    return DictSource(tensors, "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_B": None}, "no up half"),
        ({"lora_A": None}, "no down half"),
        ({"lora_A": None, "lora_B": None, "alpha": np.ones(())}, "no down half"),
        ({"lora_B": np.ones((16, 3))}, "share a rank"),
        ({"lora_B": np.ones((16, 2, 3, 3))}, "share a rank"),
        ({"lora_A": np.ones(2)}, "share a rank"),
        ({"lora_A": np.ones((0, 8)), "lora_B": np.ones((16, 0))}, "share a rank"),
        ({"alpha": np.ones(2)}, "one finite number"),
        ({"alpha": np.array(np.nan)}, "one finite number"),
    ],
)
def test_half_pairs_and_ranks(modules, changes, words):
    with pytest.raises(UnsupportedAdapter, match=f"x.safetensors.*{words}") as caught:
        read_lora(changed(**changes), modules)
    assert "encoder.layers.0.mlp.fc1" in str(caught.value)


def test_one_half_twice(modules):
    twice = {**pair(), "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": np.ones(1)}
    with pytest.raises(UnsupportedAdapter, match="both up"):
        read_lora(DictSource(twice), modules)


def test_a_flat_name_that_means_two_modules():
    paths = {"unet": {"a.b_c": (1, 1), "a_b.c": (1, 1)}}
    source = DictSource({"lora_unet_a_b_c.lora_up.weight": np.ones((1, 1))}, "x.safetensors")
    with pytest.raises(UnsupportedAdapter, match="may mean a.b_c, a_b.c"):
        read_lora(source, paths)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "JSON"),
        ("[]", "JSON object"),
        ({"text_encoder.lora_alpha": "x"}, "not a number"),
        ({"text_encoder.lora_alpha": float("inf")}, "not a number"),
        ({"text_encoder.alpha_pattern": [1]}, "JSON object"),
        ({"text_encoder.alpha_pattern": {"(a+)+$": 3}}, "plain module path"),
    ],
)
def test_settings_that_cannot_be_followed(tmp_path, modules, settings, words):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    path = save(tmp_path / "x.safetensors", pair(), {"lora_adapter_metadata": text})
    with pytest.raises(UnsupportedAdapter, match=words):
        read_lora(path, modules)


def test_rank_stabilised_scale(tmp_path, modules):
    text = json.dumps({"text_encoder.lora_alpha": 3, "text_encoder.use_rslora": True})
    path = save(tmp_path / "x.safetensors", pair(rank=4), {"lora_adapter_metadata": text})
    lora = read_lora(path, modules)["text_encoder"]["encoder.layers.0.mlp.fc1"]
    assert lora.scale == pytest.approx(3 / 4**0.5)


def test_writing_nothing_or_to_nowhere(tmp_path):
    lora = LoraWeights(np.ones((1, 2)), np.ones((2, 1)))
    for adapters in ({}, {"unet": {}}, {"controlnet": {"x": lora}}):
        with pytest.raises(WeightsError):
            write_lora(tmp_path / "a.safetensors", adapters)
    assert not list(tmp_path.iterdir())
