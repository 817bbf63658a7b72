"""A system other than SDXL: a class-conditional DDPM on the pixels of scikit-learn's digits."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from data_pipeline.examples.batches import Arrays
from data_pipeline.examples.fields import Field
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.evaluation.sampled import Cases
from persongen_jax.models.embeddings import TimestepEmbedding, sinusoidal_embedding
from persongen_jax.models.layers import Conv, Embed
from persongen_jax.models.resnet import ResnetBlock2D
from persongen_jax.systems.diffusion import DiffusionSystem, Pixels

WIDTH, NOBODY = 32, 10  # channels; the label of "no condition"
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"}


class Label(Field):
    """Which digit it is: "label" [] int32."""

    name = "label"

    def spec(self, shape):
        return {"label": ((), np.dtype(np.int32))}

    def dropped(self, batch, xp):
        return {"label": xp.full_like(batch["label"], NOBODY)}


class Net(nnx.Module):
    def __init__(self, rngs):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        self.time, self.label = TimestepEmbedding(WIDTH, WIDTH, **kw), Embed(11, WIDTH, **kw)
        self.conv_in, self.conv_out = Conv(1, WIDTH, 3, padding=1, **kw), Conv(WIDTH, 1, 1, **kw)
        block = {"temb_channels": WIDTH, "groups": 8, **kw}
        self.blocks = nnx.List([ResnetBlock2D(WIDTH, WIDTH, **block) for _ in range(3)])

    def __call__(self, x, t, label):
        t = jnp.broadcast_to(t, x.shape[:1])
        temb = self.time(sinusoidal_embedding(t, WIDTH)) + self.label(label)
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h, temb)
        return self.conv_out(h)


class Digits(DiffusionSystem):
    codec, fields, scheduler_config = Pixels(1), (Label(),), SCHEDULER
    schedule = NoiseSchedule.from_config(SCHEDULER)

    def __init__(self, config):
        self.config, self.model = config, Net(nnx.Rngs(config.seed))

    def source(self):
        digits = load_digits()
        images = digits.images[..., None].astype(np.float32) / 8 - 1
        arrays = {"pixel_values": images, "label": digits.target.astype(np.int32)}
        return Arrays(arrays, seed=self.config.seed)

    def condition(self, model, batch):
        return batch["label"]

    def denoise(self, model, x, t, condition, step=None):
        return model(x, t, condition)

    @classmethod
    def validation_sets_of(cls, config):
        return ("digits",)

    def cases(self, name):
        digits, labels = load_digits(), np.repeat(np.arange(10, dtype=np.int32), 4)
        real = {str(i): digits.images[digits.target == i].astype(np.uint8) * 15 for i in range(10)}
        return Cases({"label": labels}, list(map(str, labels)), real)
