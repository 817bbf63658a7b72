"""Loss and gradients of a step on one person, against diffusers and PEFT in torch (float32)."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import leaf_paths, set_leaves
from persongen_jax.training.step import keys_of, merge_model
from persongen_jax.weights.formats.adapters import extract_adapter
from persongen_jax.weights.formats.lora.writing import write_lora
from tests.helpers.training_runs import changed
from tests.helpers.twins import relative_error

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def config(personal_config, tmp_path_factory):
    """With four class images."""
    folder = tmp_path_factory.mktemp("class")
    for pixels in np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8):
        Image.fromarray(pixels).save(folder / f"{len(list(folder.iterdir()))}.png")
    own = {"class_data": str(folder), "class_prompt": "a photo of a woman", "num_class_images": 4}
    return changed(personal_config, prior_loss_weight=0.5, **own)


def open_method(config, name, **more):
    """An opened system whose trained arrays are random, so that no gradient is 0 by itself."""
    system = open_system(changed(config, method=name, **more))
    rng = np.random.default_rng(1)
    arrays = {}
    for path, leaf in leaf_paths(system.model).items():
        if "/lora/" in path and not path.endswith("magnitude"):
            arrays[path] = (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
    set_leaves(system.model, arrays)
    return system


def our_step(system):
    """(loss, gradients by path, batch, draws) of the first step."""
    parts = assemble(system, make_mesh(jax.devices()[:1]))
    batch = jax.tree.map(jnp.asarray, next(iter(system.examples(0))))
    draws = system.draw(keys_of(system.config.seed, 0), batch)

    @jax.jit
    def step(trainable):
        def mean(trainable):
            model = merge_model(parts.graphdef, trainable, parts.frozen)
            return system.losses(model, batch, draws)["loss"].mean()

        return jax.value_and_grad(mean)(trainable)

    loss, gradients = step(parts.state.trainable)
    return SimpleNamespace(
        loss=float(loss), gradients=jax.device_get(gradients), batch=batch, draws=draws
    )


def inputs_of(system, step):
    """What the twin gets: ids, and the latents that the step has drawn."""
    latents = system.codec.latents(system.model, step.batch, step.draws["latents"])
    found = {"latents": latents, "noise": step.draws["noise"]}
    found |= {"timesteps": step.draws["timesteps"], "time_ids": step.batch["time_ids"]}
    found = {name: np.asarray(value) for name, value in found.items()}
    return {**found, "ids": np.asarray(step.batch["input_ids"]["text"])}


def eq_10(errors, weights, prior_weight):
    """DreamBooth's loss of a batch: over the person's images, plus that over the class'."""
    own = weights == 2.0
    assert own.sum() == (~own).sum()  # as in diffusers: halves of a batch
    return errors[own].mean() + prior_weight * errors[~own].mean()


def even(system):
    """The system with a first batch of two pictures of the person and two class images."""
    for seed in range(20):
        system.config.seed = seed
        weights = np.asarray(next(iter(system.examples(0)))["example_weight"])
        if (weights == 2.0).sum() == 2:
            return system
    raise AssertionError("no even batch")


@pytest.mark.slow
def test_a_dreambooth_lora_step_with_prior_preservation(config, golden, tmp_path):
    targets = {"lora_targets": "attention+conv", "rank": 4, "text_rank": 2, "lora_alpha": 2.0}
    system = even(open_method(config, "lora", **targets))
    step = our_step(system)
    weights = np.asarray(step.batch["example_weight"])
    assert sorted(weights) == [1.0, 1.0, 2.0, 2.0]  # 2 and 2 * prior_loss_weight
    towers = ("unet", "text_encoder", "text_encoder_2")

    def theirs():
        from tests.methods.personal.torch_step import TorchStep

        twin = TorchStep(config.base)
        adapters = {name: extract_adapter(getattr(system.model, name)) for name in towers}
        write_lora(tmp_path / "lora.safetensors", adapters)
        twin.pipe.load_lora_weights(tmp_path / "lora.safetensors")
        found, layers = {}, {}
        for name in towers:
            for path, parameter in getattr(twin.pipe, name).named_parameters():
                if "lora_" in path:
                    layers[name, path] = parameter.requires_grad_()
        loss = eq_10(twin.errors(inputs_of(system, step)), weights, config.prior_loss_weight)
        loss.backward()
        for (name, path), parameter in layers.items():
            stem, _, half = path.replace("text_model.", "").partition(".lora_")
            half = "down" if half.startswith("A") else "up"
            # SDXL does not read the first tower's last layer.
            array = np.zeros(parameter.shape, np.float32)
            array = array if parameter.grad is None else parameter.grad.numpy()
            if array.ndim == 4:
                array = array.transpose(2, 3, 1, 0) if half == "down" else array[..., 0, 0].T
            else:
                array = array.T
            found[f"{name}/{stem.replace('.', '/')}/lora/{half}"] = array
        return {"loss": np.float32(loss.detach()), **found}

    expected = dict(golden(theirs))
    assert abs(step.loss - expected.pop("loss")) < TOLERANCE * step.loss
    assert expected.keys() == step.gradients.keys()
    read = [path for path, array in expected.items() if array.any()]
    assert len(read) > 0.9 * len(expected)
    for path, array in expected.items():
        ours = step.gradients[path]
        assert relative_error(ours, array) < TOLERANCE if array.any() else not ours.any(), path


def test_a_textual_inversion_step_with_prior_preservation(config, golden):
    own = {"token": "<me>", "num_vectors": 2, "initializer": "woman"}
    system = even(open_method(config, "textual_inversion", **own))
    rng = np.random.default_rng(2)
    paths = [p for p in leaf_paths(system.model) if p.endswith("/added")]
    rows = {
        p: (0.1 * rng.standard_normal(leaf_paths(system.model)[p].shape)).astype(np.float32)
        for p in paths
    }
    set_leaves(system.model, rows)
    step = our_step(system)
    assert step.gradients.keys() == set(paths)

    def theirs():
        import torch

        from tests.methods.personal.torch_step import TorchStep

        twin, inputs, tables = TorchStep(config.base), inputs_of(system, step), {}
        ids = inputs["ids"].copy()
        for i, name in enumerate(("text_encoder", "text_encoder_2")):
            tower, path = getattr(twin.pipe, name), f"{name}/embeddings/token_embedding/added"
            added = rows[path]
            end = tower.get_input_embeddings().num_embeddings
            tower.resize_token_embeddings(end + len(added), mean_resizing=False)
            table = tower.get_input_embeddings().weight
            with torch.no_grad():
                table[end:] = torch.from_numpy(added)
            tables[name] = table.requires_grad_(), end
            ids[:, i] = np.where(ids[:, i] >= 1 << 20, ids[:, i] - (1 << 20) + end, ids[:, i])
        weights = np.asarray(step.batch["example_weight"])
        errors = twin.errors({**inputs, "ids": ids})
        loss = eq_10(errors, weights, config.prior_loss_weight)
        loss.backward()
        found = {"loss": np.float32(loss.detach())}
        for name, (table, end) in tables.items():
            found[f"{name}/embeddings/token_embedding/added"] = table.grad[end:].numpy()
        return found

    expected = dict(golden(theirs))
    assert abs(step.loss - expected.pop("loss")) < TOLERANCE * step.loss
    for path, array in expected.items():
        assert np.abs(array).max() > 0
        assert relative_error(step.gradients[path], array) < TOLERANCE, path


@pytest.mark.slow
def test_the_loss_counts_where_the_mask_is_white(personal_config, tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :12] = 255  # one and a half of four columns of latent cells
    for name, array in (("1.png", np.zeros((32, 32, 3), np.uint8)), ("1_mask.png", mask)):
        Image.fromarray(array).save(tmp_path / name)
    own = {"data": str(tmp_path), "loss_mask": "mask", "loss_mask_outside": 0.2}
    own |= {"batch_size": 1, "random_crop": False}
    system = open_method(personal_config, "textual_inversion", token="<me>", **own)
    batch = jax.tree.map(jnp.asarray, next(iter(system.examples(0))))
    draws = system.draw(keys_of(0, 0), batch)
    found, _ = system.mask(batch, draws, draws["noise"].shape)
    assert found.shape == (1, 4, 4)
    np.testing.assert_allclose(found[0, 0], [1.0, 0.6, 0.2, 0.2], atol=0.1)
    assert np.abs(found - found[:, :1]).max() < 1e-6
