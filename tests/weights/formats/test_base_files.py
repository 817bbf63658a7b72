"""Bases as users have them: recognised by headers and configs before any weight is read."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.identify import identify
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.schedule import NoiseSchedule, training_target
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.files.safetensors_file import TensorFile, write_safetensors
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.formats.sdxl.opening import NORMALISE, open_base
from tests.weights.formats.sgm import checkpoint, unet_to_sgm

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_2 = "conditioner.embedders.1.model."
MARKERS = {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}
V = {"prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def state(tiny_base):
    out = {}
    for name in COMPONENTS:
        with open_component(tiny_base / name) as file:
            source = NORMALISE[name](file)
            out[name] = {key: source.read(key) for key in source.keys()}
    return out


@pytest.fixture(scope="module")
def whole(state, tiny_base):
    """A whole checkpoint's tensors, with sgm's names."""
    return checkpoint(state, read_config(tiny_base / "unet"))


@pytest.fixture(scope="module")
def bare(tiny_base, tmp_path_factory):
    """The directory without any weights."""
    folder = tmp_path_factory.mktemp("bare") / "base"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def save(path, tensors, metadata=None):
    entries = [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
    write_safetensors(path, entries, metadata)
    return path


def only(tensors, *prefixes):
    return {key: value for key, value in tensors.items() if key.startswith(prefixes)}


def edited(bare, tmp_path, **changes):
    """The bare directory with other values in its configs; by component."""
    folder = tmp_path / "edited"
    shutil.copytree(bare, folder)
    for name, change in changes.items():
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        path = folder / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def unread(monkeypatch):
    """From here on, reading a tensor fails."""

    def read(self, key):
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(TensorFile, "read", read)


def check_same(files, state, parts=COMPONENTS):
    for name in parts:
        assert set(files.sources[name].keys()) == set(state[name]), name
        for key in list(state[name])[::20]:
            assert np.array_equal(files.sources[name].read(key), state[name][key]), key


# ---- What the UNet predicts --------------------------------------------------------------------

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


# ---- Schedulers --------------------------------------------------------------------------------

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


# ---- Other families ----------------------------------------------------------------------------


def test_other_unets_are_refused_at_the_config(bare, tmp_path):
    with pytest.raises(BadConfig, match="in_channels is 9: this is an inpainting UNet"):
        open_base(edited(bare, tmp_path, unet={"in_channels": 9}))
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


# ---- Parts from different places ---------------------------------------------------------------


def test_known_extras_are_ignored_with_a_line(whole, state, bare, tmp_path):
    extras = dict.fromkeys(("alphas_cumprod", "betas", "posterior_variance"), np.zeros(1000, "f4"))
    extras |= {"global_step": np.array(7), VAE + "loss.logvar": np.zeros((), np.float32)}
    path = save(tmp_path / "full.safetensors", whole | extras)
    with open_base(path, config=bare) as files:
        check_same(files, state)
    (note,) = files.notes
    assert all(name in note for name in extras) and "position_ids" not in note
    with pytest.raises(KeyMismatch, match="something_else"):
        path = save(tmp_path / "odd.safetensors", whole | {"something_else": np.zeros(1, "f4")})
        open_base(path, config=bare)


def unet_file(kind, state, whole, tmp_path):
    tensors = {
        "sgm": lambda: only(whole, UNET),
        "sgm, flat": lambda: {
            k.removeprefix(UNET): v for k, v in only(whole, UNET).items() if "model_ema" not in k
        },
        "diffusers, flat": lambda: state["unet"],
        "diffusers, unet.": lambda: {f"unet.{k}": v for k, v in state["unet"].items()},
    }[kind]()
    return save(tmp_path / "unet.safetensors", tensors)


@pytest.mark.parametrize("kind", ["sgm", "sgm, flat", "diffusers, flat", "diffusers, unet."])
def test_a_unet_alone(kind, state, whole, tiny_base, bare, tmp_path):
    path = unet_file(kind, state, whole, tmp_path)
    assert identify(path).kind == ("unet-sgm" if kind.startswith("sgm") else "unet")
    with pytest.raises(MissingFile, match="holds the UNet;.*--vae.*--text-encoders"):
        open_base(path, config=bare)
    with open_base(path, config=tiny_base) as files:  # its weights fill in the rest
        check_same(files, state)
        assert len(files.notes) == 3 and "without the VAE" in files.notes[0]
    with open_base(tiny_base, unet=path) as files:
        check_same(files, state)
        assert not files.notes
    options = {"vae": tiny_base / "vae", "text_encoders": tiny_base}
    with open_base(path, config=bare, **options) as files:
        check_same(files, state)


def test_a_vae_alone(whole, state, tiny_base, bare, tmp_path):
    plain = save(tmp_path / "vae.safetensors", state["vae"])
    sgm = save(tmp_path / "sgm.safetensors", only(whole, VAE))
    flat = {k.removeprefix(VAE): v for k, v in only(whole, VAE).items()}
    flat = save(tmp_path / "flat.safetensors", flat | {"loss.logvar": np.zeros((), "f4")})
    for path, kind in ((plain, "vae"), (sgm, "vae-sgm"), (flat, "vae-sgm")):
        assert identify(path).kind == kind
        with open_base(tiny_base, vae=path) as files:
            check_same(files, state)
        with pytest.raises(WeightsError, match="this is a VAE alone.*--vae"):
            open_base(path, config=tiny_base)
    rest = {key: value for key, value in whole.items() if not key.startswith(VAE)}
    rest = save(tmp_path / "rest.safetensors", rest)
    with pytest.raises(MissingFile, match="the VAE is missing. Give vae="):
        open_base(rest, config=bare)
    with open_base(rest, config=bare, vae=sgm) as files:
        check_same(files, state)
    assert identify(rest).facts["missing"] == "the VAE"
    with pytest.raises(WeightsError, match="the VAE is not in it, but the UNet"):
        path = save(tmp_path / "unet.safetensors", state["unet"])
        open_base(tiny_base, vae=path)
    other = edited(bare, tmp_path, vae={"scaling_factor": 0.18215})
    with pytest.raises(BadConfig, match="scaling_factor is 0.18215 and the base's 0.13025"):
        open_base(tiny_base, vae=other)


def test_no_text_encoders(whole, state, tiny_base, bare, tmp_path):
    path = save(tmp_path / "a.safetensors", only(whole, UNET, VAE))
    with pytest.raises(MissingFile, match="text encoder.*--text-encoders"):
        open_base(path, config=bare)
    with open_base(path, config=bare, text_encoders=tiny_base) as files:
        check_same(files, state)


def test_what_a_directory_lacks_is_told_at_once(bare, tiny_base):
    with pytest.raises(
        MissingFile, match="holds no weights; the UNet.*are missing. .*--unet.*--vae"
    ):
        open_base(bare)


def test_one_shard_and_an_index_lead_to_their_folder(whole, bare, tmp_path):
    path = save(tmp_path / "model-00001-of-00002.safetensors", only(whole, UNET))
    with pytest.raises(WeightsError, match="shard 1 of 2. Give the folder"):
        open_base(path, config=bare)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(WeightsError, match="an index of shards. Give its folder"):
        open_base(index, config=bare)


WRAPPED = {
    "several devices": "module.{}",
    "compiled": "_orig_mod.{}",
    "both": "module._orig_mod.{}",
    "inside": "{}",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_of_torchs_wrappers_are_removed(kind, whole, state, bare, tmp_path):
    names = {key: WRAPPED[kind].format(key) for key in whole}
    if kind == "inside":
        names = {key: key.replace(UNET, UNET + "_orig_mod.") for key in whole}
    path = save(tmp_path / "a.safetensors", {names[key]: value for key, value in whole.items()})
    with open_base(path, config=bare) as files:
        check_same(files, state)


def test_names_that_some_tools_write_beside_sgms(whole, state, bare, tmp_path):
    """ComfyUI's transposed projection, and the first text encoder's, which nothing reads."""
    projection = f"{TEXT_2}text_projection"
    extra = {key: value for key, value in whole.items() if key != projection}
    extra[f"{projection}.weight"] = np.ascontiguousarray(whole[projection].T)
    extra["conditioner.embedders.0.text_projection.weight"] = np.zeros((2, 2), "f4")
    extra |= {"alphas_cumprod_next": np.zeros(3, "f4"), f"{VAE}logvar": np.zeros(1, "f4")}
    with open_base(save(tmp_path / "a.safetensors", extra), config=bare) as files:
        check_same(files, state)


def test_integers_are_no_weights(tiny_base, state, tmp_path):
    key = "conv_in.weight"
    path = save(
        tmp_path / "unet.safetensors", state["unet"] | {key: state["unet"][key].astype("i1")}
    )
    with pytest.raises(WeightsError, match="'conv_in.weight' is stored as int8"):
        load_sdxl(tiny_base, unet=path)


def test_a_vae_with_more_channels_is_refused(whole, tiny_base, tmp_path):
    flat = {k.removeprefix(VAE): v for k, v in only(whole, VAE).items()}
    shape = list(flat["decoder.conv_in.weight"].shape)
    flat["decoder.conv_in.weight"] = np.zeros([shape[0], 16, *shape[2:]], "f4")
    with pytest.raises(WeightsError, match="latents have 16 channels .*and 4 are needed"):
        open_base(tiny_base, vae=save(tmp_path / "ae.safetensors", flat))


def test_one_text_encoders_folder(tiny_base, state, tmp_path):
    shutil.copytree(tiny_base / "text_encoder", tmp_path / "sd15" / "text_encoder")
    with open_base(tiny_base, text_encoders=tmp_path / "sd15") as files:
        check_same(files, state)


@pytest.mark.parametrize("option", ["path", "config", "unet", "vae", "text_encoders"])
def test_values_that_are_not_paths_are_refused(option, tiny_base):
    with pytest.raises(MissingFile, match="=5: give a path"):
        open_base(**{"path": tiny_base, option: 5})


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


def test_text_encoders_in_files_of_their_own(whole, state, tiny_base, bare, tmp_path):
    """transformers' names in one folder, open_clip's in a file; the base provides the rest."""
    path = save(tmp_path / "a.safetensors", only(whole, UNET, VAE))
    (tmp_path / "both").mkdir()
    temperature, unread = np.ones((), "f4"), np.zeros((4, 4), "f4")
    first = state["text_encoder"] | {"logit_scale": temperature, "text_projection.weight": unread}
    first = save(tmp_path / "both" / "clip_l.safetensors", first)
    save(tmp_path / "both" / "clip_g.safetensors", state["text_encoder_2"])
    with open_base(path, config=bare, text_encoders=tmp_path / "both") as files:
        check_same(files, state)
        said = {note.rpartition(": ")[2] for note in files.notes}
        assert said == {"the first text encoder", "the second text encoder"}
    flat = {k.removeprefix(TEXT_2): v for k, v in only(whole, TEXT_2).items()}
    second = save(tmp_path / "open_clip.safetensors", flat)
    assert identify(first).kind == identify(second).kind == "clip-text"
    for one in (first, second):
        with open_base(tiny_base, text_encoders=one) as files:
            check_same(files, state)
    with pytest.raises(MissingFile, match="the first text encoder is missing"):
        open_base(path, config=bare, text_encoders=second)
    save(tmp_path / "both" / "copy.safetensors", state["text_encoder_2"])
    with pytest.raises(WeightsError, match="copy.safetensors: the second .*Leave one of them"):
        open_base(tiny_base, text_encoders=tmp_path / "both")
    wide = {"text_model.embeddings.token_embedding.weight": np.zeros((9, 7), "f4")}
    with pytest.raises(WeightsError, match="width 7; the base's have"):
        open_base(tiny_base, text_encoders=save(tmp_path / "wide.safetensors", wide))


def test_files_that_are_no_base(tiny_base, bare, tmp_path):
    lora = {"unet.x.attn1.to_k.lora.down.weight": np.zeros((4, 8), "f4")}
    lora |= {"unet.x.attn1.to_k.lora.up.weight": np.zeros((8, 4), "f4")}
    with pytest.raises(WeightsError, match="LoRA"):
        open_base(save(tmp_path / "lora.safetensors", lora), config=bare)
    for start, match in ((b"GGUF\3\0", "GGUF"), (b"<!DOCTYPE html>", "web page")):
        (tmp_path / "x.safetensors").write_bytes(start + bytes(40))
        with pytest.raises(WeightsError, match=match):
            open_base(tmp_path / "x.safetensors", config=bare)


@pytest.mark.parametrize("name", ["sdxl.ckpt", "sdxl.pt"])
def test_a_pickled_checkpoint(name, whole, state, bare, tmp_path):
    torch = pytest.importorskip("torch")
    inner = {key: torch.from_numpy(np.array(value)) for key, value in whole.items()}
    around = {"global_step": 3, "optimizer_states": [{0: 1}], "callbacks": {1: 2}}
    torch.save({"state_dict": inner, **around}, tmp_path / name)
    with open_base(tmp_path / name, config=bare) as files:
        check_same(files, state)
    found = identify(tmp_path / name)
    assert (found.kind, found.facts["family"]) == ("checkpoint", "SDXL")
    wrong = (tmp_path / name).rename(tmp_path / "renamed.safetensors")
    with pytest.raises(WeightsError, match="torch's own files. Rename it"):
        open_base(wrong, config=bare)
    right = save(tmp_path / "renamed.ckpt", whole)
    with open_base(right, config=bare) as files:
        check_same(files, state, ["vae"])


# ---- fp8 ---------------------------------------------------------------------------------------


def quantised(tensors, newer, rows=False):
    """The attention's linear layers in fp8: (tensors, metadata, the values they represent)."""
    out, layers, wanted = dict(tensors), {}, {}
    for key in [k for k in tensors if k.endswith("to_q.weight") and k.startswith(UNET)]:
        value, layer = tensors[key], key.removesuffix(".weight")
        axis = tuple(range(1, value.ndim)) if rows else None
        scale = (np.abs(value).max(axis, keepdims=rows) / 448).astype(np.float32)
        out[key] = (value / scale).astype(ml_dtypes.float8_e4m3fn)
        out[layer + (".weight_scale" if newer else ".scale_weight")] = scale
        out[layer + (".input_scale" if newer else ".scale_input")] = np.ones((), np.float32)
        wanted[key] = out[key].astype(np.float32) * scale
        layers[layer] = {"format": "float8_e4m3fn"}
    if not newer:
        out[UNET + "scaled_fp8"] = np.zeros(2, ml_dtypes.float8_e4m3fn)
        return out, {}, wanted
    return out, {"_quantization_metadata": json.dumps({"layers": layers})}, wanted


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_is_multiplied_out(newer, rows, whole, state, bare, tiny_base, tmp_path):
    tensors, notes, wanted = quantised(whole, newer, rows)
    path = save(tmp_path / "fp8.safetensors", tensors, notes)
    unet = read_config(tiny_base / "unet")
    with open_base(path, config=bare) as files:
        found = files.sources["unet"]
        assert set(found.keys()) == set(state["unet"])
        ours = {unet_to_sgm(key, unet): key for key in state["unet"]}
        for key, value in wanted.items():
            assert np.array_equal(found.read(ours[key]), value)
            assert not np.array_equal(value, whole[key])
    (note,) = files.notes
    assert "float8_e4m3fn, scaled" in note and "coarser" in note
    assert "scaled (" in identify(path).facts["stored as"]


def test_layers_that_name_their_format(whole, bare, tmp_path):
    tensors, _, _ = quantised(whole, True)
    layer = next(k for k in tensors if k.endswith(".weight_scale")).removesuffix(".weight_scale")

    def told(name):
        text = json.dumps({"format": name}).encode()
        marked = tensors | {f"{layer}.comfy_quant": np.frombuffer(text, np.uint8)}
        return save(tmp_path / f"{name}.safetensors", marked)

    open_base(told("float8_e4m3fn"), config=bare).close()
    with pytest.raises(WeightsError, match="'int8_tensorwise', which is not read here"):
        open_base(told("int8_tensorwise"), config=bare)
    assert (
        "int8_tensorwise"
        in identify(tmp_path / "int8_tensorwise.safetensors").facts["not read here"]
    )


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({UNET + "gone.scale_weight": np.ones((), "f4")}, "has no weight"),
        ({UNET + "out.2.weight_scale": np.ones((2, 2), "f4")}, "per block"),
        ({UNET + "out.2.weight_scale_2": np.ones((), "f4")}, "NVFP4"),
        ({UNET + "out.2.weight.absmax": np.ones((), "f4")}, "bitsandbytes"),
        ({UNET + "out.2.qweight": np.ones((), "f4")}, "4-bit"),
    ],
)
def test_other_quantisations_are_named(extra, match, whole, bare, tmp_path):
    with pytest.raises(WeightsError, match=match):
        open_base(save(tmp_path / "q.safetensors", whole | extra), config=bare)


def test_plain_fp8_says_how_coarse_it_is(whole, bare, tmp_path):
    cast = {k: v.astype(ml_dtypes.float8_e5m2) if v.ndim > 1 else v for k, v in whole.items()}
    with open_base(save(tmp_path / "f8.safetensors", cast), config=bare) as files:
        assert "float8_e5m2" in files.notes[0]


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
