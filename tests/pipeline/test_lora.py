"""LoRA files on the pipeline, against diffusers: same file, same latents, same image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.models.lora import _product_on_cpu, lora_layers
from persongen_jax.pipeline import LORA_COMPONENTS, conditioner
from persongen_jax.pipeline.images import sample_steps
from persongen_jax.weights.errors import KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.formats.adapters import extract_adapter, module_paths
from persongen_jax.weights.formats.lora.kinds import LoraWeights
from persongen_jax.weights.formats.lora.reading import read_lora
from persongen_jax.weights.formats.lora.writing import write_lora
from tests.helpers.lora_files import ATTENTION, CHOSEN, RANK, delta, named, random_lora, save
from tests.pipeline.pictures import LORA_STEPS, PIXEL, TIGHT, paint, run_theirs

CLEARLY = 5 * PIXEL
LINEAR, POINTWISE = f"{ATTENTION}.attn1.to_q", "down_blocks.1.resnets.0.conv_shortcut"


def paint_theirs(theirs, latents, path):
    theirs.load_lora_weights(str(path.parent), weight_name=path.name)
    try:
        return run_theirs(theirs, latents, num_inference_steps=LORA_STEPS)
    finally:
        theirs.unload_lora_weights()


STYLES = ("diffusers", "peft", "kohya", "kohya, sgm blocks")


@pytest.mark.parametrize(
    ("style", "components"),
    [*((style, "all") for style in STYLES), ("kohya", "text encoders"), ("peft", "text encoders")],
)
def test_same_pictures_as_diffusers(
    style, components, ours, theirs, latents, plain, golden, tmp_path
):
    chosen = {k: v for k, v in CHOSEN.items() if components == "all" or k != "unet"}
    # An alpha other than the rank: only kohya's files can store it.
    adapters = random_lora(ours, chosen, alpha=2.5 if "kohya" in style else None)
    path = save(tmp_path / "lora.safetensors", named(adapters, style))
    ours.load_lora(path)
    found = paint(ours, latents)
    wanted = golden(lambda: paint_theirs(theirs(), latents, path))
    difference = np.abs(found - wanted).max()
    assert difference < PIXEL
    assert difference < TIGHT
    assert np.abs(found - plain).max() > CLEARLY


def test_one_image_from_one_pair_in_every_spelling(ours, latents, tmp_path):
    """Bit by bit; alpha is the rank, which is what files without one mean."""
    adapters, images = random_lora(ours, alpha=float(RANK)), []
    styles = {name: named(adapters, name) for name in ("kohya", "comfy", "peft, named")}
    comfy = styles["comfy"].items()
    styles["onetrainer"] = {
        k.replace("diffusion_model.", "unet.").replace("text_encoders.", ""): v for k, v in comfy
    }
    for tensors in styles.values():
        ours.load_lora(save(tmp_path / "lora.safetensors", tensors))
        images.append(paint(ours, latents))
        ours.unload_lora()
    assert all(np.array_equal(images[0], image) for image in images)


def test_several_at_once_equal_diffusers_set_adapters(ours, theirs, latents, golden, tmp_path):
    weights = {"a": 0.7, "b": -1.3}
    adapters = {
        "a": named(random_lora(ours, rank=1, alpha=0.6), "kohya"),
        "b": named(random_lora(ours, rank=RANK - 1, seed=1), "peft"),
    }
    paths = {n: save(tmp_path / f"{n}.safetensors", file) for n, file in adapters.items()}
    for name, path in paths.items():
        ours.load_lora(path, weight=weights[name], name=name)

    def of_diffusers():
        pipe = theirs()
        for name, path in paths.items():
            pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name=name)
        pipe.set_adapters(list(weights), list(weights.values()))
        try:
            return run_theirs(pipe, latents, num_inference_steps=LORA_STEPS)
        finally:
            pipe.unload_lora_weights()

    wanted = golden(of_diffusers)
    found = paint(ours, latents)
    assert np.abs(found - wanted).max() < TIGHT
    for name in weights:
        ours.set_lora_weights({**weights, name: 0.0})
        assert np.abs(found - paint(ours, latents)).max() > PIXEL, f"{name} had no share in it"


def test_another_weight_compiles_nothing(ours, latents, tmp_path):
    path = save(tmp_path / "lora.safetensors", named(random_lora(ours), "diffusers"))
    ours.load_lora(path, weight=0.4)
    wanted = paint(ours, latents)
    ours.unload_lora()
    ours.load_lora(path, name="x")
    full = paint(ours, latents)
    functions = (sample_steps, conditioner._encode_prompt)
    compiled = [function._cache_size() for function in functions]
    ours.set_lora_weights({"x": 0.4})
    assert np.array_equal(paint(ours, latents), wanted)
    assert [function._cache_size() for function in functions] == compiled
    assert not np.allclose(full, wanted)
    with pytest.raises(ValueError, match="'y' is loaded.*'x'"):
        ours.set_lora_weights({"x": 1.0, "y": 1.0})
    assert ours.adapters["x"][1] == 0.4


def test_unloading_gives_back_bit_equal_pictures(ours, latents, plain, tmp_path):
    ours.load_lora(save(tmp_path / "lora.safetensors", named(random_lora(ours), "peft")))
    assert lora_layers(ours.model.unet)
    ours.unload_lora()
    assert np.array_equal(paint(ours, latents), plain)


def test_live_equals_fused(fresh, latents, plain, tmp_path):
    path = save(tmp_path / "lora.safetensors", named(random_lora(fresh), "diffusers"))
    fresh.load_lora(path, weight=0.6)
    live = paint(fresh, latents)
    fresh.fuse_lora()
    assert not any(lora_layers(getattr(fresh.model, part)) for part in LORA_COMPONENTS)
    assert np.abs(paint(fresh, latents) - live).max() < 1e-4
    assert np.abs(live - plain).max() > CLEARLY
    fresh.unload_lora()  # nothing is left to unload
    assert np.abs(paint(fresh, latents) - live).max() < 1e-4


@pytest.mark.parametrize("swapped", [False, True], ids=["usual shapes", "1x1 and linear swapped"])
def test_against_merging_by_hand(swapped, ours, fresh, latents, plain, tmp_path):
    """Convolutions (3x3, with strides, 1x1) and linear layers: weight + scale * up @ down."""
    adapters = random_lora(ours, alpha=2.5)
    for component, paths in adapters.items():
        for path, lora in paths.items():
            layer = getattr(fresh.model, component)
            for part in path.split("."):
                layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
            change = delta(lora)
            change = change.transpose(2, 3, 1, 0) if change.ndim == 4 else change.T
            layer.kernel[...] = layer.kernel[...] + change
    if swapped:  # as written by some tools
        unet = adapters["unet"]
        a, b = unet[POINTWISE], unet[LINEAR]
        unet[POINTWISE] = LoraWeights(a.down[..., 0, 0], a.up[..., 0, 0], a.alpha)
        unet[LINEAR] = LoraWeights(b.down[..., None, None], b.up[..., None, None], b.alpha)
    ours.load_lora(save(tmp_path / "locon.safetensors", named(adapters, "kohya")))
    found = paint(ours, latents)
    assert np.abs(found - paint(fresh, latents)).max() < 1e-4
    assert np.abs(found - plain).max() > CLEARLY


def test_what_is_written_is_what_was_loaded(ours, theirs, latents, golden, tmp_path):
    adapters = random_lora(ours, alpha=2.5)
    ours.load_lora(save(tmp_path / "kohya.safetensors", named(adapters, "kohya")))
    wanted = paint(ours, latents)
    extracted = {part: extract_adapter(getattr(ours.model, part)) for part in LORA_COMPONENTS}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write_lora(path, extracted)

    modules = {part: module_paths(getattr(ours.model, part)) for part in LORA_COMPONENTS}
    again = read_lora(path, modules)
    assert {part: set(paths) for part, paths in again.items()} == {
        part: set(paths) for part, paths in CHOSEN.items()
    }
    for part, paths in adapters.items():
        for name, lora in paths.items():
            found = again[part][name]
            assert np.array_equal(found.down, lora.down) and np.array_equal(found.up, lora.up)
            assert found.alpha == lora.alpha

    of_diffusers = golden(lambda: paint_theirs(theirs(), latents, path))
    assert np.abs(of_diffusers - wanted).max() < TIGHT
    ours.unload_lora()
    ours.load_lora(path)
    assert np.array_equal(paint(ours, latents), wanted)


def test_two_adapters_on_a_layer_are_not_written_as_one(ours, tmp_path):
    for seed, weight in ((0, 1.0), (1, 0.5)):
        lora = random_lora(ours, {"unet": [LINEAR]}, seed=seed)
        ours.load_lora(save(tmp_path / f"{seed}.safetensors", named(lora, "peft")), weight=weight)
    with pytest.raises(ValueError, match=f"{LINEAR}: several"):
        extract_adapter(ours.model.unet)


def misfit(ours, fault):
    """Adapters, and the expected part of the message about them."""
    path = LINEAR
    lora = random_lora(ours, {"unet": [path]})["unet"][path]
    down, up = lora.down, lora.up
    if fault == "down":
        down = np.zeros((RANK, 7), np.float32)
        return path, down, up, (f"unet.{path} down", "(4, 7)", "(4, 64)")
    if fault == "up":
        up = np.zeros((9, RANK), np.float32)
        return path, down, up, (f"unet.{path} up", "(9, 4)", "(64, 4)")
    if fault == "kernel size":
        path = "down_blocks.0.resnets.1.conv1"
        down, up = np.zeros((2, 32, 1, 1), np.float32), np.zeros((32, 2, 1, 1), np.float32)
        return path, down, up, (f"unet.{path} down", "(2, 32, 1, 1)", "(2, 32, 3, 3)")
    if fault == "convolution on a linear layer":
        down = np.zeros((RANK, 64, 3, 3), np.float32)
        return path, down, up, (f"unet.{path} down", "(4, 64, 3, 3)", "(4, 64)")
    path = "down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"
    return path, down, up, (path, "(4, 64)")


@pytest.mark.parametrize(
    "fault", ["down", "up", "kernel size", "convolution on a linear layer", "unknown path"]
)
def test_a_lora_that_does_not_fit(fault, ours, tmp_path):
    good = save(tmp_path / "good.safetensors", named(random_lora(ours), "peft"))
    ours.load_lora(good, name="good")
    before = extract_adapter(ours.model.unet).keys()
    path, down, up, said = misfit(ours, fault)
    bad = {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    with pytest.raises(KeyMismatch, match="bad.safetensors") as caught:
        ours.load_lora(save(tmp_path / "bad.safetensors", bad))
    for words in said:
        assert words in str(caught.value)
    # Loaded adapters stay, and work.
    assert list(ours.adapters) == ["good"]
    ours.set_lora_weights({"good": 0.5})
    assert extract_adapter(ours.model.unet).keys() == before


def test_a_file_that_is_not_there_or_no_lora(ours, tmp_path):
    with pytest.raises(MissingFile, match="nothing.safetensors"):
        ours.load_lora(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(WeightsError, match="text.safetensors"):
        ours.load_lora(tmp_path / "text.safetensors")
    assert not ours.adapters


def test_the_gradients_of_a_product():
    """LoRA's products have a custom gradient: it equals that of ``x @ factor``."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 12))
    for shape in ((12, 3), (12, 20)):
        factor = jax.random.normal(jax.random.key(1), shape)

        def gradients(product, factor=factor):
            return jax.grad(lambda x, f: jnp.sin(product(x, f)).sum(), (0, 1))(x, factor)

        found, expected = gradients(_product_on_cpu), gradients(jnp.matmul)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
