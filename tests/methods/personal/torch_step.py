"""A step's loss and gradients in torch, by diffusers' networks and PEFT's adapters."""

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline


class TorchStep:
    """SDXL's own classes with the base's weights; one example at a time where that is plainer."""

    def __init__(self, base):
        self.pipe = StableDiffusionXLPipeline.from_pretrained(base)
        self.scheduler = DDPMScheduler.from_config(self.pipe.scheduler.config)
        for part in (self.pipe.unet, self.pipe.text_encoder, self.pipe.text_encoder_2):
            part.requires_grad_(False).eval()

    def encode(self, ids):
        """ids [b, 2, n] to (states [b, n, d], pooled [b, p]) as SDXL reads them."""
        towers = self.pipe.text_encoder, self.pipe.text_encoder_2
        out = [
            tower(torch.from_numpy(np.array(ids[:, i])).long(), output_hidden_states=True)
            for i, tower in enumerate(towers)
        ]
        states = torch.cat([each.hidden_states[-2] for each in out], -1)
        return states, out[1].text_embeds

    def errors(self, inputs):
        """[b]: each example's mean squared error of the predicted noise.

        ``inputs``: ids, latents and noise [b, h, w, c], timesteps, time_ids, as NumPy.
        """
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        latents, noise = (tensors[name].permute(0, 3, 1, 2) for name in ("latents", "noise"))
        timesteps = tensors["timesteps"].long()
        states, pooled = self.encode(inputs["ids"])
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        added = {"text_embeds": pooled, "time_ids": tensors["time_ids"]}
        pred = self.pipe.unet(noisy, timesteps, states, added_cond_kwargs=added).sample
        return ((pred - noise) ** 2).mean((1, 2, 3))
