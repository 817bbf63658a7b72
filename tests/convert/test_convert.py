"""The convert command exports a run's weights in the formats of others."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from flax import nnx
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.exporting import export_run, left_out
from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder
from persongen_jax.pipeline import LORA_COMPONENTS
from persongen_jax.systems.open import open_run
from persongen_jax.training.partition import leaf_paths
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.adapters import module_paths
from persongen_jax.weights.formats.ip_adapter import read_ip_adapter
from persongen_jax.weights.formats.lora.reading import read_lora
from persongen_jax.weights.formats.photomaker import load_photomaker_into, save_photomaker
from tests.convert.runs import ALPHA, RANK, fails, same, tensors, write_run
from tests.helpers.lora_files import save


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


@pytest.mark.slow
def test_a_photomaker_of_version_2_is_imported_bit_equal(workdir, tiny_base, tmp_path, capsys):
    model = open_run(workdir).system.model
    tower, faces = model.id_encoder.vision_model, 12  # the published recogniser's has 512 features
    kw = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    model.id_encoder = PhotoMakerV2IDEncoder(tower, (32, 64), id_features=faces, **kw)
    path, out = tmp_path / "v2.bin", tmp_path / "v2.safetensors"
    save_photomaker(model, path)
    convert.main(["import", str(path), str(out), "--base", str(tiny_base)])
    same(tensors(out), tensors(path))
    assert "PhotoMaker v2, LoRA of rank 4; generate reads it" in capsys.readouterr().out
    arrays = tensors(out)
    gone = "id_encoder.qformer_perceiver.token_proj.0.weight"
    del arrays[gone]
    broken = save(tmp_path / "broken.safetensors", arrays)
    assert gone in fails("import", broken, tmp_path / "b.safetensors", "--base", tiny_base)


def test_an_exported_ip_adapter_holds_what_was_trained(small_base, tmp_path, capsys):
    workdir = write_run(tmp_path / "run", small_base, "id_branch", steps=(5,))
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
    convert.main(["import", str(path), str(out), "--base", str(small_base)])
    same(tensors(out), arrays)
    assert "IP-Adapter, base, 4 tokens" in capsys.readouterr().out


def test_an_ip_adapter_of_dual_names_what_it_leaves_out(small_base, tmp_path):
    """Its branch has its own projection; the two heads belong to text space."""
    run = open_run(write_run(tmp_path / "run", small_base, "dual", steps=(5,)))
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
def test_a_format_that_is_not_the_methods(name, file_format, reason, others, small_base, tmp_path):
    workdir = write_run(tmp_path / "run", small_base, name, steps=(5,))
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
