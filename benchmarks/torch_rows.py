"""The same training step and the same images with diffusers and PEFT on torch.

The networks have the sizes of ours and random weights. The step is LoRA's on all attention layers;
for PhotoMaker it trains the ID projections and the fuse module too. The text states, the
references' CLIP features and the VAE's moments are part of the batch, as from the feature cache.
Trained weights and their moments are stored in float32, as in ours, and the rest in the config's
dtype.

Only processes that measure torch import this.
"""

import contextlib
import time
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from persongen_jax.bench.device import check_finite, host_peak
from persongen_jax.bench.settings import read_variant
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.systems.abstract import network_configs
from persongen_jax.weights.random_base import SCHEDULER

LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
PLACES = slice(5, 9)  # positions of the class token's copies in the prompt


# ---- The networks ------------------------------------------------------------------------------


def prepare_torch(threads: int) -> str:
    """ "cuda" if available, else "cpu"; with the fastest settings of torch there."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda"


def sizes(config) -> dict:
    """Sizes of the arrays between the networks, for the base that ``config`` names."""
    configs, image_tower = network_configs(config)
    towers = configs["text_encoder"], configs["text_encoder_2"]
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return {
        "latents": (
            configs["vae"]["latent_channels"],
            config.size // factor,
            config.size // factor,
        ),
        "text": tuple(tower["hidden_size"] for tower in towers),
        "pooled": towers[1]["projection_dim"],
        "image": image_tower["hidden_size"],
        "scaling": configs["vae"]["scaling_factor"],
    }


def make_unet(config, device, options):
    return _frozen(UNet2DConditionModel, "unet", config, config.dtype, device, options)


def make_vae(config, device, options):
    return _frozen(AutoencoderKL, "vae", config, config.vae_dtype, device, options)


def _frozen(kind, name, config, dtype: str, device, options):
    """diffusers' network with the config's size, in ``dtype``."""
    with torch.device(device):
        network = kind.from_config(network_configs(config)[0][name])
    network.to(getattr(torch, dtype)).requires_grad_(False)
    if "channels_last" in options:
        network.to(memory_format=torch.channels_last)
    return network


def add_lora(unet, config, dtype):
    """Add trainable LoRA to every attention layer."""
    unet.add_adapter(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=LORA_LAYERS,
        )
    )
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(dtype)
            if "lora_B" in name:  # PEFT starts from zeros, unlike a trained LoRA
                nn.init.uniform_(parameter, -0.02, 0.02)


class MLP(nn.Sequential):
    def __init__(self, inner, outer):
        super().__init__(
            nn.LayerNorm(inner), nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, outer)
        )


class Identity(nn.Module):
    """PhotoMaker's projections and fuse module, as in models/encoders/id_encoder.py."""

    def __init__(self, image: int, text: tuple[int, int]):
        super().__init__()
        features = sum(text)
        self.visual_projection = nn.Linear(image, text[0], bias=False)
        self.visual_projection_2 = nn.Linear(image, text[1], bias=False)
        self.mlp1, self.mlp2 = MLP(2 * features, features), MLP(features, features)
        self.layer_norm = nn.LayerNorm(features)

    def forward(self, embeds, id_features):
        """Text states [b, 77, d] and CLIP features [b, 4, w] to the stacked embedding."""
        ids = [self.visual_projection(id_features), self.visual_projection_2(id_features)]
        tokens = embeds[:, PLACES]
        fused = self.mlp1(torch.cat([tokens, *ids], dim=-1)) + tokens
        fused = self.layer_norm(self.mlp2(fused) + fused)
        return torch.cat([embeds[:, : PLACES.start], fused, embeds[:, PLACES.stop :]], dim=1)


class Loss(nn.Module):
    """The noise-prediction loss of a batch; ``identity`` None: of the prompts alone."""

    def __init__(self, unet, identity, scaling: float, layout):
        super().__init__()
        self.unet, self.identity = unet, identity
        self.scaling, self.layout = scaling, layout
        device = unet.conv_in.weight.device
        alphas = torch.tensor(NoiseSchedule.from_config(SCHEDULER).alphas_cumprod.tolist())
        self.register_buffer("signal", alphas.sqrt().to(device))
        self.register_buffer("level", (1 - alphas).sqrt().to(device))

    def forward(self, mean, logvar, embeds, pooled, time_ids, mask, id_features=None):
        b, channels = mean.shape[:2]
        z, noise = torch.randn_like(mean), torch.randn_like(mean)
        timesteps = torch.randint(0, self.signal.shape[0], (b,), device=mean.device)
        latents = (mean + torch.exp(0.5 * logvar) * z) * self.scaling
        signal, level = (x[timesteps][:, None, None, None] for x in (self.signal, self.level))
        noisy = (signal * latents + level * noise).to(embeds.dtype, memory_format=self.layout)
        if self.identity is not None:
            embeds = self.identity(embeds, id_features)
        pred = self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample
        errors = mask * (pred.float() - noise) ** 2
        return (errors.sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * channels)).mean()


# ---- The training step -------------------------------------------------------------------------


class TorchTrainRow:
    """One setting of the step on torch; ``variant``: see bench/settings.TORCH_OPTIONS.

    With ``device="meta"`` nothing is computed: for counting only.
    """

    def __init__(self, config, *, variant: str, threads: int = 1, device: str = ""):
        options = read_variant(variant)
        self.device = device or prepare_torch(threads)
        dtype = getattr(torch, config.dtype)
        size = sizes(config)
        unet = make_unet(config, self.device, options)
        add_lora(unet, config, torch.float32 if "autocast" in options else dtype)
        unet.train()
        if "remat" in options:
            unet.enable_gradient_checkpointing()
        with torch.device(self.device):
            identity = None
            self.batch = random_batch(config, size, dtype)
            if config.method == "photomaker":
                identity = Identity(size["image"], size["text"]).to(dtype)
                features = torch.randn(config.batch_size, 4, size["image"], dtype=dtype)
                self.batch["id_features"] = features
        layout = torch.channels_last if "channels_last" in options else torch.contiguous_format
        model = Loss(unet, identity, size["scaling"], layout)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        # Adam's small updates vanish in half precision: it works on float32 masters of the rest.
        self.copies = [
            (nn.Parameter(p.detach().float()), p) for p in self.trained if p.dtype != torch.float32
        ]
        masters = [master for master, _ in self.copies]
        masters += [p for p in self.trained if p.dtype == torch.float32]
        adam = config.optimizer_options
        betas = (adam.get("b1", 0.9), adam.get("b2", 0.999))
        settings = {"lr": config.lr_lora, "betas": betas}
        self.adam = torch.optim.Adam(masters, fused=self.device != "meta", **settings)
        self.loss: Any = model
        if "compile" in options:
            mode = "max-autotune-no-cudagraphs" if "max_autotune" in options else None
            self.loss = torch.compile(model, mode=mode)
        self.autocast: Any = contextlib.nullcontext()
        if "autocast" in options:
            self.autocast = torch.autocast(self.device, torch.bfloat16)

    def backward(self):
        """The loss, leaving its gradients in the parameters."""
        with self.autocast:
            loss = self.loss(**self.batch)
        loss.backward()
        return loss

    def step(self):
        loss = self.backward()
        for master, copy in self.copies:
            master.grad, copy.grad = copy.grad.float(), None
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.copies:
            masters, copies = zip(*self.copies, strict=True)
            with torch.no_grad():
                torch._foreach_copy_(copies, masters)
        return loss.detach()

    def prepare(self) -> dict:
        """Two steps, the first of which compiles; and a description of the device."""
        first, again = self.run(1)["seconds"], self.run(1)["seconds"]
        return {
            **device_names(self.device),
            "trained": sum(p.numel() for p in self.trained),
            "compile_s": max(0.0, first - again),
            "first_s": first,
        }

    def run(self, steps: int) -> dict:
        """The seconds of this many steps, and the last one's loss."""
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        loss = float(loss)
        seconds = time.perf_counter() - start
        check_finite(loss)
        return {"seconds": seconds, "loss": loss}

    def finish(self) -> dict:
        return torch_memory(self.device)


def random_batch(config, size: dict, dtype) -> dict:
    """A batch as from the feature cache, drawn on the default device."""
    b, latents = config.batch_size, size["latents"]
    return {
        "mean": torch.randn(b, *latents),
        "logvar": 0.1 * torch.randn(b, *latents),
        "embeds": torch.randn(b, 77, sum(size["text"]), dtype=dtype),
        "pooled": torch.randn(b, size["pooled"], dtype=dtype),
        "time_ids": torch.full((b, 6), float(config.size), dtype=dtype),
        "mask": torch.ones(b, 1, *latents[1:]),
    }


def torch_step_flops(config) -> tuple[int, int]:
    """(floating-point operations of torch's step per image, number of trained parameters).

    Counted by torch on tensors without data, with attention as its two products.
    """
    config = config.copy_and_resolve_references()
    config.batch_size = 1
    row = TorchTrainRow(config, variant="eager", device="meta")
    with FlopCounterMode(display=False) as counter:
        row.backward()
    return counter.get_total_flops(), sum(p.numel() for p in row.trained)


# ---- Images ----------------------------------------------------------------------------------


class TorchSampleRow:
    """Images from diffusers' pipeline with prompt embeddings (ours also encodes the prompts)."""

    def __init__(self, config, *, steps, guidance, variant: str, threads: int):
        options = read_variant(variant)
        self.device = prepare_torch(threads)
        unet = make_unet(config, self.device, options)
        self.vae = make_vae(config, self.device, options)
        pipeline: Any = StableDiffusionXLPipeline  # whose attributes diffusers sets at run time
        self.pipe = pipeline(
            vae=self.vae,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=EulerDiscreteScheduler.from_config(SCHEDULER),
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.decode = self.vae.decode
        if "compile" in options:
            mode = "max-autotune-no-cudagraphs" if "max_autotune" in options else None
            self.pipe.unet = torch.compile(unet, mode=mode)
            self.decode = torch.compile(self.vae.decode, mode=mode)
        size, b = sizes(config), config.batch_size
        with torch.device(self.device):
            embeds = torch.randn(2, b, 77, sum(size["text"]), dtype=unet.dtype)
            pooled = torch.randn(2, b, size["pooled"], dtype=unet.dtype)
        self.call = {
            "prompt_embeds": embeds[0],
            "negative_prompt_embeds": embeds[1],
            "pooled_prompt_embeds": pooled[0],
            "negative_pooled_prompt_embeds": pooled[1],
            "height": config.size,
            "width": config.size,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "output_type": "latent",
        }

    def paint(self):
        """A batch of images, float32 [b, h, w, 3] in 0..1 on the host."""
        with torch.inference_mode():
            latents = self.pipe(**self.call).images
            latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
            # One by one, as in ours: a batch at once takes several times the memory.
            images = torch.cat([self.decode(x[None]).sample for x in latents])
            return (images.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    def prepare(self) -> dict:
        """Two batches, the first of which compiles; and a description of the device."""
        first, again = self.run(1)["seconds"], self.run(1)["seconds"]
        return {
            **device_names(self.device),
            "compile_s": max(0.0, first - again),
            "first_s": first,
        }

    def run(self, times: int) -> dict:
        """The seconds of this many batches of images, one after the other."""
        start = time.perf_counter()
        for _ in range(times):
            images = self.paint()
        seconds = time.perf_counter() - start
        check_finite(float(images.mean()))
        return {"seconds": seconds}

    def finish(self) -> dict:
        return torch_memory(self.device)


def torch_image_flops(config, *, steps: int, guidance: float) -> int:
    """Floating-point operations of torch's image: UNet at every step, VAE's decoder once."""
    unet, vae, size = (
        make_unet(config, "meta", set()),
        make_vae(config, "meta", set()),
        sizes(config),
    )

    def flops(work):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return counter.get_total_flops()

    with torch.device("meta"):
        latents = torch.zeros(1, *size["latents"], dtype=unet.dtype)
        tokens = torch.zeros(1, 77, sum(size["text"]), dtype=unet.dtype)
        more = {"text_embeds": torch.zeros(1, size["pooled"], dtype=unet.dtype)}
        more["time_ids"] = torch.zeros(1, 6, dtype=unet.dtype)
        timestep = torch.zeros(1, dtype=torch.int64)
    step = flops(lambda: unet(latents, timestep, tokens, added_cond_kwargs=more))
    decode = flops(lambda: vae.decode(latents.to(vae.dtype)))
    return steps * (2 if guidance > 1 else 1) * step + decode


# ---- The device --------------------------------------------------------------------------------


def device_names(device: str) -> dict:
    if device == "cpu":
        return {"device": f"cpu, {torch.get_num_threads()} threads", "platform": "cpu"}
    return {"device": torch.cuda.get_device_name(), "platform": "gpu"}


def torch_memory(device: str) -> dict:
    if device == "cpu":
        return {"peak_gib": host_peak()}
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
