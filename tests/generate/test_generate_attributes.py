"""generate --run: images, strips and edits of a run on attributes, by command and in Python."""

import json
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.schedule import signal_and_noise
from persongen_jax.generate import __main__ as generate
from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.pipeline.attributes import AttributePipeline, interpolate_attributes
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from tests.pipeline.test_saving import GENERATED, source_type
from tests.systems.ddpm_config import get_config

STEPS = "--steps=4"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of zero steps: the weights do not matter here."""
    config, folder = get_config(), tmp_path_factory.mktemp("run") / "digits"
    mesh = make_mesh(jax.devices()[:1])
    state = assemble(open_system(config, mesh), mesh).state
    with Checkpoints(folder) as checkpoints:
        settings = json.loads(config.to_json())
        checkpoints.save(0, state.trainable, state.opt_state, settings, state.average)
    return folder


@pytest.fixture(scope="module")
def pipe(run):
    return AttributePipeline.from_run(run)


def command(run, tmp_path, capsys, *words):
    generate.main([f"--run={run}", f"--out={tmp_path}", STEPS, *words])
    return [tmp_path / line.rsplit("/")[-1] for line in capsys.readouterr().out.split()]


def test_images_and_their_grid(run, pipe, tmp_path, capsys):
    paths = command(run, tmp_path, capsys, "--attributes=digit=7", "--images=3")
    assert [path.name for path in paths] == [
        *("00000.png", "00001.png", "00002.png"),
        "grid_00000.png",
    ]
    images = pipe("digit=7", images=3, num_inference_steps=4)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    saved = Image.open(paths[1])
    assert np.array_equal(np.asarray(saved)[..., 0], images[1, ..., 0])
    assert saved.text["attributes"] == "digit=7" and saved.text["index"] == "1"
    assert json.loads(saved.text["settings"])["steps"] == 4
    assert Image.open(paths[-1]).size == (128, 128)
    assert [source_type(path) for path in paths] == [GENERATED] * 4
    again = command(run, tmp_path, capsys, "--attributes=digit=3", "--attributes=digit=4")
    assert [path.name for path in again[:2]] == ["00003.png", "00004.png"]


@pytest.mark.slow
def test_the_same_noise_for_every_request_and_any_batch(pipe):
    both = pipe(["digit=7", "digit=2"], images=2, num_inference_steps=2)
    one = pipe("digit=2", images=2, num_inference_steps=2, batch_size=1)
    assert np.abs(both[2:].astype(int) - one).max() <= 1
    assert not np.array_equal(both[:2], both[2:])


@pytest.mark.slow
def test_the_sampler_s_own_noise_in_any_batch(pipe):
    drawn = [
        pipe("digit=2", images=3, num_inference_steps=3, scheduler="ddpm", batch_size=n)
        for n in (3, 2)
    ]
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_every_sampler(pipe, scheduler):
    assert pipe("digit=1", num_inference_steps=3, scheduler=scheduler).std() > 0


def test_without_a_request_nothing_is_requested(pipe):
    free = pipe("", num_inference_steps=2, guidance_scale=1)
    assert np.array_equal(free, pipe("", num_inference_steps=2, guidance_scale=5))


def test_a_request_unseen_in_training_causes_a_warning():
    config = get_config()
    config.drop_prob = config.validation_guidance = 0.0
    never = AttributePipeline(open_system(config))
    with pytest.warns(UserWarning, match="'' leaves out attributes; training had few or no"):
        never(["digit=1", ""], num_inference_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        never(["digit=1", "digit=2"], num_inference_steps=1)


def test_an_end_without_attributes_is_reported(run, tmp_path, capsys):
    words = ("--interpolate", "digit=1", "", "--frames=2")
    generate.main([f"--run={run}", f"--out={tmp_path}", STEPS, *words])
    assert "digit: the other end does not set it" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "1"])
def test_pictures_of_every_mode_are_read(pipe, mode):
    picture = Image.fromarray(np.full((8, 8), 200, np.uint8)).convert(mode)
    grey = pipe.read(picture)
    assert grey.shape == (8, 8, 1) and abs(int(grey.mean()) - 200) <= (60 if mode == "1" else 1)


def test_a_picture_is_turned_upright(pipe):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    picture.getexif()[0x0112] = 3
    assert np.array_equal(pipe.read(picture)[..., 0], np.asarray(picture)[::-1, ::-1])
    assert not pipe.read(np.zeros((8, 8))).any()  # floats lie in 0..1
    with pytest.raises(ValueError, match=r"image: an array float64 .8, 8., with values 2 to 2"):
        pipe.read(np.full((8, 8), 2.0))


def test_settings_by_name_or_as_options(pipe):
    named = pipe("digit=1", num_inference_steps=2, seed=42, guidance_scale=2.0)
    options = SamplingOptions(num_inference_steps=2, guidance_scale=2.0)
    assert np.array_equal(pipe("digit=1", options=options, seed=42), named)
    assert np.array_equal(
        pipe("digit=1", options=options), pipe("digit=1", options=options, seed=0)
    )
    with pytest.raises(
        ValueError, match="tiling is not a setting of this; there are num_inference"
    ):
        pipe("digit=1", options=replace(options, tiling=True))
    with pytest.raises(ValueError, match="eta is not a setting of this; .*scheduler_options"):
        pipe("digit=1", eta=0.5)
    with pytest.raises(ValueError, match="seed is not a setting of this"):
        pipe.edit(np.zeros((8, 8)), "digit=1", seed=1)


def test_a_model_that_cannot_be_guided_is_not():
    config = get_config()
    config.conditioning, config.validation_guidance = "none", 0.0
    pipe = AttributePipeline(open_system(config))
    assert pipe("", num_inference_steps=1).shape == (1, 8, 8, 1)
    with pytest.raises(ValueError, match="the run is unconditional"):
        pipe("digit=1", num_inference_steps=1)
    with pytest.raises(ValueError, match="guidance_scale=2: this run was not trained both"):
        pipe("", num_inference_steps=1, guidance_scale=2)


def test_a_strip_and_its_animation(run, pipe, tmp_path, capsys):
    words = ("--interpolate", "digit=1", "digit=7", "--frames=5", "--images=2")
    paths = command(run, tmp_path, capsys, *words)
    assert [path.suffix for path in paths] == [".png", ".webp"] * 2
    strip = Image.open(paths[2])
    assert strip.size == (5 * 64, 64) and strip.text["from"] == "digit=1"
    animation = Image.open(paths[3])
    assert animation.n_frames == 8 and animation.size == (64, 64)  # there and back
    assert [source_type(path) for path in paths] == [GENERATED] * 4
    frames = pipe.interpolate("digit=1", "digit=7", frames=5, num_inference_steps=4, index=1)
    assert np.array_equal(np.asarray(strip)[4::8, 4::8, 0], np.concatenate(frames[..., 0], axis=1))
    # Its ends are the images of its ends, from the same noise.
    ends = [pipe(text, images=2, num_inference_steps=4)[1] for text in ("digit=1", "digit=7")]
    assert np.abs(frames[[0, -1]].astype(int) - ends).max() <= 1


def test_interpolation_is_linear_and_one_sided_attributes_are_halfway():
    ends = {
        "attributes": np.array([[0, 1, 0], [1, 0, 0]], np.float32),
        "attributes_known": np.array([[1, 1, 0], [1, 0, 0]], np.float32),
    }
    found = interpolate_attributes(ends, 3)
    np.testing.assert_allclose(found["attributes"][:, 0], [0, 0.5, 1])
    np.testing.assert_allclose(found["attributes"][:, 1], [1, 0.75, 0.5])
    np.testing.assert_array_equal(found["attributes_known"], [[1, 1, 0]] * 3)


def test_a_picture_edited_as_it_is_comes_back(tmp_path):
    """A system with a known best prediction, inverted and generated under one condition."""
    system = open_system(get_config())

    # Images around a grey; the best noise prediction for one normal distribution.
    def denoise(model, x, t, condition, step=None):
        t = jnp.broadcast_to(jnp.asarray(t).astype(int), x.shape[:1])
        alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in signal_and_noise(system.schedule, t))
        # No model is exact: unclipped, an error of 1 % at the last timestep ruins the image.
        return sigma * x / (alpha**2 * 0.25 + sigma**2) + 0.01 * jnp.sin(7 * x)

    system.denoise = denoise
    pipe = AttributePipeline(system)
    picture = np.random.default_rng(0).integers(60, 200, (8, 8, 1)).astype(np.uint8)
    back = pipe.edit(picture, "digit=1", num_inference_steps=200, guidance_scale=1)
    assert np.abs(back.astype(int) - picture).mean() <= 12


def test_samplers_that_do_not_clip_begin_where_signal_is_left(pipe):
    for scheduler in ("euler", "euler_ancestral", "dpmpp_2m"):
        options = SamplingOptions(scheduler=scheduler)
        assert pipe.system.plan(options).sigmas[0] < 50
        trailing = replace(options, scheduler_options={"timestep_spacing": "trailing"})
        assert pipe.system.plan(trailing).sigmas[0] > 1000
    assert pipe.system.plan(SamplingOptions()).sigmas[0] > 1000


def test_editing_is_a_command(run, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)).save(
        tmp_path / "in.png"
    )
    words = [f"--edit={tmp_path / 'in.png'}", "--attributes=digit=3", STEPS, f"--run={run}"]
    generate.main([*words, f"--out={tmp_path / 'out'}"])
    captured = capsys.readouterr()
    assert "the central square of 30x20 is scaled to 8x8" in captured.err
    assert Image.open(captured.out.strip()).size == (8, 8)
    assert source_type(captured.out.strip()) == GENERATED
    assert captured.err.count("warning: no watermark: 8x8") == 1
    generate.main([*words, f"--out={tmp_path / 'plain'}", "--no-mark"])
    captured = capsys.readouterr()
    assert source_type(captured.out.strip()) is None and "no watermark" not in captured.err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--attributes=hat=1"], "there is no 'hat'"),
        (["--attributes=digit=11"], "digit=11 is unknown; there are 0, 1"),
        (["--attributes=digit=1,digit=2"], "contradict themselves"),
        (["--attributes=digit"], "write NAME=VALUE"),
        (["--interpolate", "digit=1", "digit=1"], "ask for the same"),
        (["--interpolate", "digit=1", "digit=2", "--frames=1"], "at least 2"),
        (["--interpolate", "digit=1", "digit=2", "--attributes=digit=3"], "no effect"),
        (["--edit=nothing.png", "--attributes=digit=1"], "nothing.png"),
        (["--edit=nothing.png"], "needs --attributes once"),
        (["--source=digit=1"], "give --edit too"),
        (["--source=", "--frames=5"], "--frames goes with --interpolate"),
        (["--edit="], "needs --attributes once"),
        (["--edit=a.png", "--attributes=digit=1", "--seed=1"], "--seed: without effect on --edit"),
        (["--edit=a.png", "--attributes=digit=1", "--images=1", "--batch-size=2"], "--images, --b"),
        (["--guidance-scale=0"], "guidance_scale=0: give a number above 0"),
        (["--guidance-scale=nan"], "guidance_scale=nan: give a finite number"),
        (["--images=0"], "--images 0: at least 1"),
        (["--steps=0"], "num_inference_steps=0: give a whole number of at least 1"),
        (["--steps=2000"], "must lie in 1..1000"),
        (["--scheduler=magic"], "'magic' is not supported"),
    ],
)
def test_bad_requests_end_in_a_sentence(run, tmp_path, words, said):
    with pytest.raises(SystemExit) as ended:
        generate.main([f"--run={run}", f"--out={tmp_path / 'out'}", *words])
    assert said in str(ended.value) and "\n" not in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(SystemExit, match="error: .*nothing"):
        generate.main([f"--run={tmp_path / 'nothing'}"])
