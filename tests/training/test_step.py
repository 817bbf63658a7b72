"""The training step on a model small enough to compute by hand, and parts of the real one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from configs.base import get_config
from data_pipeline.examples.batches import Arrays
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.platform import compile_for
from persongen_jax.models.sdxl.blocks import MidBlock
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.systems.base import System
from persongen_jax.systems.diffusion import VAE
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.train import check_batch_size
from persongen_jax.training import flop_count
from persongen_jax.training.partition import split_model
from persongen_jax.training.step import TrainState, compile_step, keys_of, make_train_step
from tests.helpers.configs import TINY_UNETS


class Plane(nnx.Module):
    def __init__(self):
        self.slope = nnx.Param(jnp.array([0.5, -1.0, 2.0]))
        self.offset = nnx.Param(jnp.array(0.25))


class Fit(System):
    """A plane fitted to noisy points; only its slope is trained."""

    groups = (("slope", "all"),)

    def __init__(self, config, rows=None):
        self.config, self.model, self.rows = config, Plane(), rows

    def source(self):
        return Arrays(self.rows, seed=self.config.seed)

    def draw(self, key_of, batch):
        return {"noise": jax.random.normal(key_of(0), batch["y"].shape)}

    def losses(self, model, batch, draws):
        noisy = batch["x"] @ model.slope[...] + model.offset[...] + draws["noise"]
        error = noisy - batch["y"]
        return {"loss": error**2, "above": (error > 0).astype(jnp.float32), "error": error}


def noise_at(batch, step):
    """The draws of Fit in a step."""
    config = Fit.defaults()
    return np.asarray(Fit(config).draw(keys_of(config.seed, step), batch)["noise"])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((8, 3), np.float32),
        "y": rng.standard_normal(8, np.float32),
    }


def run(batch, steps=3, **options):
    """Trainables after each step, metrics of each, the last state. Only the slope is trained."""
    config = Fit.defaults()
    config.update(options)
    system = Fit(config, batch)
    graphdef, trainable, frozen, _ = split_model(system.model, system.table)
    tx = optax.sgd(0.1)
    state = TrainState.create(trainable, tx, config.ema_decay)
    step_fn = make_train_step(system, graphdef, tx)
    slopes, metrics = [np.asarray(trainable["slope"])], []
    for step in range(steps):
        state, m = step_fn(state, frozen, batch, np.int32(step))
        slopes.append(np.asarray(state.trainable["slope"]))
        metrics.append({k: float(v) for k, v in m.items()})
    assert np.array_equal(trainable["slope"], slopes[0])  # the state was a copy
    assert frozen["offset"][...] == 0.25
    return slopes, metrics, state


def test_one_step_by_hand(batch):
    slopes, metrics, state = run(batch, steps=1)
    error = batch["x"] @ slopes[0] + 0.25 + noise_at(batch, 0) - batch["y"]
    gradient = 2 * (error[:, None] * batch["x"]).mean(0)
    assert np.allclose(slopes[1], slopes[0] - 0.1 * gradient, atol=1e-6)
    assert np.isclose(metrics[0]["loss"], (error**2).mean(), rtol=1e-5)
    assert np.isclose(metrics[0]["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    # Other logged values are means.
    assert metrics[0]["above"] == (error > 0).mean()
    assert np.isclose(metrics[0]["error"], error.mean(), rtol=1e-5)
    assert state.ema == {} and state.average == {} and state.stats == {}
    assert (
        state.eval_params.keys() == {"slope"}
        and state.eval_params["slope"] is state.trainable["slope"]
    )


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_are_the_whole_batch(batch, parts):
    whole, metrics, _ = run(batch)
    slopes, others, _ = run(batch, grad_accum=parts)
    # Sums of 8 numbers in another order; float32.
    assert np.allclose(slopes, whole, rtol=1e-6, atol=1e-6)
    for a, b in zip(metrics, others, strict=True):
        assert a["above"] == b["above"]
        assert np.isclose(a["error"], b["error"], rtol=1e-6, atol=1e-7)
        assert np.isclose(a["loss"], b["loss"], rtol=1e-6)
        assert np.isclose(a["grad_norm"], b["grad_norm"], rtol=1e-6)


def test_running_average(batch):
    slopes, _, state = run(batch, ema_decay=0.75)
    average = slopes[0]
    for slope in slopes[1:]:
        average = 0.75 * average + 0.25 * slope
    assert np.allclose(state.eval_params["slope"], average, atol=1e-6)
    assert np.abs(state.eval_params["slope"] - slopes[-1]).max() > 1e-2
    assert all(map(np.array_equal, slopes, run(batch)[0]))  # training itself does not change


def test_a_batch_that_does_not_divide_is_refused():
    config = get_config()
    config.batch_size, config.grad_accum = 24, 3
    check_batch_size(config, 8)
    for parts, devices in ((3, 16), (5, 1), (0, 1)):
        config.grad_accum = parts
        with pytest.raises(ValueError, match="config.batch_size=24"):
            check_batch_size(config, devices)


class ScaleVAE:
    vae_scale_factor, config = 8, {"latent_channels": 4}


class Draws(Sdxl):
    """The draws of a step as a function of what they depend on."""

    def __init__(self, config):
        self.config, self.model, self.codec = config, None, VAE(ScaleVAE)
        self.schedule = NoiseSchedule.from_config({})


def test_draws_depend_on_seed_and_step_alone():
    config = get_config()
    batch = {"pixel_values": np.zeros((6, 32, 16, 3), np.float32)}

    def draw(step):
        return Draws(config).draw(keys_of(config.seed, step), batch)

    first, again = draw(5), draw(5)
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert first["noise"].shape == first["latents"].shape == (6, 4, 2, 4)
    assert not np.array_equal(first["noise"], first["latents"])
    assert not np.array_equal(first["noise"], draw(6)["noise"])
    assert first.keys() == {"noise", "latents", "timesteps", "drop", "face_only"}
    # An additional option leaves the other draws unchanged.
    config.noise_offset = 0.1
    shifted = draw(5)
    shift = np.asarray(shifted.pop("noise") - first.pop("noise"))
    assert np.allclose(shift, shift[:, :1, :1], atol=1e-6) and shift.std() > 0.02
    assert jax.tree.all(jax.tree.map(np.array_equal, first, shifted))


def test_flops_of_products_convolutions_and_loops():
    def work(x, w, image, kernel):
        def body(x, _):
            return x @ w, None

        x, _ = jax.lax.scan(body, x, None, length=7)
        return x, jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = [(5, 16), (16, 16), (2, 8, 8, 3), (3, 3, 3, 10)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program, flops, _ = compile_step(jax.jit(work), *arguments)
    assert flops == 7 * 2 * 5 * 16 * 16 + 2 * (2 * 4 * 4 * 10) * (3 * 3 * 3)
    with pytest.raises(TypeError):
        program(*(np.zeros((s[0] + 1, *s[1:]), np.float32) for s in shapes))


def test_flops_inside_a_kernel_are_counted():
    """A kernel hides its products; its interpreter is what a CPU can compile."""
    n, d = 2048, 64
    x = jax.ShapeDtypeStruct((1, n, 1, d), jnp.bfloat16)
    attend = jax.jit(lambda x: attention(x, x, x))
    with compile_for("tpu"), pltpu.force_tpu_interpret_mode():
        assert "flash" in str(attend.trace(x).jaxpr)
        _, flops, _ = compile_step(attend, x)
    assert flops == 2 * 2 * n * n * d


def test_on_a_cpu_the_work_is_counted_in_the_trace_that_was_compiled():
    traced = []

    @jax.jit
    def work(x):
        traced.append(x)
        return x @ x

    compile_step(work, jax.ShapeDtypeStruct((4, 4), jnp.float32))
    assert len(traced) == 1


class Device:
    def __init__(self, kind):
        self.device_kind, self.platform = kind, "tpu"


def test_peaks():
    for kind, peak in (("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H200", 989e12)):
        flops, origin = flop_count.peak_flops([Device(kind)] * 4)
        assert flops == 4 * peak and kind in origin
    flops, origin = flop_count.peak_flops(jax.devices())
    assert 1e8 < flops < 1e15 and "measured" in origin


def test_remat_gives_the_same_gradients():
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    resnet = {"temb_channels": 8, "groups": 4, "eps": 1e-5, "act": "silu"}
    transformer = {"heads": 2, "num_layers": 1, "cross_attention_dim": 6, "groups": 4}
    transformer["use_linear_projection"] = True
    block = MidBlock(16, resnet=resnet, transformer=transformer, **kw)
    rng = np.random.default_rng(0)
    x, temb, tokens = (
        jnp.asarray(rng.standard_normal(shape, np.float32))
        for shape in ((1, 4, 4, 16), (1, 8), (1, 3, 6))
    )

    def gradients(remat):
        block.remat = remat
        graphdef, state = nnx.split(block)

        def loss(state, x):
            block = nnx.merge(graphdef, state)
            return (block(x, temb, {"text": TokenStream(tokens)}) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(state, x)

    plain, again = map(jax.tree.leaves, (gradients(False), gradients(True)))
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_remat_covers_every_layer_of_the_unet():
    """Traced, not compiled: one checkpoint for every resnet and every transformer."""
    config = {**TINY_UNETS["sdxl"], "layers_per_block": 1, "transformer_layers_per_block": 1}
    unet = nnx.eval_shape(lambda: UNet2DConditionModel(config, rngs=nnx.Rngs(0)))
    conditioning = Conditioning(
        {"text": TokenStream(jnp.zeros((1, 3, 64)))}, jnp.zeros((1, 32)), jnp.zeros((1, 6))
    )

    def checkpoints(remat):
        unet.set_remat(remat)
        graphdef, state = nnx.split(unet)
        traced = jax.make_jaxpr(
            lambda state: nnx.merge(graphdef, state)(jnp.zeros((1, 16, 16, 4)), 0, conditioning)
        )(state)
        return sum(eqn.primitive.name in ("remat2", "checkpoint") for eqn in traced.eqns)

    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    layers = sum(len(b.resnets) + len(b.attentions or ()) for b in blocks)
    assert checkpoints(False) == 0
    assert checkpoints(True) == layers > 10
