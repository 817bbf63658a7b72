"""The same prompts and latents through our pipeline and diffusers'."""

import functools

PROMPTS = ["a man", "a photo of a woman in a red hat, a castle on the mountain behind her"]
STEPS = 20  # with batches of 2 nearly everywhere: each other number is a program to compile
LORA_STEPS = 10
PIXEL = 2 / 255  # what has to hold; float32 twins are far below it
TIGHT = 0.5 / 255


def opened_when_called(base):
    """A function that opens diffusers' pipeline, once: most runs do without."""

    @functools.cache
    def opened():
        from diffusers import StableDiffusionXLPipeline

        pipe = StableDiffusionXLPipeline.from_pretrained(base)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return opened


def to_torch(latents):
    import torch

    return torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()


def run_ours(pipe, latents, **settings):
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **settings}
    return pipe(PROMPTS, latents=latents, output_type="np", **settings).images


def run_theirs(pipe, latents, **settings):
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, **settings}
    return pipe(PROMPTS, latents=to_torch(latents), output_type="np", **settings).images


def paint(pipe, latents):
    return run_ours(pipe, latents, num_inference_steps=LORA_STEPS)
