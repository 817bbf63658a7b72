"""The convert command imports files of others, and says what a file or run is."""

import re
import shutil

import numpy as np
import pytest
import torch

from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.exporting import export_run
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.pipeline import LORA_COMPONENTS
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.formats.adapters import module_paths
from persongen_jax.weights.formats.clip import load_clip
from persongen_jax.weights.formats.lora.reading import read_lora
from persongen_jax.weights.formats.sdxl.opening import NORMALISE
from tests.convert.runs import fails, same, tensors
from tests.evaluation.tiny import FACE_NET
from tests.helpers.encoders import eva_files
from tests.helpers.encoders.dino_files import facebook_names, torch_dino, torch_dinov2
from tests.helpers.encoders.judge_files import lpips_halves, seeded, shapes_of
from tests.helpers.encoders.open_clip_files import openai_names, torch_clip
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.lora_files import named, random_lora, save
from tests.helpers.twins import randomise
from tests.weights.formats.sgm import checkpoint


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


@pytest.mark.parametrize(
    ("kind", "rank"), [("base", 0), ("plus", 0), ("faceid", 3), ("faceid-plus", 3)]
)
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


@pytest.mark.parametrize("twin", [torch_dino, torch_dinov2])
def test_dinos_encoders_come_in_as_safetensors(twin, tmp_path, capsys):
    state = facebook_names(twin())
    version = "v2" if "mask_token" in state else ""
    torch.save({**state, "head.weight": torch.zeros(2, 128)}, tmp_path / "pretrain.pth")
    out = tmp_path / "dino.safetensors"
    convert.main(["import", str(tmp_path / "pretrain.pth"), str(out)])
    assert f"patches of 8; evaluate reads it by --dino{version}\n" in capsys.readouterr().out
    state.pop("mask_token", None)
    same(tensors(out), {key: value.numpy() for key, value in state.items()})
    convert.main(["inspect", str(out)])
    assert f"what: DINO{version}'s image encoder" in capsys.readouterr().out

    arrays = tensors(out)
    del arrays["blocks.1.norm1.bias"]
    arrays["blocks.1.mlp.fc2.bias"] = np.zeros(3, np.float32)
    broken = save(tmp_path / "broken.safetensors", {**arrays, "more": np.zeros(2, np.float32)})
    said = fails("import", broken, tmp_path / "b.safetensors")
    for fault in ("(1):\n  blocks.1.norm1.bias", "(1):\n  more", "fc2.bias: file (3,)"):
        assert fault in said
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("inception 2", "FID's Inception; evaluate reads it by --inception"),
        ("facenet 2", "crops of 160 pixels; evaluate reads it by --face-net"),
        ("lpips vgg 16", "LPIPS on vgg; evaluate reads it by --lpips"),
        ("lpips vgg 16 backbone", "backbone of LPIPS (vgg); evaluate reads its folder"),
        ("lpips vgg 16 heads", "heads of LPIPS (a net of other widths); evaluate reads"),
    ],
)
def test_judges_come_in_as_safetensors(net, said, tmp_path, capsys):
    name, _, half = net.rpartition(" ")
    whole = half.isdigit()
    state = seeded(shapes_of(net if whole else name))
    state = state if whole else lpips_halves(state)[half]
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "a.pth")
    out = tmp_path / "ours.safetensors"
    convert.main(["import", str(tmp_path / "a.pth"), str(out)])
    assert said in capsys.readouterr().out
    unused = re.compile(r"lins\.|scaling_layer\.|classifier\.|.*num_batches_tracked")
    wanted = {key: value for key, value in state.items() if not unused.match(key)}
    same(tensors(out), wanted)

    arrays = tensors(out)
    ends = ("branch_pool.bn.bias", "last_bn.bias", ".19.bias", "lin3.model.1.weight")
    gone = next(key for key in wanted if key.endswith(ends))
    del arrays[gone]
    broken = save(tmp_path / "broken.safetensors", {**arrays, "more": np.zeros(2, np.float32)})
    message = fails("import", broken, tmp_path / "b.safetensors")
    ours = {"bias": gone.rpartition(".")[2], "weight": "heads.3"}[gone.rpartition(".")[2]]
    assert ours in message and "more" in message
    assert not (tmp_path / "b.safetensors").exists()


def test_clip_in_openais_layout_comes_in_as_safetensors(tmp_path, capsys):
    state = openai_names(torch_clip(tmp_path, "quick_gelu"))
    path, out = tmp_path / "ViT-quickgelu.pt", tmp_path / "clip.safetensors"
    torch.save({**state, "input_resolution": torch.tensor(32)}, path)
    convert.main(["import", str(path), str(out)])
    assert "quick_gelu (by the file's name); evaluate reads it by --clip" in capsys.readouterr().out
    wanted = {key: value.numpy() for key, value in state.items() if key != "logit_scale"}
    same(tensors(out), wanted)
    assert load_clip(out).note == "quick_gelu (as the file's metadata say)"

    broken = {**wanted, "visual.ln_pre.weight": np.zeros(3, np.float32)}
    said = fails("import", save(tmp_path / "a.safetensors", broken), tmp_path / "b.safetensors")
    assert "pre_layrnorm.weight: file (3,), model (192,)" in said


@pytest.mark.parametrize("alone", [True, False])
def test_eva_clip_comes_in_as_safetensors(alone, tmp_path, capsys):
    state = eva_files.native_names(eva_files.tower_weights(eva_files.shapes_of("tiny")))
    if alone:
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    path, out = tmp_path / "eva.pt", tmp_path / "eva.safetensors"
    tables = {"visual.rope.freqs_cos": torch.zeros(36, 64)}
    torch.save({**{k: torch.from_numpy(v.copy()) for k, v in state.items()}, **tables}, path)
    convert.main(["import", str(path), str(out)])
    said = capsys.readouterr().out
    assert ("EVA-CLIP's image tower at 24 pixels" if alone else "both towers") in said
    same(tensors(out), {key: value for key, value in state.items() if key != "logit_scale"})

    broken = {**tensors(out), "visual.norm.weight": np.zeros(3, np.float32)}
    broken.pop("visual.blocks.1.mlp.w3.bias")
    said = fails("import", save(tmp_path / "a.safetensors", broken), tmp_path / "b.safetensors")
    assert "norm.weight: file (3,), model (128,)" in said
    assert "(1):\n  blocks.1.mlp.w3.bias" in said and not (tmp_path / "b.safetensors").exists()


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
