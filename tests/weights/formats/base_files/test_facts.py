"""What a base's files say of it: what the UNet predicts, its scheduler, its family."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.identify import identify
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.schedule import NoiseSchedule, training_target
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.weights.errors import BadConfig, MissingFile, WeightsError
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.formats.sdxl.opening import open_base
from tests.weights.formats.base_files.bases import (
    MARKERS,
    UNET,
    VAE,
    check_same,
    edited,
    only,
    save,
    unread,
)

V = {"prediction_type": "v_prediction"}


NOTES = {
    "modelspec v": ({"modelspec.prediction_type": "v"}, {}, False),
    "prediction_type": ({"prediction_type": "v_prediction"}, {}, False),
    "predict_key": ({"modelspec.predict_key": "v"}, {}, False),
    "kohya": ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, {}, True),
    "tensors": ({}, MARKERS, True),
    "v_pred alone": ({}, {"v_pred": MARKERS["v_pred"]}, False),
    "behind the unet's prefix": ({}, {UNET + "v_pred": MARKERS["v_pred"]}, False),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_marker_is_as_good_as_a_config(name, whole, bare, tmp_path, monkeypatch):
    notes, tensors, zero = NOTES[name]
    path = save(tmp_path / "v.safetensors", whole | tensors, notes)
    unread(monkeypatch)
    with open_base(path, config=bare) as files:
        found = files.scheduler_config
    said = V | ({"rescale_betas_zero_snr": True} if zero else {})
    wanted = json.loads((bare / "scheduler" / "scheduler_config.json").read_text()) | said
    assert found == wanted
    assert sum("v_prediction is taken" in note for note in files.notes) == 1
    assert sum("without signal" in note for note in files.notes) == zero
    ours, theirs = (make_plan(config, 4) for config in (found, wanted))
    assert ours.prediction_type == "v_prediction" and np.array_equal(ours.sigmas, theirs.sigmas)
    schedule = NoiseSchedule.from_config(found)
    assert (schedule.alphas_cumprod[-1] == 0) == zero
    latents, noise = np.random.default_rng(0).normal(size=(2, 1, 2, 2, 4)).astype(np.float32)
    step = jnp.array([400])
    target = training_target(schedule, latents, noise, step)
    same = training_target(NoiseSchedule.from_config(wanted), latents, noise, step)
    assert np.array_equal(target, same) and not np.array_equal(target, noise)
    assert identify(path).facts["predicts"].startswith("v_prediction")


def test_a_marker_that_agrees_is_silent(whole, bare, tmp_path):
    folder = edited(bare, tmp_path, scheduler=V | {"rescale_betas_zero_snr": True})
    path = save(tmp_path / "v.safetensors", whole | MARKERS)
    with open_base(path, config=folder) as files:
        assert files.notes == []


def test_a_marker_within_a_directory(tiny_base, bare, state, tmp_path):
    folder = edited(bare, tmp_path)
    for name in COMPONENTS:
        extra = MARKERS if name == "unet" else {}
        file = "model" if "text" in name else "diffusion_pytorch_model"
        save(folder / name / f"{file}.safetensors", state[name] | extra)
    with open_base(folder) as files:
        assert files.scheduler_config["prediction_type"] == "v_prediction"
        assert files.scheduler_config["rescale_betas_zero_snr"] is True
        check_same(files, state, ["unet"])
    assert "the scheduler's config says epsilon" in identify(folder).facts["predicts"]


def test_epsilon_marked_and_v_configured_is_not_silent(whole, bare, tmp_path):
    folder = edited(bare, tmp_path, scheduler=V)
    path = save(tmp_path / "e.safetensors", whole, {"modelspec.prediction_type": "epsilon"})
    with open_base(path, config=folder) as files:
        assert "epsilon is taken" in files.notes[0]
        assert files.scheduler_config["prediction_type"] == "epsilon"
    with open_base(path, config=folder, prediction_type="v_prediction") as files:
        assert "v_prediction is used, as requested" in files.notes[0]
        assert files.scheduler_config["prediction_type"] == "v_prediction"


def test_a_default_that_diffusers_marks_gives_way(whole, bare, tmp_path):
    marked = {"_use_default_values": ["prediction_type", "sigma_max"]}
    path = save(tmp_path / "v.safetensors", whole | MARKERS)
    with open_base(path, config=edited(bare, tmp_path, scheduler=marked)) as files:
        assert make_plan(files.scheduler_config, 4).prediction_type == "v_prediction"


def test_markers_that_cannot_be_followed(whole, bare, tmp_path):
    notes = {"modelspec.prediction_type": "epsilon"}
    path = save(tmp_path / "a.safetensors", whole | MARKERS, notes)
    with pytest.raises(WeightsError, match="contradicts itself.*--prediction-type"):
        open_base(path, config=bare)
    open_base(path, config=bare, prediction_type="epsilon").close()
    path = save(tmp_path / "b.safetensors", whole, {"prediction_type": "flow"})
    with pytest.raises(WeightsError, match="'flow'"):
        open_base(path, config=bare)
    path = save(tmp_path / "c.safetensors", whole | {"edm_vpred.sigma_max": np.zeros((), "f4")})
    with pytest.raises(WeightsError, match="EDM.*not supported with any sampler"):
        open_base(path, config=bare, prediction_type="v_prediction")


def test_a_marker_may_also_say_no(whole, bare, tmp_path):
    folder = edited(bare, tmp_path, scheduler=V | {"rescale_betas_zero_snr": True})
    notes = {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}
    path = save(tmp_path / "e.safetensors", whole, notes)
    with open_base(path, config=folder) as files:
        said = " ".join(files.notes)
        assert files.scheduler_config["prediction_type"] == "epsilon"
    assert "epsilon is taken" in said and "its schedule is not rescaled" in said
    assert "epsilon on a noise schedule that ends without signal" in said
    both = {"ss_v_parameterization": "False", "modelspec.prediction_type": "v"}
    with pytest.raises(WeightsError, match="contradicts itself about what it predicts"):
        open_base(save(tmp_path / "x.safetensors", whole, both), config=bare)
    both = {"ss_zero_terminal_snr": "False"}
    with pytest.raises(WeightsError, match="contradicts itself about its schedule's end"):
        open_base(save(tmp_path / "y.safetensors", whole | MARKERS, both), config=bare)


def test_who_overrules_a_marker_overrules_its_schedule(whole, bare, tmp_path):
    path = save(tmp_path / "v.safetensors", whole | MARKERS)
    with open_base(path, config=bare, prediction_type="epsilon") as files:
        assert not files.scheduler_config.get("rescale_betas_zero_snr")
        assert any("is not followed either" in note for note in files.notes)


def test_a_unets_own_scheduler_goes_with_it(tiny_base, tmp_path):
    """For a whole directory, and for the unet folder in it."""
    shutil.copytree(tiny_base, tmp_path / "v")
    file = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    asked = V | {"rescale_betas_zero_snr": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))
    for unet in (tmp_path / "v", tmp_path / "v" / "unet"):
        with open_base(tiny_base, unet=unet) as files:
            (note,) = files.notes
            assert "prediction_type='v_prediction'" in note and "in place of the base's" in note
            assert asked.items() <= files.scheduler_config.items()
    unsaid = json.loads(file.read_text()) | {"prediction_type": None, "num_train_timesteps": None}
    file.write_text(json.dumps(unsaid | {"rescale_betas_zero_snr": False}))
    for unet in (tiny_base, tmp_path / "v"):  # omitted keys mean epsilon and 1000
        with open_base(tiny_base, unet=unet) as files:
            assert not files.notes
    with open_base(tiny_base, config=tmp_path / "v") as files:
        assert "has no effect" in files.notes[0]


EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "sigma_max": 80.0}


SCHEDULERS = {
    "edm": (EDM, "EDMDPMSolver.*not supported with any sampler"),
    "edm euler": ({"_class_name": "EDMEulerScheduler"}, "EDMEuler.*not supported with any"),
    "flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
    "flow sigmas": (
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        "flow matching",
    ),
    "continuous": ({"timestep_type": "continuous"}, "EDM"),
    "text for a number": ({"beta_end": "0.012"}, "beta_end='0.012'.*quotation marks"),
    "text for a flag": ({"rescale_betas_zero_snr": "false"}, "rescale_betas.*true or false"),
    "not a number": ({"beta_start": float("nan")}, "beta_start=nan"),
    "half a step": ({"num_train_timesteps": 1000.5}, "num_train_timesteps=1000.5.*whole"),
    "no class": ({"_class_name": ["x"]}, "_class_name"),
    "unknown class": ({"_class_name": "SCMScheduler"}, "SCMScheduler is unknown.*set Euler"),
    "edm, null betas": ({"sigma_data": 0.5, "trained_betas": None}, "sigma_data=0.5"),
    "shifted": ({"snr_shift_scale": 3.0}, "snr_shift_scale=3.0 moves its noise schedule"),
    "defaults": ({"_use_default_values": 3}, "_use_default_values=3"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_says_something_else(name, tiny_base, tmp_path, monkeypatch):
    change, match = SCHEDULERS[name]
    folder = tmp_path / "base"
    folder.mkdir()
    for part in tiny_base.iterdir():
        if part.name != "scheduler":
            (folder / part.name).symlink_to(part)
    config = json.loads((tiny_base / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | change))
    unread(monkeypatch)
    with pytest.raises(BadConfig, match=match) as caught:
        open_base(folder)
    assert "scheduler_config.json" in str(caught.value)
    with pytest.raises(ValueError, match=match):
        make_plan(config | change, 4, "euler")


def test_null_is_what_diffusers_takes(bare):
    config = json.loads((bare / "scheduler" / "scheduler_config.json").read_text())
    names = ("timestep_spacing", "steps_offset", "beta_schedule", "prediction_type")
    absent = {key: value for key, value in config.items() if key not in names}
    null = make_plan(config | dict.fromkeys(names), 4)
    assert np.array_equal(null.timesteps, make_plan(absent, 4).timesteps)
    assert np.array_equal(null.sigmas, make_plan(absent, 4).sigmas)


@pytest.mark.parametrize("name", ["UniPCMultistep", "HeunDiscrete", "LCM", "TCD", "DEISMultistep"])
def test_a_sampler_that_is_not_here_names_the_flag(name, bare):
    config = json.loads((bare / "scheduler" / "scheduler_config.json").read_text())
    config |= {"_class_name": f"{name}Scheduler"}
    with pytest.raises(ValueError, match="--scheduler NAME.*--config.validation_scheduler"):
        make_plan(config, 4)
    assert make_plan(config, 4, "euler").name == "euler"


def test_other_unets_are_refused_at_the_config(bare, tmp_path):
    with pytest.raises(BadConfig, match="in_channels is 9: this is an inpainting UNet"):
        open_base(edited(bare, tmp_path, unet={"in_channels": 9}))
    shutil.rmtree(tmp_path / "edited")
    # What a UNet reads and predicts alike are latents, and then the VAE must have as many.
    with pytest.raises(BadConfig, match="latents of 4 channels and the UNet reads 12"):
        open_base(edited(bare, tmp_path, unet={"in_channels": 12, "out_channels": 12}))
    shutil.rmtree(tmp_path / "edited")
    with pytest.raises(BadConfig, match="64 wide and the UNet reads 2048"):
        open_base(edited(bare, tmp_path, unet={"cross_attention_dim": 2048}))
    shutil.rmtree(tmp_path / "edited")
    folder = edited(bare, tmp_path, unet={"addition_embed_type": None, "cross_attention_dim": 768})
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(BadConfig, match="this is SD 1.x.*768"):
        open_base(folder)
    assert identify(edited(bare, tmp_path / "b", unet={"cross_attention_dim": 1280})).facts[
        "family"
    ] == ("the SDXL refiner")


def test_a_unet_of_another_family_as_a_file(whole, bare, tmp_path):
    sd15 = {k: v for k, v in only(whole, UNET).items() if "label_emb" not in k}
    key = next(k for k in sd15 if k.endswith("attn2.to_k.weight"))
    sd15[key] = np.zeros((64, 768), np.float32)
    path = save(tmp_path / "sd15.safetensors", sd15)
    for options in ({"config": bare}, {}):
        with pytest.raises(WeightsError, match="this is SD 1.x .*768 wide"):
            open_base(path, **options)
    wide = dict(whole)
    wide[UNET + "input_blocks.0.0.weight"] = np.zeros((32, 9, 3, 3), np.float32)
    with pytest.raises(BadConfig, match="inpainting"):
        open_base(save(tmp_path / "in.safetensors", wide), config=bare)
    flux = {UNET + "double_blocks.0.img_attn.qkv.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(WeightsError, match="this is FLUX"):
        open_base(save(tmp_path / "flux.safetensors", flux), config=bare)


def test_directories_that_are_no_sdxl(tiny_base, tmp_path):
    with pytest.raises(MissingFile, match="AutoencoderKL"):
        open_base(tiny_base / "vae")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2D"}')
    with pytest.raises(MissingFile, match="FluxTransformer2D"):
        open_base(tmp_path)


CONFIGS = {
    "unet": ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'.*a number above 0; remove the quotation"),
    "unet, null": ({"freq_shift": None}, "freq_shift is None, and must be a number"),
    "unet, size": ({"sample_size": "x"}, "sample_size is 'x'"),
    "unet, ids": ({"addition_time_embed_dim": 7}, "projection_class_embeddings_input_dim is .* 7"),
    "unet, nested": ({"transformer_layers_per_block": [1, [2, 2]]}, ".*SSD-1B"),
    "unet, text": ({"in_channels": "4"}, "in_channels is '4'"),
    "vae": ({"scaling_factor": "0.13025"}, "scaling_factor is '0.13025'"),
    "vae, null": ({"scaling_factor": None}, "scaling_factor is None"),
    "vae, zero": ({"scaling_factor": 0}, "scaling_factor is 0, and must be a number above 0"),
    "vae, shift": ({"shift_factor": "x"}, "shift_factor is 'x'"),
    "vae, lists": ({"latents_mean": [0] * 4, "latents_std": [0] * 4}, "latents_std is"),
    "text_encoder": ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configs_values_are_checked_before_weights_are_read(case, bare, tmp_path):
    change, match = CONFIGS[case]
    name = case.partition(",")[0]
    with pytest.raises(BadConfig, match=f"{name}/config.json: {match}"):
        open_base(edited(bare, tmp_path, **{name: change}))


def test_without_a_sample_size_the_picture_is_sdxls(tiny_base):
    from persongen_jax.pipeline.images import default_size

    base = load_sdxl(tiny_base)
    factor = base.model.vae.vae_scale_factor
    for given, wanted in ((None, 128), (16, 16), ([8, 12], (8, 12))):
        base.configs["unet"]["sample_size"] = given
        height, width = default_size(base)
        assert [height // factor, width // factor] == np.broadcast_to(wanted, 2).tolist()


JOINT = "transformer_blocks.0.attn.add_q_proj.weight"


OTHERS = {
    "FLUX": f"single_transformer_blocks.0.attn.to_q.weight {JOINT}",
    "SD 3": JOINT,
    "Qwen-Image": f"{JOINT} transformer_blocks.0.img_mod.1.weight",
    "PixArt": "blocks.0.cross_attn.q_linear.weight y_embedder.y_embedding",
    "Wan": "blocks.0.self_attn.q.weight",
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_called_by_their_names(family, bare, tmp_path):
    tensors = {key: np.zeros((2, 2), "f4") for key in OTHERS[family].split()}
    path = save(tmp_path / "a.safetensors", tensors)
    assert identify(path).facts["family"] == family
    with pytest.raises(WeightsError, match=f"this is {family}"):
        open_base(path, config=bare)


def test_files_that_are_no_base(tiny_base, bare, tmp_path):
    lora = {"unet.x.attn1.to_k.lora.down.weight": np.zeros((4, 8), "f4")}
    lora |= {"unet.x.attn1.to_k.lora.up.weight": np.zeros((8, 4), "f4")}
    with pytest.raises(WeightsError, match="LoRA"):
        open_base(save(tmp_path / "lora.safetensors", lora), config=bare)
    for start, match in ((b"GGUF\3\0", "GGUF"), (b"<!DOCTYPE html>", "web page")):
        (tmp_path / "x.safetensors").write_bytes(start + bytes(40))
        with pytest.raises(WeightsError, match=match):
            open_base(tmp_path / "x.safetensors", config=bare)


def test_inspect_prints_what_is_recognised(whole, tmp_path, capsys):
    path = save(tmp_path / "a.safetensors", only(whole, UNET, VAE) | MARKERS)
    convert.main(["inspect", str(path)])
    said = capsys.readouterr().out
    for line in (
        "family: SDXL",
        "parts: the UNet (sgm), the VAE (sgm)",
        "missing: the first text encoder, the second text encoder",
        "predicts: v_prediction, zero terminal SNR",
        "stored as: float32",
    ):
        assert line in said
