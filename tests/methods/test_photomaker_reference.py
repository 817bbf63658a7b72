"""PhotoMaker from prompt and photographs to images, against diffusers' parts assembled here.

Stacked embedding, LoRA, delayed merging: same weights, same latents, two prompts with different
numbers of references.
"""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPVisionModel

from persongen_jax.pipeline import Pipeline
from tests.helpers.photomaker_files import write_random_photomaker
from tests.helpers.training_runs import small_base
from tests.methods.test_photomaker import TorchFuse

PIXEL = 2 / 255
STEPS, MERGE, GUIDANCE, SIDE = 10, 3, 5.0, 64
# (before the class word, the class word, after the trigger, references)
PROMPTS = [("a", "woman", " in a red hat", 1), ("a photo of a", "man", ", a castle behind him", 3)]
NEGATIVE = "blurry"
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture(scope="module")
def file(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker.safetensors"
    write_random_photomaker(base, path)
    return path


class Reference:
    """PhotoMaker in torch: methods.md line by line, one example at a time."""

    def __init__(self, base, file):
        self.pipe = StableDiffusionXLPipeline.from_pretrained(base)
        tensors = load_file(file)
        encoder = {k[11:]: v for k, v in tensors.items() if k.startswith("id_encoder.")}
        self.tower = CLIPVisionModel.from_pretrained(base / "image_encoder").eval()
        prefix = "vision_model."
        own = self.tower.state_dict()
        cut = "" if next(iter(own)).startswith(prefix) else prefix
        tower = {k.removeprefix(cut): v for k, v in encoder.items() if k.startswith(prefix)}
        self.tower.load_state_dict(tower)
        self.heads = [encoder[f"visual_projection{n}.weight"] for n in ("", "_2")]
        self.fuse = TorchFuse(sum(len(head) for head in self.heads)).eval()
        fuse = {k[12:]: v for k, v in encoder.items() if k.startswith("fuse_module.")}
        self.fuse.load_state_dict(fuse)
        self.merge_lora({k[13:]: v for k, v in tensors.items() if k.startswith("lora_weights.")})

    def merge_lora(self, lora):
        """W + up @ down: the file has no alpha, so the scale is 1."""
        for key in (key for key in lora if key.endswith("_lora.down.weight")):
            up = lora[key.removesuffix("down.weight") + "up.weight"]
            path = key.removeprefix("unet.").removesuffix("_lora.down.weight")
            path = path.replace(".processor", "")
            layer = self.pipe.unet.get_submodule(path + (".0" if path.endswith("to_out") else ""))
            layer.weight.data += up @ lora[key]

    def ids(self, text, copies=1):
        """Ids for both tokenizers; the last token of ``text`` appears ``copies`` times."""
        text, rest = text if isinstance(text, tuple) else (text, "")
        rows = []
        for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2):
            before = tokenizer(text, add_special_tokens=False).input_ids
            after = tokenizer(rest, add_special_tokens=False).input_ids if rest else []
            row = [tokenizer.bos_token_id, *before, *before[-1:] * (copies - 1), *after]
            row.append(tokenizer.eos_token_id)
            rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
            place = len(before)  # of the class token, after the start marker
        return [torch.tensor([row]) for row in rows], place

    def encode(self, ids):
        towers = (self.pipe.text_encoder, self.pipe.text_encoder_2)
        outs = [t(i, output_hidden_states=True) for t, i in zip(towers, ids, strict=True)]
        return torch.cat([out.hidden_states[-2] for out in outs], -1), outs[1].text_embeds

    def id_embeds(self, faces):
        pixels = (np.stack(faces) / np.float32(255) - CLIP_MEAN) / CLIP_STD
        pooled = self.tower(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
        return torch.cat([pooled @ head.T for head in self.heads], -1)

    def generate(self, prompt, faces, latents):
        before, word, behind, count = prompt
        early = self.encode(self.ids(f"{before} {word}{behind}")[0])
        ids, place = self.ids((f"{before} {word}", behind), count)
        embeds, pooled = self.encode(ids)
        late = self.fuse.stack(embeds, self.id_embeds(faces)[None], [count], [place]), pooled
        negative = self.encode(self.ids(NEGATIVE)[0])
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(STEPS)
        x = torch.from_numpy(latents)[None].permute(0, 3, 1, 2) * scheduler.init_noise_sigma
        time_ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2, dtype=torch.float32)
        for i, t in enumerate(scheduler.timesteps):
            embeds, pooled = early if i <= MERGE else late
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            added = {"text_embeds": torch.cat([negative[1], pooled]), "time_ids": time_ids}
            states = torch.cat([negative[0], embeds])
            out = self.pipe.unet(both, t, states, added_cond_kwargs=added).sample
            without, with_prompt = out.chunk(2)
            out = without + GUIDANCE * (with_prompt - without)
            x = scheduler.step(out, t, x).prev_sample
        image = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor).sample
        return (image[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1)


def test_the_same_pictures_as_the_reference(base, file):
    rng = np.random.default_rng(0)
    size = 32  # CLIP's of this base, so that nothing is resized
    faces = [list(rng.integers(0, 256, (n, size, size, 3), np.uint8)) for *_, n in PROMPTS]
    latents = rng.standard_normal((2, SIDE // 8, SIDE // 8, 4)).astype(np.float32)
    reference = Reference(base, file)
    with torch.no_grad():
        wanted = [reference.generate(*each) for each in zip(PROMPTS, faces, latents, strict=True)]
    pipe = Pipeline.from_pretrained(base)
    pipe.load_method("photomaker", file)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    found = pipe(
        [f"{before} {word} img{behind}" for before, word, behind, _ in PROMPTS],
        NEGATIVE,
        references=faces,
        latents=latents,
        start_merge_step=MERGE,
        **settings,
    ).images
    assert found.shape == (2, SIDE, SIDE, 3) and np.std(wanted) > 0.05
    assert np.abs(found - np.stack(wanted)).max() < PIXEL
    # The identity is the point: without it the images differ.
    other = pipe(
        [f"{before} {word} img{behind}" for before, word, behind, _ in PROMPTS],
        NEGATIVE,
        references=faces,
        latents=latents,
        start_merge_step=STEPS,
        **settings,
    ).images
    assert np.abs(found - other).max() > PIXEL
