"""The convert command: what it reports about files, imports, and exports from a run."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from flax import nnx
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from configs.first_light import get_config
from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.exporting import export_run, left_out
from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.pipeline import LORA_COMPONENTS, Pipeline
from persongen_jax.systems.open import open_run, open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import leaf_paths, split_model
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.directory import open_component, open_file, read_config
from persongen_jax.weights.formats.adapters import module_paths
from persongen_jax.weights.formats.ip_adapter import read_ip_adapter
from persongen_jax.weights.formats.lora.reading import read_lora
from persongen_jax.weights.formats.photomaker import load_photomaker_into, save_photomaker
from persongen_jax.weights.formats.sdxl.opening import NORMALISE
from tests.evaluation.test_validation import FACE_NET, moved
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.lora_files import named, random_lora, save
from tests.helpers.twins import randomise
from tests.weights.formats.sgm import checkpoint

RANK, ALPHA = 4, 2.0  # the scale is a half, so that a file without it is detected


def write_run(workdir, tiny_base, name, steps=(10, 20)):
    """What a run of a method leaves, with plausible trained weights."""
    config = get_config()
    config.base, config.method = str(tiny_base), name
    config.rank, config.lora_alpha = RANK, ALPHA
    system = open_system(config)
    _, trainable, _, _ = split_model(system.model, system.table)
    checkpoints = Checkpoints(workdir)
    settings = json.loads(config.to_json())
    for step in steps:
        checkpoints.save(step, moved(trainable, step), {"count": np.zeros(1)}, settings)
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(settings))
    return workdir


@pytest.fixture(scope="module")
def workdir(tiny_base, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), tiny_base, "photomaker_bg")


@pytest.fixture(scope="module")
def run(workdir):
    return open_run(workdir)


@pytest.fixture(scope="module")
def pipe(tiny_base):
    return Pipeline.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def unet(tiny_base):
    return UNet2DConditionModel.from_pretrained(tiny_base / "unet")


def fails(*options) -> str:
    """The message that the command ends with."""
    with pytest.raises(SystemExit) as caught:
        convert.main([str(option) for option in options])
    assert str(caught.value.code).startswith("error: ")
    return str(caught.value.code)


def tensors(path):
    with open_file(path) as file:
        return {key: file.read(key) for key in file.keys()}


def same(first, second):
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert array.dtype == second[key].dtype and np.array_equal(array, second[key]), key


# ---- export ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Path of a LoRA file by style."""
    folder = tmp_path_factory.mktemp("exported")
    names = ("diffusers", "kohya", "sgm", "comfy")
    paths = {name: folder / f"{name}.safetensors" for name in names}
    paths["peft"] = folder / "peft"
    export_run(run, paths["diffusers"], "diffusers-lora")
    export_run(run, paths["kohya"], "kohya-lora")
    export_run(run, paths["sgm"], "kohya-lora", sgm_names=True)
    export_run(run, paths["comfy"], "comfy")
    export_run(run, paths["peft"], "peft")
    return paths


@pytest.mark.parametrize("style", ["diffusers", "kohya", "sgm", "comfy", "peft"])
def test_exported_loras_return_bit_equal(style, exported, run, pipe):
    modules = {part: module_paths(getattr(pipe.model, part)) for part in LORA_COMPONENTS}
    found = read_lora(exported[style], modules)
    assert list(found) == ["unet"]
    leaves = leaf_paths(run.system.model)
    wanted = {path for path in leaves if path.endswith("/lora/down")}
    assert {f"unet/{name.replace('.', '/')}/lora/down" for name in found["unet"]} == wanted
    for name, lora in found["unet"].items():
        path = f"unet/{name.replace('.', '/')}/lora"
        assert np.array_equal(lora.down.T, leaves[f"{path}/down"].get_value())
        assert np.array_equal(lora.up.T, leaves[f"{path}/up"].get_value())
        assert lora.alpha == ALPHA


def test_the_styles_keys(exported):
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert f"unet.{block}.lora.up.weight" in tensors(exported["diffusers"])
    kohya = tensors(exported["kohya"])
    assert f"lora_unet_{block.replace('.', '_')}.lora_down.weight" in kohya
    assert kohya[f"lora_unet_{block.replace('.', '_')}.alpha"] == ALPHA
    sgm = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight"
    assert sgm in tensors(exported["sgm"])
    comfy = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_out.0.lora_up.weight"
    assert comfy in tensors(exported["comfy"])


def test_peft_opens_the_exported_folder(exported, run, unet):
    model = PeftModel.from_pretrained(unet, str(exported["peft"]))
    try:
        found = {
            name.removeprefix("base_model.model."): layer
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        leaves = leaf_paths(run.system.model)
        downs = [path for path in leaves if path.endswith("/lora/down") and "branches" not in path]
        assert {f"unet/{name.replace('.', '/')}/lora/down" for name in found} == set(downs)
        for name, layer in found.items():
            assert layer.scaling == {"default": ALPHA / RANK}
            for own, theirs in (("down", layer.lora_A), ("up", layer.lora_B)):
                kernel = leaves[f"unet/{name.replace('.', '/')}/lora/{own}"].get_value()
                assert np.array_equal(theirs["default"].weight.detach().numpy(), kernel.T)
    finally:
        model.unload()


def test_peft_s_form_is_a_folder(exported, run, workdir, tmp_path):
    files = sorted(path.name for path in exported["peft"].iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert "is an existing directory" in fails(
        "export", "--format", "peft", workdir, exported["peft"]
    )
    with pytest.raises(WeightsError, match="PEFT's form is a folder"):
        export_run(run, tmp_path / "a.safetensors", "peft")


@pytest.mark.parametrize("style", ["diffusers", "kohya", "sgm"])
def test_diffusers_opens_exported_loras(style, exported, run, unet):
    pipe = StableDiffusionXLPipeline(*[None] * 5, unet=unet, scheduler=DDIMScheduler())
    pipe.load_lora_weights(exported[style])
    try:
        found = {n: m for n, m in unet.named_modules() if isinstance(m, LoraLayer)}
        leaves = leaf_paths(run.system.model)
        downs = [path for path in leaves if path.endswith("/lora/down") and "branches" not in path]
        assert {f"unet/{name.replace('.', '/')}/lora/down" for name in found} == set(downs)
        for name, layer in found.items():
            (adapter,) = layer.scaling
            assert layer.scaling[adapter] == ALPHA / RANK
            for own, theirs in (("down", layer.lora_A), ("up", layer.lora_B)):
                kernel = leaves[f"unet/{name.replace('.', '/')}/lora/{own}"].get_value()
                assert np.array_equal(theirs[adapter].weight.detach().numpy(), kernel.T)
    finally:
        pipe.unload_lora_weights()


def test_an_exported_photomaker_fills_a_model_bit_equal(run, workdir, tiny_base, tmp_path, capsys):
    path = tmp_path / "mine.bin"
    convert.main(["export", "--format", "photomaker", str(workdir), str(path)])
    shown = capsys.readouterr().out
    assert re.search(r"written: .*mine\.bin: PhotoMaker; .*no place for .*background \(\d+", shown)
    again = open_run(workdir, 10).system.model
    load_photomaker_into(again, path)
    leaves = leaf_paths(run.system.model)
    for name, leaf in leaf_paths(again).items():
        if "branches" not in name:
            # the file stores the scale in up, a half: exact in float32
            assert np.array_equal(leaf.get_value(), leaves[name].get_value()), name

    # And imported again, as safetensors.
    out = tmp_path / "mine.safetensors"
    convert.main(["import", str(path), str(out), "--base", str(tiny_base)])
    same(tensors(out), tensors(path))
    assert "PhotoMaker v1, LoRA of rank 4" in capsys.readouterr().out


def test_a_photomaker_of_version_2_is_imported_bit_equal(workdir, tiny_base, tmp_path, capsys):
    model = open_run(workdir).system.model
    tower, faces = model.id_encoder.vision_model, 12  # the published recogniser's has 512 features
    kw = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    model.id_encoder = PhotoMakerV2IDEncoder(tower, (32, 64), id_features=faces, **kw)
    path, out = tmp_path / "v2.bin", tmp_path / "v2.safetensors"
    save_photomaker(model, path)
    convert.main(["import", str(path), str(out), "--base", str(tiny_base)])
    same(tensors(out), tensors(path))
    assert "PhotoMaker v2, LoRA of rank 4; no method reads it" in capsys.readouterr().out
    arrays = tensors(out)
    gone = "id_encoder.qformer_perceiver.token_proj.0.weight"
    del arrays[gone]
    broken = save(tmp_path / "broken.safetensors", arrays)
    assert gone in fails("import", broken, tmp_path / "b.safetensors", "--base", tiny_base)


def test_an_exported_ip_adapter_holds_what_was_trained(tiny_base, tmp_path, capsys):
    workdir = write_run(tmp_path / "run", tiny_base, "id_branch", steps=(5,))
    path = tmp_path / "mine.safetensors"
    convert.main(["export", "--format", "ip-adapter", str(workdir), str(path)])
    shown = capsys.readouterr().out
    assert "mine_image_encoder" in shown and "no place" not in shown
    assert (tmp_path / "mine_image_encoder" / "config.json").is_file()
    leaves = leaf_paths(open_run(workdir).system.model)
    with read_ip_adapter(path) as file:
        assert file.kind == "base" and file.sizes["num_tokens"] == 4
        arrays = {key: file.tensors.read(key) for key in file.tensors.keys()}
    block = "unet/down_blocks/1/attentions/0/transformer_blocks/0/attn2/branches/identity"
    for short in ("to_k", "to_v"):
        trained = leaves[f"{block}/{short}/kernel"].get_value()
        assert np.array_equal(arrays[f"ip_adapter.1.{short}_ip.weight"], trained.T)
    norm = leaves["id_tokens/id_norm/scale"].get_value()
    assert np.array_equal(arrays["image_proj.norm.weight"], norm)
    # And imported again.
    out = tmp_path / "again.safetensors"
    convert.main(["import", str(path), str(out), "--base", str(tiny_base)])
    same(tensors(out), arrays)
    assert "IP-Adapter, base, 4 tokens" in capsys.readouterr().out


def test_an_ip_adapter_of_dual_names_what_it_leaves_out(tiny_base, tmp_path):
    """Its branch has its own projection; the two heads belong to text space."""
    run = open_run(write_run(tmp_path / "run", tiny_base, "dual", steps=(5,)))
    said = export_run(run, tmp_path / "mine.safetensors", "ip-adapter")
    assert re.search(r"no place for .*fuse_module \(\d+ arrays\), projections \(2 arrays\)$", said)
    said = left_out(run, "photomaker")
    assert said["projections"] == 1 and "fuse_module" not in said


@pytest.mark.parametrize(
    ("name", "file_format", "reason", "others"),
    [
        ("id_branch", "photomaker", "has no LoRA on the base's layers", "as ip-adapter,"),
        ("cascade", "ip-adapter", "has no parallel attention branch on the id", "keep the run"),
        ("ip_lora", "ip-adapter", "has a LoRA on its attention branches", "kohya-lora,"),
        ("ip_lora", "photomaker", "has a LoRA on its attention branches", "kohya-lora,"),
        ("dual", "diffusers-lora", "has no LoRA on the base's layers", "as ip-adapter,"),
    ],
)
def test_a_format_that_is_not_the_methods(name, file_format, reason, others, tiny_base, tmp_path):
    workdir = write_run(tmp_path / "run", tiny_base, name, steps=(5,))
    out = tmp_path / "mine.safetensors"
    said = fails("export", "--format", file_format, workdir, out)
    assert f"{workdir}: its method {name} {reason}" in said and others in said
    assert not out.exists()


def test_a_dry_run_checks_and_writes_nothing(workdir, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    options = ["export", "--format", "kohya-lora", "--step", "10", "--dry_run"]
    convert.main([*options, str(workdir), str(out)])
    assert f"would be written: {out}: LoRA of" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "there are 10, 20" in fails(*options[:-2], "15", "--dry_run", workdir, out)


def test_exports_that_a_run_cannot_provide(run, exported, tmp_path):
    with pytest.raises(WeightsError, match="photomaker_bg has no parallel.* identity") as refused:
        export_run(run, tmp_path / "a.safetensors", "ip-adapter")
    assert str(run.workdir) in str(refused.value)
    assert "as diffusers-lora, kohya-lora, peft, comfy, photomaker," in str(refused.value)
    with pytest.raises(WeightsError, match=r"extension must be \.safetensors"):
        export_run(run, tmp_path / "a.bin", "diffusers-lora")
    assert list(tmp_path.iterdir()) == []
    there = exported["kohya"]
    assert "--force" in fails("export", "--format", "kohya-lora", run.workdir, there)
    said = fails("export", "--format", "photomaker", "--sgm_names", run.workdir, tmp_path / "a.bin")
    assert "--sgm_names" in said
    assert "no checkpoint" in fails(
        "export", "--format", "photomaker", tmp_path, tmp_path / "a.safetensors"
    )


# ---- import ------------------------------------------------------------------------------------


def test_a_kohya_pickle_becomes_diffusers_safetensors(pipe, tiny_base, tmp_path):
    adapters = random_lora(pipe, alpha=2.5)
    torch.save(
        {key: torch.from_numpy(np.array(x)) for key, x in named(adapters, "kohya").items()},
        tmp_path / "lora.pt",
    )
    out = tmp_path / "lora.safetensors"
    convert.main(["import", str(tmp_path / "lora.pt"), str(out), "--base", str(tiny_base)])
    modules = {part: module_paths(getattr(pipe.model, part)) for part in LORA_COMPONENTS}
    found = read_lora(out, modules)
    for part, layers in adapters.items():
        assert found[part].keys() == layers.keys()
        for name, lora in layers.items():
            again = found[part][name]
            assert np.array_equal(again.down, lora.down) and np.array_equal(again.up, lora.up)
            assert again.alpha == lora.alpha


def test_adapters_for_another_base_are_refused(pipe, tiny_base, exported, run, tmp_path):
    out = tmp_path / "out.safetensors"
    to_k = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    lora = {
        f"unet.{to_k}.lora_A.weight": np.zeros((2, 77), np.float32),
        f"unet.{to_k}.lora_B.weight": np.zeros((64, 2), np.float32),
        "unet.down_blocks.9.proj_in.lora_A.weight": np.zeros((2, 64), np.float32),
    }
    path = save(tmp_path / "lora.safetensors", lora)
    assert "down_blocks.9.proj_in" in fails("import", path, out, "--base", tiny_base)
    del lora["unet.down_blocks.9.proj_in.lora_A.weight"]
    path = save(tmp_path / "lora.safetensors", lora)
    said = fails("import", path, out, "--base", tiny_base)
    assert f"{to_k} down: file (2, 77), model (2, 96)" in said
    assert "--base DIR" in fails("import", path, out)

    good = tmp_path / "photomaker.safetensors"
    export_run(run, good, "photomaker")
    arrays = tensors(good)
    gone = next(key for key in arrays if key.endswith("attn1.processor.to_q_lora.down.weight"))
    del arrays[gone]
    arrays["id_encoder.more.weight"] = np.zeros((3, 3), np.float32)
    said = fails("import", save(tmp_path / "pm.safetensors", arrays), out, "--base", tiny_base)
    assert f"missing from the file (1):\n  {gone} (4, 64)" in said
    assert "unexpected in the file (1):\n  id_encoder.more.weight (3, 3)" in said
    assert not out.exists()


@pytest.mark.parametrize(("kind", "rank"), [("base", 0), ("plus", 0), ("faceid", 3)])
def test_ip_adapters_are_imported_bit_equal(kind, rank, unet, tiny_base, tmp_path):
    path, out = tmp_path / "adapter.bin", tmp_path / "adapter.safetensors"
    flat = write_ip_adapter(path, unet, kind, 64, rank=rank)
    wanted = {key: value.numpy() for key, value in flat.items()}
    convert.main(["import", str(path), str(out), "--base", str(tiny_base)])
    same(tensors(out), wanted)
    gone = "ip_adapter.5.to_k_ip.weight"
    broken = {key: x for key, x in wanted.items() if key != gone}
    broken["ip_adapter.1.to_v_ip.weight"] = np.zeros((3, 96), np.float32)
    path = save(tmp_path / "broken.safetensors", broken)
    said = fails("import", path, tmp_path / "b.safetensors", "--base", tiny_base)
    assert gone in said and "ip_adapter.1.to_v_ip.weight: file (3, 96), model (64, 96)" in said
    assert not (tmp_path / "b.safetensors").exists()


def test_a_face_recogniser_comes_in_as_safetensors(tmp_path):
    twin = randomise_statistics(randomise(TorchIResNet(**FACE_NET)))
    torch.save(twin.state_dict(), tmp_path / "backbone.pth")
    out = tmp_path / "face.safetensors"
    convert.main(["import", str(tmp_path / "backbone.pth"), str(out)])
    wanted = {k: v.numpy() for k, v in twin.state_dict().items() if "num_batches" not in k}
    same(tensors(out), wanted)
    assert "safetensors" in fails("import", tmp_path / "backbone.pth", tmp_path / "face.onnx")
    del wanted["bn2.bias"]
    wanted["nonsense.weight"] = np.zeros((2, 2), np.float32)
    wanted["features.weight"] = np.zeros(3, np.float32)
    broken = save(tmp_path / "broken.safetensors", wanted)
    said = fails("import", broken, tmp_path / "b.safetensors")
    assert "missing from the file (1):\n  bn2.bias" in said
    assert "unexpected in the file (1):\n  nonsense.weight" in said
    assert "of another shape (1):\n  features.weight: file (3,)" in said
    assert not (tmp_path / "b.safetensors").exists()


def test_a_single_file_checkpoint_becomes_a_directory(tiny_base, tmp_path):
    state = {}
    for name in COMPONENTS:
        with open_component(tiny_base / name) as file:
            source = NORMALISE[name](file)
            state[name] = {key: source.read(key) for key in source.keys()}
    single = save(tmp_path / "sdxl.safetensors", checkpoint(state, read_config(tiny_base / "unet")))
    configs = tmp_path / "configs"
    shutil.copytree(tiny_base, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    out = tmp_path / "sdxl"
    out.write_text("of another kind")
    assert "--force" in fails("import", single, out, "--base", configs)
    assert out.read_text() == "of another kind"
    convert.main(["import", str(single), str(out), "--base", str(configs), "--force"])
    for name in COMPONENTS:
        with open_component(out / name) as file:
            source = NORMALISE[name](file)
            same({key: source.read(key) for key in source.keys()}, state[name])
        assert read_config(out / name) == read_config(tiny_base / name)
    assert {"tokenizer", "tokenizer_2", "scheduler", "model_index.json"} <= {
        path.name for path in out.iterdir()
    }
    assert not out.with_name("sdxl.part").exists()


@pytest.mark.parametrize("options", [[], ["--force"], ["--force", "--dry_run"]])
def test_a_directory_is_never_replaced(options, tmp_path):
    kept = tmp_path / "out" / "kept"
    kept.mkdir(parents=True)
    said = fails("import", "sdxl.safetensors", kept.parent, "--base", "base", *options)
    assert "is an existing directory" in said and "--force" not in said
    assert kept.is_dir()


def test_a_file_does_not_replace_itself(tmp_path):
    path = save(tmp_path / "a.safetensors", {"x": np.zeros(2, np.float32)})
    said = fails("import", path, path, "--base", "base", "--force")
    assert "is the input file" in said


def test_unsupported_imports_are_refused(tiny_base, tmp_path):
    vae = tiny_base / "vae" / "diffusion_pytorch_model.safetensors"
    said = fails("import", vae, tmp_path / "a.safetensors", "--base", tiny_base)
    assert "a VAE in diffusers' format; there is nothing to import" in said


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_says_what_a_run_is(workdir, tiny_base, capsys):
    convert.main(["inspect", str(workdir)])
    shown = capsys.readouterr().out
    assert "what: a training run of this project" in shown
    assert "method: photomaker_bg" in shown and "checkpoints of step: 10, 20" in shown
    assert f"base: {tiny_base}" in shown and "dtypes: float32" in shown
    assert re.search(r"unet/…: \d+ tensors", shown)


def test_inspect_of_a_file_without_tensors(tmp_path, capsys):
    path = save(tmp_path / "a.safetensors", {})
    for options in ([], ["--keys"]):
        convert.main(["inspect", str(path), *options])
        shown = capsys.readouterr().out
        assert "size: 0 tensors" in shown and "dtypes: none" in shown


def test_inspect_lists_keys_sizes_and_notes(exported, capsys):
    convert.main(["inspect", "--keys", str(exported["kohya"])])
    shown = capsys.readouterr().out
    arrays = tensors(exported["kohya"])
    stored = sum(array.nbytes for array in arrays.values())
    assert f"size: {len(arrays):,} tensors, {stored // 4:,} numbers" in shown
    assert "what: a LoRA in kohya's style" in shown and "rank: 4" in shown
    assert "note ss_network_alpha: 2.0" in shown
    for key, array in arrays.items():
        assert f"  {key}  float32 {array.shape}" in shown
    assert "no such file" in fails("inspect", "/nowhere.safetensors")
