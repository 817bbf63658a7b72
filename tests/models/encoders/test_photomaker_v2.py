"""PhotoMaker v2's ID encoder against a transcription in PyTorch, layer by layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder
from persongen_jax.models.encoders.resampler import apply
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module, parameter_leaves, to_torch_shape, torch_key
from tests.helpers.twins import nhwc, randomise, relative_error
from tests.methods.test_photomaker import TorchFuse

TOLERANCE = 1e-5
ID, HEAD_DIM = 12, 16  # of the published file: 512, 128
WIDTHS = (32, 64)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": WIDTHS[0],
}


class TorchAttention(nn.Module):
    def __init__(self, dim, head_dim):
        super().__init__()
        self.head_dim = head_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, picture, latents):
        picture, latents = self.norm1(picture), self.norm2(latents)
        rows = self.to_kv(torch.cat([picture, latents], dim=1))
        width = rows.shape[-1] // 2
        keys, values, queries = rows[..., :width], rows[..., width:], self.to_q(latents)
        out = []
        for start in range(0, width, self.head_dim):  # one head after the other
            of = slice(start, start + self.head_dim)
            scores = queries[..., of] @ keys[..., of].transpose(1, 2) / math.sqrt(self.head_dim)
            out.append(scores.softmax(-1) @ values[..., of])
        return self.to_out(torch.cat(out, -1))


class TorchResampler(nn.Module):
    def __init__(self, dim, in_dim, head_dim, depth):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(in_dim, dim), nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        feed_forward = [
            nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, 4 * dim, bias=False),
                nn.GELU(),
                nn.Linear(4 * dim, dim, bias=False),
            )
            for _ in range(depth)
        ]
        self.layers = nn.ModuleList(
            nn.ModuleList([TorchAttention(dim, head_dim), part]) for part in feed_forward
        )

    def forward(self, latents, picture):
        picture = self.proj_in(picture)
        for attention, feed_forward in self.layers:
            latents = latents + attention(picture, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class TorchQFormer(nn.Module):
    def __init__(self, id_dim, in_dim, dim, head_dim):
        super().__init__()
        self.token_proj = nn.Sequential(
            nn.Linear(id_dim, 4 * id_dim), nn.GELU(), nn.Linear(4 * id_dim, 2 * dim)
        )
        self.token_norm = nn.LayerNorm(dim)
        self.perceiver_resampler = TorchResampler(dim, in_dim, head_dim, depth=4)

    def forward(self, faces, patches):
        first, second = self.token_proj(faces).chunk(2, -1)
        tokens = self.token_norm(torch.stack([first, second], dim=1))
        return tokens + self.perceiver_resampler(tokens, patches)


class TorchV2IDEncoder(CLIPVisionModelWithProjection):
    """The parts in the order in which the published class registers them."""

    def __init__(self, config, widths=WIDTHS, id_dim=ID, head_dim=HEAD_DIM):
        super().__init__(config)
        dim = sum(widths)
        self.fuse_module = TorchFuse(dim)
        self.visual_projection_2 = nn.Linear(config.hidden_size, widths[1], bias=False)
        self.qformer_perceiver = TorchQFormer(id_dim, config.hidden_size, dim, head_dim)

    def embed(self, pixels, faces):
        """[b, r, 3, s, s] and [b, r, id] to [b, 2 r, d]."""
        b, r = pixels.shape[:2]
        patches = self.vision_model(pixels.flatten(0, 1)).last_hidden_state
        return self.qformer_perceiver(faces.flatten(0, 1), patches).reshape(b, 2 * r, -1)


def build(config, widths=WIDTHS, **sizes):
    kw = {"dtype": jnp.float32, "rngs": UnusedRngs()}
    tower = CLIPVisionModel(config, with_projection=False, **kw)
    return PhotoMakerV2IDEncoder(tower, widths, **sizes, **kw)


@pytest.fixture(scope="module")
def theirs():
    return randomise(TorchV2IDEncoder(CLIPVisionConfig(**VISION)))


@pytest.fixture(scope="module")
def ours(theirs):
    tensors = {key: value.numpy() for key, value in theirs.state_dict().items()}
    return load_module(
        lambda: build(VISION, id_features=ID, head_dim=HEAD_DIM), DictSource(tensors)
    )


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 3, 24, 24, generator=generator)
    return pixels, F.normalize(torch.randn(2, 3, ID, generator=generator), dim=-1)


def test_the_perceiver_layer_by_layer(theirs, ours, inputs):
    _, faces = inputs
    patches = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(2))
    torch_part, part = theirs.qformer_perceiver, ours.qformer_perceiver
    seen = {}
    for name, module in torch_part.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        whole = torch_part(faces[0], patches)

    def close(found, name):
        assert relative_error(found, seen[name].numpy()) < TOLERANCE, name

    projected = apply(part.token_proj, faces[0].numpy())
    close(projected, "token_proj")
    latents = part.token_norm(projected.reshape(3, 2, -1))
    close(latents, "token_norm")
    resampler = part.perceiver_resampler
    x = resampler.proj_in(patches.numpy())
    close(x, "perceiver_resampler.proj_in")
    for i, (attend, feed_forward) in enumerate(resampler.layers):
        attended = attend(latents, x)
        close(attended, f"perceiver_resampler.layers.{i}.0")
        latents = latents + attended
        fed = apply(feed_forward, latents)
        close(fed, f"perceiver_resampler.layers.{i}.1")
        latents = latents + fed
    close(resampler.norm_out(resampler.proj_out(latents)), "perceiver_resampler")
    found = part(faces[0].numpy(), patches.numpy())
    assert relative_error(found, whole.numpy()) < TOLERANCE


def test_the_encoder_and_its_stacking(theirs, ours, inputs):
    """Two tokens per reference replace four copies; another example has one reference."""
    pixels, faces = inputs
    with torch.no_grad():
        wanted = theirs.embed(pixels, faces)
    channels_last = nhwc(pixels.flatten(0, 1)).reshape(2, 3, 24, 24, 3)
    found = jax.jit(lambda p, f: ours(p, f))(channels_last, faces.numpy())
    assert found.shape == (2, 6, 96)
    assert relative_error(found, wanted.numpy()) < TOLERANCE

    rng = np.random.default_rng(0)
    prompt = rng.standard_normal((2, 9, 96)).astype(np.float32)
    class_mask = np.zeros((2, 9), bool)
    class_mask[0, 2:6], class_mask[1, 1:3] = True, True
    id_mask = np.repeat(np.array([[True, True, False], [True, False, False]]), 2, axis=1)
    stacked = ours.fuse_module.stack(prompt, found, class_mask, id_mask)
    for row, count in ((0, 4), (1, 2)):
        places = np.flatnonzero(class_mask[row])
        tokens = torch.from_numpy(prompt[row, places])[:, None]
        with torch.no_grad():
            ids = wanted[row, :count][:, None]
            fused = theirs.fuse_module.stack(tokens, ids, [1] * count, [0] * count)
        assert relative_error(stacked[row, places], fused.numpy()[:, 0]) < TOLERANCE
        others = ~class_mask[row]
        assert np.array_equal(stacked[row, others], prompt[row, others])


def test_full_size_keys():
    """The tensors of the published file, as shapes only: formats.md counts these."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    with torch.device("meta"):
        state = TorchV2IDEncoder(config, (768, 1280), id_dim=512, head_dim=128).state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items()}
    assert len(wanted) == 463
    assert round(sum(math.prod(shape) for shape in wanted.values()) / 1e5) == 5434
    assert wanted["qformer_perceiver.token_proj.2.weight"] == (4096, 2048)
    assert wanted["qformer_perceiver.perceiver_resampler.layers.3.0.to_kv.weight"] == (4096, 2048)
    leaves = parameter_leaves(nnx.eval_shape(lambda: build(config.to_dict(), (768, 1280))))
    ours = {torch_key(path): to_torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    assert ours == wanted
