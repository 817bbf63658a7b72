"""Streams and maps of any name: methods unknown to all other files, in training and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs.first_light import get_config
from data_pipeline.examples.fields import Call
from data_pipeline.examples.spatial import ControlImage
from persongen_jax.cli import plain_warnings
from persongen_jax.evaluation.validation import open_evaluation
from persongen_jax.generate import __main__ as generate
from persongen_jax.generate.pose import FoundPose, draw_pose, use_pose
from persongen_jax.methods.base import Method, add_prompt_streams, condition_on_text, prompts
from persongen_jax.methods.start import add_id_encoder
from persongen_jax.methods.thesis.id_branch import (
    IDBranch,
    add_identity,
    identity_tokens,
)
from persongen_jax.models.branches import add_branch
from persongen_jax.models.layers import Conv
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.images import sample_steps
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from persongen_jax.training.step import keys_of, merge_model
from tests.helpers.training_runs import small_base

PROMPT, HAIR = "a woman in a red hat", "red curls"
ANN, BOB = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
POSE, OTHER_POSE = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
LEFT = np.arange(64)[None] < np.full((64, 1), 32)
SAME = {"num_inference_steps": 4, "batch_size": 1, "output_type": "np", "seed": 3}
CLOSE, CLEARLY = 1e-5, 1e-3


class Hair(Method):
    """A separate prompt for the hair; there are no references."""

    groups = ((r"unet/.*/attn2/branches/hair/to_[kv]/kernel", "background"),)

    def attach(self, parts, config, rngs):
        add_branch(parts.model.unet, "hair")

    def fields(self, parts, config):
        return (prompts(parts, config, ("text", "hair"), at_trigger=False),)

    def condition(self, model, batch):
        return add_prompt_streams(condition_on_text(model, batch), model, batch, ("hair",))


class Who(IDBranch):
    """IP-Adapter, whose stream is called otherwise."""

    groups = (*IDBranch.groups[:-1], (r"unet/.*/branches/who/to_[kv]/kernel", "identity"))

    def attach(self, parts, config, rngs):
        add_id_encoder(parts.model, config, rngs)
        add_identity(parts.model, config)
        add_branch(parts.model.unet, "who")

    def condition(self, model, batch):
        return condition_on_text(model, batch).with_stream("who", *identity_tokens(model, batch))


class Posed(Who):
    """It also follows a pose image, which a small network reads in every step."""

    groups = (*Who.groups, (r"pose_net/kernel", "background"), (r"pose_net/bias", "background"))
    denoises_with = ("pose_net",)

    def attach(self, parts, config, rngs):
        super().attach(parts, config, rngs)
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        parts.model.pose_net = Conv(3, 4, 1, **kw)

    def fields(self, parts, config):
        return (*super().fields(parts, config), ControlImage("pose"))

    def condition(self, model, batch):
        return super().condition(model, batch).with_map("pose", batch["pose"])

    def denoise(self, model, x, t, conditioning, step=None):
        pose = conditioning.maps["pose"]
        small = jax.image.resize(pose.pixels, (*x.shape[:3], 3), "linear")
        scale = 1.0 if pose.scale is None else pose.scale[:, None, None, None]
        return model.unet(x, t, conditioning) + scale * model.pose_net(small)


def config_of(base, method):
    config = get_config()
    config.base, config.method, config.batch_size = str(base), f"{__name__}:{method.__name__}", 2
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """What a training run of each method leaves behind."""
    folders = {}
    for method in (Hair, Who, Posed):
        config = config_of(base, method)
        system = open_system(config)
        folders[method] = tmp_path_factory.mktemp(method.__name__)
        checkpoints = Checkpoints(folders[method])
        trainable = split_model(system.model, system.table)[1]
        # Strong enough to show in an image.
        own = {path: 3 * x if "branches" in path else x for path, x in trainable.items()}
        checkpoints.save(0, own, {"count": np.zeros(1)}, config.to_dict())
        checkpoints.close()
    return folders


@pytest.fixture(scope="module")
def plain(base):
    return Pipeline.from_pretrained(base)


def loaded(base, run):
    pipe = Pipeline.from_pretrained(base)
    pipe.load_method(None, run)
    return pipe


@pytest.fixture(scope="module")
def hair(base, runs):
    return loaded(base, runs[Hair])


@pytest.fixture(scope="module")
def who(base, runs):
    return loaded(base, runs[Who])


@pytest.fixture(scope="module")
def posed(base, runs):
    return loaded(base, runs[Posed])


def images(pipe, prompt=PROMPT, **settings):
    return pipe(prompt, "", **{**SAME, **settings}).images


def of_ann(pipe, **settings):
    return images(pipe, **{"references": [[ANN]], "start_merge_step": -1, **settings})


def close(a, b):
    return np.abs(a - b).max() < CLOSE


def apart(a, b):
    return np.abs(a - b).max() > CLEARLY


# ---- Training ----------------------------------------------------------------------------------


# A second network in the step is trained in tests/methods/test_additions.py as well.
@pytest.mark.parametrize(
    ("method", "part"),
    [(Hair, "branches/hair"), pytest.param(Posed, "pose_net", marks=pytest.mark.slow)],
)
def test_what_reads_it_is_trained(method, part, base):
    config = config_of(base, method)
    config.drop_prob = 0.0
    system = open_system(config)
    graphdef, trainable, frozen, _ = split_model(system.model, system.table)
    batch = system.random_batch(cached=True)  # neither VAE nor text towers are compiled

    @jax.jit
    def gradients(trainable, batch):
        def loss(trainable):
            model = merge_model(graphdef, trainable, frozen)
            return system.losses(model, batch, system.draw(keys_of(0, 0), batch))["loss"].mean()

        return jax.grad(loss)(trainable)

    found = gradients(trainable, batch)
    own = {path: np.abs(gradient).max() for path, gradient in found.items() if part in path}
    assert own and all(largest > 0 for largest in own.values())


# ---- A stream ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_method_without_references_generates_images(hair, plain):
    assert not hair.reads_references and hair.streams == ("text", "hair")
    red, black = images(hair, hair=HAIR), images(hair, hair="long black hair")
    assert apart(red, images(plain)) and apart(red, black)
    # There is no identity whose merging could be put off.
    assert np.array_equal(images(hair, hair=HAIR, start_merge_step=0), red)
    with pytest.raises(ValueError, match="references: the loaded method does not read any"):
        images(hair, references=[[ANN]])


def test_a_streams_strength_goes_by_its_name(hair, plain):
    whole = images(hair, hair=HAIR)
    compiled = sample_steps._cache_size()
    none = images(hair, hair=HAIR, scales={"hair": 0})
    assert close(none, images(plain)) and apart(none, whole)
    half = images(hair, hair=HAIR, scales={"hair": 0.5})
    assert apart(half, whole) and apart(half, none)
    first, second = ([(0, 0.5, a), (0.5, 1, b)] for a, b in ((1, 0), (0, 1)))
    first, second = (images(hair, hair=HAIR, scales={"hair": s}) for s in (first, second))
    assert apart(first, second) and apart(first, whole) and apart(first, none)
    assert close(images(hair, hair=HAIR, scales={"hair": [(0, 1, 0.5)]}), half)
    # The base alone is another program.
    assert sample_steps._cache_size() <= compiled + 1
    for name in ("identity", "text", "lora"):
        with pytest.raises(ValueError, match=f"'{name}'; this method has hair "):
            images(hair, hair=HAIR, scales={name: 1})


def test_a_method_without_references_is_validated(base):
    config = config_of(base, Hair)
    config.validate_in_train = "people:in_train?identities=1&pictures=2"
    config.validation_images, config.validation_steps, config.metrics = 1, 2, ()
    system = open_system(config)
    (result,) = open_evaluation(system)(system.model, 0).values()
    assert result.images.shape == (1, 4, 1, 64, 64, 3) and result.images.std() > 10


# ---- A person's stream -------------------------------------------------------------------------


def test_a_persons_stream_has_regions_and_people(who):
    def two(first, second, regions):
        return of_ann(who, references=[[[first], [second]]], regions=[regions])

    assert who.conditioner.of_people == ("who",)
    both, one = two(ANN, BOB, [LEFT, ~LEFT]), of_ann(who)
    assert np.abs(two(BOB, ANN, [~LEFT, LEFT]) - both).max() < 1e-4
    assert apart(two(BOB, ANN, [LEFT, ~LEFT]), both)
    nowhere = np.zeros((8, 8))
    assert np.abs(two(ANN, BOB, [np.ones((8, 8)), nowhere]) - one).max() < 1e-4
    silent = of_ann(who, scales={"who": 0})
    assert np.abs(two(ANN, BOB, [nowhere, nowhere]) - silent).max() < 1e-4
    assert apart(silent, one)
    assert close(silent, of_ann(who, start_merge_step=9))
    with pytest.raises(ValueError, match="'identity'; this method has who "):
        of_ann(who, scales={"identity": 1})


# ---- A map -------------------------------------------------------------------------------------


def test_a_map_acts_in_sampling_and_has_a_strength(posed, who):
    followed = of_ann(posed, pose=[POSE])
    assert apart(followed, of_ann(posed, pose=[OTHER_POSE]))
    compiled = sample_steps._cache_size()
    none = of_ann(posed, pose=[POSE], scales={"pose": 0})
    late = of_ann(posed, pose=[POSE], scales={"pose": [(0, 0.5, 0)]})
    assert apart(none, followed) and apart(late, followed) and apart(late, none)
    assert sample_steps._cache_size() == compiled
    assert close(none, of_ann(who))
    # Each image follows its own prompt's pose.
    given = {"references": [[ANN]] * 2, "pose": [Image.fromarray(POSE), OTHER_POSE]}
    given |= {"num_images_per_prompt": 2, "batch_size": 2, "latents": NOISE}
    found = of_ann(posed, prompt=[PROMPT] * 2, **given)
    for image, pose in zip(found, (POSE, POSE, OTHER_POSE, OTHER_POSE), strict=True):
        assert np.abs(image - of_ann(posed, pose=[pose], latents=NOISE[:1])).max() < 1e-4


NOISE = np.random.default_rng(2).standard_normal((1, 8, 8, 4)).astype(np.float32).repeat(4, axis=0)


def test_guidance_leads_away_from_what_training_dropped_to(posed):
    """To a black image; delayed merging omits the person, not the pose."""
    ids = np.array([[64, 64, 0, 0, 64, 64]], np.float32)
    call = Call([PROMPT], {}, [[[ANN]]], ids, (64, 64), {"pose": [POSE]})
    guidance = posed.conditioner.guidance(call, [""], None, [0])
    late, early, without = (
        np.asarray(side.maps["pose"].pixels)
        for side in (guidance.late, guidance.early, guidance.unconditional)
    )
    assert np.allclose(late[0], POSE / 255, atol=1e-6) and np.array_equal(early, late)
    assert not without.any()
    masks = [s.streams["who"].mask.any() for s in (guidance.early, guidance.unconditional)]
    assert not any(masks) and guidance.late.streams["who"].mask.any()


def test_without_references_the_base_generates_alone(posed, plain):
    assert np.array_equal(images(posed), images(plain))
    with pytest.raises(ValueError, match=r"pose=\.\.\.: it goes with references"):
        images(posed, pose=[POSE])


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({}, "pose: .*give pose="),
        ({"pose": [POSE] * 2}, "2 of pose for 1 prompts"),
        ({"pose": Image.fromarray(POSE)}, "pose: Image; give a list"),
        ({"pose": [POSE], "depth": [POSE]}, r"depth=\.\.\.: .*available: text, pose"),
        ({"pose": [POSE], "hair": "red"}, "hair='red': .*available: text, pose"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, named, posed):
    with pytest.raises(ValueError, match=named):
        of_ann(posed, **inputs)


# ---- The command -------------------------------------------------------------------------------


def command(base, out, *arguments):
    options = ["--base", base, "--out", out, "--steps", 4, "--seed", 3, "--batch-size", 1]
    options += ["--no-compilation-cache", "--negative-prompt", "", *arguments]
    with plain_warnings():
        paths = generate.generate(generate.parse_arguments(list(map(str, options))))
    return [np.asarray(Image.open(path)) for path in paths], Image.open(paths[0]).text


def as_saved(images):
    return (images * 255).round().astype(np.uint8)


def test_generate_gives_every_prompt_its_part(base, runs, hair, tmp_path, capsys):
    method = ["--method-weights", runs[Hair], "--scale", "hair=0.5"]
    two = ["--prompt", PROMPT, "--prompt", "a man", "--part", f"hair={HAIR}", "--part", "hair=a=b"]
    found, note = command(base, tmp_path / "a", *method, *two)
    wanted = images(hair, [PROMPT, "a man"], hair=[HAIR, "a=b"], scales={"hair": 0.5})
    assert np.array_equal(found, as_saved(wanted))
    assert note["hair"] == HAIR and note["prompt"] == PROMPT
    # One for all; --background is joined to the prompt, as no stream reads it.
    one = [*two[:4], "--part", "hair=" + "curls " * 80, "--background", "Snow"]
    found, _ = command(base, tmp_path / "b", *method, *one)
    texts = [f"{PROMPT}. Snow", "a man. Snow"]
    wanted = images(hair, texts, hair="curls " * 80, scales={"hair": 0.5})
    assert np.array_equal(found, as_saved(wanted))
    assert capsys.readouterr().err.count("the hair is too long; this part is cut:") == 1


def test_generate_reads_a_maps_image(base, runs, posed, tmp_path):
    for name, image in (("pose", POSE), ("ann", ANN)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    method = ["--method-weights", runs[Posed], "--reference", tmp_path / "ann.png", "--no-crop"]
    method += ["--prompt", PROMPT, "--start-merge-step", -1, "--scale", "pose=0.7"]
    pose = f"pose={tmp_path / 'pose.png'}"
    (found,), note = command(base, tmp_path / "out", *method, "--input", pose)
    wanted = of_ann(posed, pose=[POSE], guidance_scale=5.0, scales={"pose": 0.7})
    assert np.array_equal(found, as_saved(wanted)[0])
    assert pose in note["settings"]
    with pytest.raises(ValueError, match="pose: .*--input NAME=FILE"):
        command(base, tmp_path / "none", *method)


def test_generate_passes_a_skeleton_to_what_reads_it(posed, who):
    """Its joints are found by a network; tests/generate/test_generate_pose.py has the command."""
    joints = np.random.default_rng(0).uniform(8, 56, (18, 2))
    found = FoundPose(joints, np.ones(18, bool), (64, 64), "ann.png")
    args = generate.parse_arguments(["--base", "base", "--pose", "ann.png"])
    given = use_pose(found, posed, args, (64, 64), 2)
    assert list(given) == ["pose"] and given["pose"] == [draw_pose(found, 64, 64)] * 2
    assert apart(of_ann(posed, pose=given["pose"][:1]), of_ann(posed, pose=[POSE]))
    with pytest.raises(ValueError, match=r"--pose ann\.png: no ControlNet is loaded"):
        use_pose(found, who, args, (64, 64), 2)


GENERATE_ERRORS = {
    "no equals sign": (["--part", "hair"], "--part hair: write NAME=VALUE"),
    "another part": (["--part", "beard=long"], "--part beard: the loaded method reads hair"),
    "an image": (["--input", "hair=FILE"], "--input hair: the loaded method reads nothing"),
    "no file": (["--input", "pose=/nowhere/x.png"], "/nowhere/x.png"),
    "thrice": (["--part", "hair=a"] * 3, "--part hair is given 3 times for 1 prompts"),
    "twice": (["--part", "body=a", "--body", "b"], "--part body: given as --body too"),
    "a scale": (["--scale", "beard=1"], "'beard'; this method has hair "),
    "a reference": (["--reference", "FILE", "--no-crop"], "does not read any"),
}


@pytest.mark.parametrize("case", GENERATE_ERRORS)
def test_generate_names_what_the_method_has(case, base, runs, tmp_path):
    arguments, named = GENERATE_ERRORS[case]
    Image.fromarray(POSE).save(tmp_path / "pose.png")
    arguments = [text.replace("FILE", str(tmp_path / "pose.png")) for text in arguments]
    with pytest.raises((ValueError, OSError), match=named):
        command(base, tmp_path, "--method-weights", runs[Hair], "--prompt", "a", *arguments)


def test_generate_without_a_method_says_so(base, tmp_path):
    with pytest.raises(ValueError, match="--part hair: no method is loaded"):
        command(base, tmp_path, "--prompt", "a man", "--part", "hair=red")


def test_a_method_leaves_nothing_behind(base, runs, plain):
    pipe = loaded(base, runs[Posed])
    pipe.load_method(None, runs[Hair])
    assert not hasattr(pipe.model, "pose_net") and not pipe.reads_references
    pipe.unload_method()
    assert np.array_equal(images(pipe), images(plain))
    parts = {name for name, part in vars(pipe.model).items() if isinstance(part, nnx.Module)}
    assert parts == {"unet", "vae", "text_encoder", "text_encoder_2"}
