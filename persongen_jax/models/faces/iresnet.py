"""IResNet, the network behind ArcFace embeddings (Deng et al., arXiv 1801.07698, section 3.2).

A residual network with pre-normalised blocks (Han et al., arXiv 1610.02915). Module paths mirror
the keys of InsightFace's arcface_torch. Arrays are NHWC; images are RGB in [-1, 1].
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.layers import Conv, LayerOptions, Linear

EPS = 1e-5
MOMENTUM = 0.1  # the share of each new batch in the running statistics

# InsightFace's r50. ``folded``: each convolution has the normalisation after it folded into its
# kernel and a bias, as in buffalo_l's .onnx.
DEFAULTS = {
    "layers": (3, 4, 14, 3),
    "widths": (64, 128, 256, 512),
    "input_size": 112,
    "embedding_dim": 512,
    "in_channels": 3,
    "folded": False,
}
R50 = {"layers": (3, 4, 14, 3)}
R100 = {"layers": (3, 13, 30, 3)}


def complete_config(config: dict) -> dict:
    """``config`` with r50's values filled in; ValueError if it does not describe a network."""
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"IResNet config: unknown keys {unknown}; known: {sorted(DEFAULTS)}")
    config = {**DEFAULTS, **config}
    for key in ("layers", "widths"):
        config[key] = tuple(config[key])
    if not config["layers"] or len(config["layers"]) != len(config["widths"]):
        raise ValueError(
            f"IResNet config: layers={config['layers']} and widths={config['widths']} need one "
            "entry for each stage"
        )
    sizes = {key: config[key] for key in ("input_size", "embedding_dim", "in_channels")}
    sizes.update(layers=min(config["layers"]), widths=min(config["widths"]))
    for key, least in sizes.items():
        if least < 1:
            raise ValueError(f"IResNet config: {key}={config[key]}: give at least 1")
    return config


def final_side(config: dict) -> int:
    """Pixels along one side of the last feature map: every stage halves it, rounding up."""
    side = config["input_size"]
    for _ in config["layers"]:
        side = (side + 1) // 2
    return side


def normalise_faces(crops: ArrayLike) -> jax.Array:
    """uint8 RGB crops [b, s, s, 3] to float32 in [-1, 1], as ArcFace was trained."""
    return (jnp.asarray(crops, jnp.float32) - 127.5) / 127.5


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last (arXiv 1502.03167), in float32.

    The running statistics are ``nnx.BatchStat``, so that ``nnx.Param`` means trainable, and stay in
    float32 whatever ``param_dtype`` says. Under jit a batch that is sharded over devices is
    normalised as a whole.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = EPS,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        del rngs  # unused; kept so that all layers have the same arguments
        self.dtype, self.epsilon = dtype, epsilon
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))
        self.running_mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.running_var = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(self, x: jax.Array, *, use_running_average: bool = True) -> jax.Array:
        """[..., features] to the same. Using batch statistics of a single value is a ValueError."""
        x = x.astype(jnp.float32)
        if use_running_average:
            mean, variance = self.running_mean[...], self.running_var[...]
        else:
            mean, variance = self._batch_statistics(x)
        gain = self.scale[...].astype(jnp.float32) * lax.rsqrt(variance + self.epsilon)
        return ((x - mean) * gain + self.bias[...].astype(jnp.float32)).astype(self.dtype)

    def _batch_statistics(self, x):
        """Mean and variance [features] of a batch, which also update the running ones."""
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError("batch statistics of a single value: train on larger batches")
        mean = x.mean(axes)
        variance = jnp.square(x - mean).mean(axes)
        # Normalise by the batch's own variance, but keep the unbiased estimate, as PyTorch does.
        unbiased = variance * (count / (count - 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running[...] = (1 - MOMENTUM) * running[...] + MOMENTUM * new
        return mean, variance


class PReLU(nnx.Module):
    """max(x, 0) + slope * min(x, 0) with one slope per channel (arXiv 1502.01852)."""

    def __init__(self, features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full((features,), 0.25, param_dtype))  # "weight" in PyTorch

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.where(x >= 0, x, x * self.scale[...].astype(self.dtype))


def _conv_norm(x, conv, norm, **mode):
    """A convolution and the normalisation after it, which a folded network lacks."""
    x = conv(x, infer=mode["use_running_average"])
    return x if norm is None else norm(x, **mode)


class IBasicBlock(nnx.Module):
    """Norm, two convolutions, skip: [b, h, w, in] to [b, h / strides, w / strides, out]."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        strides: int,
        folded: bool,
        **kw: Unpack[LayerOptions],
    ):
        def norm():
            return nnx.data(None) if folded else BatchNorm(features, **kw)

        self.bn1 = BatchNorm(in_features, **kw)
        self.conv1 = Conv(in_features, features, 3, padding=1, use_bias=folded, **kw)
        self.bn2 = norm()
        self.prelu = PReLU(features, **kw)
        self.conv2 = Conv(features, features, 3, strides=strides, padding=1, use_bias=folded, **kw)
        self.bn3 = norm()
        self.downsample = nnx.data(None)
        if strides != 1 or in_features != features:
            conv = Conv(in_features, features, 1, strides=strides, use_bias=folded, **kw)
            self.downsample = nnx.List([conv] if folded else [conv, BatchNorm(features, **kw)])

    def __call__(self, x: jax.Array, *, use_running_average: bool = True) -> jax.Array:
        mode = {"use_running_average": use_running_average}
        y = _conv_norm(self.bn1(x, **mode), self.conv1, self.bn2, **mode)
        y = _conv_norm(self.prelu(y), self.conv2, self.bn3, **mode)
        if self.downsample is not None:
            conv, norm = (*self.downsample, None)[:2]
            x = _conv_norm(x, conv, norm, **mode)
        return x + y


class IResNet(nnx.Module):
    """Maps aligned face crops to raw (not normalised) ArcFace embeddings.

    ``use_running_average=False`` normalises by the batch and updates the running statistics, which
    are ``nnx.BatchStat`` variables of the module. Inside a loss under jit and grad:

        model = nnx.merge(graphdef, params, stats, copy=True)  # or the outer stats would be written
        embeddings = model(images, use_running_average=False)
        return loss_of(embeddings), nnx.state(model, nnx.BatchStat)

    Args:
        config: the keys of DEFAULTS, with r50's values for omitted ones.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: an unknown key, or sizes that do not describe a network.
    """

    def __init__(
        self,
        config: dict,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        config = complete_config(config)
        self.config = FrozenConfigDict(config)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        folded, widths = config["folded"], config["widths"]
        self.conv1 = Conv(config["in_channels"], widths[0], 3, padding=1, use_bias=folded, **kw)
        self.bn1 = nnx.data(None) if folded else BatchNorm(widths[0], **kw)
        self.prelu = PReLU(widths[0], **kw)
        in_features = widths[0]
        for i, (depth, features) in enumerate(zip(config["layers"], widths, strict=True)):
            blocks = []
            for j in range(depth):
                strides = 2 if j == 0 else 1
                blocks.append(
                    IBasicBlock(in_features, features, strides=strides, folded=folded, **kw)
                )
                in_features = features
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        self.bn2 = BatchNorm(in_features, **kw)
        self.fc = Linear(in_features * final_side(config) ** 2, config["embedding_dim"], **kw)
        self.features = BatchNorm(config["embedding_dim"], **kw)

    def hidden_states(
        self, images: jax.Array, *, use_running_average: bool = True
    ) -> tuple[jax.Array, ...]:
        """The stem's output [b, s, s, widths[0]] and every stage's, each with half the side."""
        size, channels = self.config["input_size"], self.config["in_channels"]
        if images.shape[1:] != (size, size, channels):
            raise ValueError(
                f"images have shape {images.shape}, input_size={size} needs "
                f"[b, {size}, {size}, {channels}]: align the faces to that size"
            )
        mode = {"use_running_average": use_running_average}
        x = self.prelu(_conv_norm(images, self.conv1, self.bn1, **mode))
        states = [x]
        for i in range(len(self.config["layers"])):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x, **mode)
            states.append(x)
        return tuple(states)

    def __call__(self, images: jax.Array, *, use_running_average: bool = True) -> jax.Array:
        """RGB faces [b, s, s, 3] in [-1, 1] to float32 [b, embedding_dim].

        The faces are aligned (data_pipeline.faces.align) and scaled by :func:`normalise_faces`.
        """
        mode = {"use_running_average": use_running_average}
        x = self.bn2(self.hidden_states(images, **mode)[-1], **mode)
        # fc's rows are in (c, h, w) order in every published file. Reordering this small map
        # instead of the weights keeps the file's layout for loading and saving.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        return self.features(self.fc(x), **mode).astype(jnp.float32)
