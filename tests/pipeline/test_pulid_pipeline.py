"""PuLID from its files through a whole call, against the authors' own pipelines.

A base directory, the published layouts of the weights, and the pipeline's own call. What the
originals get from detectors is given in both: the aligned crop, its labels, the face vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from flax import nnx

from data_pipeline.examples.fields import Call
from data_pipeline.faces.face import Face
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.samplers import (
    final_latents,
    guided,
    init_carry,
    initial_latents,
    run_steps,
)
from persongen_jax.methods.base import denoiser_module
from persongen_jax.methods.published.pulid import RELEASES
from persongen_jax.models.faces.iresnet import IResNet
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.checks import CallWarning
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.random_base import random_module
from persongen_jax.weights.saver import save_module
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.published_goldens import golden, relative_gap, weights, write_base, write_weights

V1, V11 = "pulid_v1_pipeline", "pulid_v11_pipeline"
SIZE = {"height": 128, "width": 96}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The base, both files, EVA-CLIP's and a recogniser's, whose vectors are as wide as theirs."""
    folder = tmp_path_factory.mktemp("pulid")
    write_base(folder / "base")
    write_weights(folder / "pulid_v1.safetensors", weights(V1, "pulid_v1_bin"))
    own = weights(V11, "pulid_v1.1_safetensors")
    entries = [(k, v.shape, v.dtype, lambda v=v: v) for k, v in own.items()]
    # The original's heads are 64 wide, which no tensor shows; these are 8.
    notes = {"format": "pt", "head_dim": str(golden(V11)[0]["id_former"]["dim_head"])}
    write_safetensors(folder / "pulid_v1.1.safetensors", entries, notes)
    eva = {f"visual.{key}": value for key, value in weights("eva02_clip_vision").items()}
    write_weights(folder / "eva.safetensors", eva)
    width = golden(V1)[0]["arcface_width"]
    config = {"layers": (1, 1), "widths": (4, 4), "input_size": 16, "embedding_dim": width}
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    net = random_module(lambda: IResNet(config, rngs=nnx.Rngs(0), **kw), 0)
    save_module(
        net,
        folder / "face",
        {"input_size": 16, "licence": "made for a test"},
        file_name="model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def pipe(files):
    return Pipeline.from_pretrained(files / "base")


def load(pipe, files, version, **options):
    networks = {"encoder": files / "face", "clip": files / "eva.safetensors"}
    options = {"pulid_crop": 96, **options}
    pipe.load_method("pulid", files / f"pulid_{version}.safetensors", **networks, options=options)


def faces(name, *which):
    arrays = golden(name)[1]
    return [
        Face(
            arrays[f"in/face_crop_bgr_{i}"][..., ::-1],
            embedding=arrays[f"in/arcface_{i}"],
            labels=arrays[f"in/parsing_labels_{i}"],
        )
        for i in which
    ]


def nhwc(array):
    return np.moveaxis(np.asarray(array), -3, -1)


def generate(pipe, name, references, noise, options, **more):
    config = golden(name)[0]
    given = {"references": [references]} if references else {}
    return pipe(
        config["prompt"],
        config["negative_prompt"],
        latents=noise,
        options=options,
        output_type="latent",
        **SIZE,
        **given,
        **more,
    ).images


V1_RUNS = {
    "fidelity": ([0], {}),
    "style": ([0], {"pulid_release": "style"}),
    "plain": ([0], {"pulid_mode": "plain", "pulid_zeros": 0}),
    "id_mix": ([0, 1], {"pulid_id_mix": True}),
    "no_id_mix": ([0, 1], {}),
    "no_id": ([], {}),
}


@pytest.mark.parametrize("run", [pytest.param(run, marks=pytest.mark.slow) for run in V1_RUNS])
def test_version_1_as_the_original(pipe, files, run):
    arrays = golden(V1)[1]
    which, options = V1_RUNS[run]
    load(pipe, files, "v1", **options)
    noise = nhwc(arrays["out/initial_latents"])
    release = RELEASES[options.get("pulid_release", "fidelity")]
    found = generate(pipe, V1, faces(V1, *which), noise, release.options)
    assert relative_gap(found, nhwc(arrays[f"out/{run}_final_latents"])) < 1e-4


V11_RUNS = {
    "main_2m": ([0], {}),
    "ortho_2m": ([0], {"pulid_mode": "ortho"}),
    "plain_2m": ([0], {"pulid_mode": "plain", "pulid_zeros": 0}),
    "two_images_2m": ([0, 1], {}),
    "no_id_2m": ([], {}),
}


def first_noise():
    """The standard normal numbers that the originals scale."""
    arrays = golden(V11)[1]
    return nhwc(arrays["out/initial_latents"] / arrays["out/sigmas_5"][0])


@pytest.mark.slow
@pytest.mark.parametrize("run", V11_RUNS)
def test_version_1_1_as_the_original(pipe, files, run):
    which, options = V11_RUNS[run]
    load(pipe, files, "v1.1", **options)
    few = SamplingOptions(5, 7.0, scheduler=RELEASES["v1.1"].options.scheduler)
    found = generate(pipe, V11, faces(V11, *which), first_noise(), few)
    assert relative_gap(found, nhwc(golden(V11)[1][f"out/{run}_final_latents"])) < 1e-4


@pytest.mark.slow
def test_version_1_1_with_the_sde_and_its_noise(pipe, files):
    """A call draws its own noise, so that this runs the loop of a call on the given one."""
    config, arrays = golden(V11)
    load(pipe, files, "v1.1")
    time_ids = np.array([[128, 96, 0, 0, 128, 96]], np.float32)
    people = [[faces(V11, 0)]]
    call = Call([config["prompt"]], {}, people, time_ids, (128, 96))
    conditioner = pipe.conditioner
    guidance = conditioner.guidance(call, [config["negative_prompt"]], None, np.array([0]))
    options = SamplingOptions(4, 2.0, scheduler="k_dpmpp_sde")
    plan = options.plan(pipe.base.scheduler_config)
    scales = conditioner.schedules({}, False, True, plan.num_steps)
    guidance = type(guidance)(**{**vars(guidance), "scales": scales})
    graphdef, state = nnx.split(denoiser_module(pipe.model, pipe.method))

    @jax.jit
    def run(state, guidance, latents, noise):
        model = guided(pipe.method, graphdef, state, guidance, (2.0, 0.0, -1))
        carry = init_carry(plan, initial_latents(plan, latents))
        return final_latents(run_steps(plan, model, carry, None, 0, plan.num_steps, noise))

    noise = nhwc(arrays["in/sde_noise"])
    # The last call draws none.
    noise = np.concatenate([noise, np.zeros_like(noise[:1])])
    found = run(state, guidance, first_noise(), noise)
    assert relative_gap(found, nhwc(arrays["out/main_sde_final_latents"])) < 1e-4


@pytest.mark.slow
def test_guidance_1_several_images_and_nobody(pipe, files):
    """Where the original mixes tokens; and when the face must not act, the base to the bit."""
    load(pipe, files, "v1")
    noise = np.random.default_rng(0).normal(size=(2, 16, 12, 4)).astype(np.float32)

    def run(references, **more):
        given = {"references": [references]} if references else {}
        options = RELEASES["fidelity"].options
        unguided = {"guidance_scale": 1.0, "num_images_per_prompt": 2, "latents": noise}
        shape = {**SIZE, "output_type": "latent"}
        return pipe("a girl in snow", options=options, **unguided, **shape, **given, **more).images

    both, alone = run(faces(V1, 0)), run(faces(V1, 0), batch_size=1)
    assert relative_gap(both, alone) < 1e-5
    nobody = run([])
    assert relative_gap(both, nobody) > 1e-2
    assert np.array_equal(run(faces(V1, 0), start_merge_step=2, scales={"identity": 0.0}), nobody)
    pipe.unload_method()
    assert np.array_equal(run([]), nobody)


@pytest.mark.slow
def test_a_style_acts_next_to_it(files, small_base, tmp_path):
    """At strength 0 it is the original still; with its own strength and steps, and identity's."""
    adapter = tmp_path / "style.safetensors"
    unet = UNet2DConditionModel.from_pretrained(files / "base" / "unet")
    write_ip_adapter(adapter, unet, "plus", 64)
    beside = Pipeline.from_pretrained(files / "base")
    beside.load_style(adapter, encoder=small_base / "image_encoder")
    load(beside, files, "v1")
    look = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    arrays = golden(V1)[1]

    def run(**scales):
        options, noise = RELEASES["fidelity"].options, nhwc(arrays["out/initial_latents"])
        more = {"style_image": [look], "scales": scales}
        return generate(beside, V1, faces(V1, 0), noise, options, **more)

    with pytest.warns(CallWarning, match="'style' is 0 in every step"):
        without = run(style=0.0)
    assert relative_gap(without, nhwc(arrays["out/fidelity_final_latents"])) < 1e-4
    with pytest.warns(CallWarning, match="'identity' is 0 in every step"):
        nobody = run(identity=0.0)
    found = [without, run(), run(style=[(0.5, 1.0, 0.0)]), nobody]
    for number, one in enumerate(found):
        assert all(relative_gap(one, other) > 1e-3 for other in found[:number])
