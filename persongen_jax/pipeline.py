"""Pipeline: prompts to pictures, called as diffusers' pipelines are.

    pipe = Pipeline.from_pretrained("/path/to/sdxl", dtype=jnp.bfloat16)
    pipe("a lighthouse at dusk", seed=1).images[0].save("lighthouse.png")

It is the library's face: loading, LoRA, identity methods, and the loop over batches of prompts.
"""

import contextlib
import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from data_pipeline.schema import MAX_REFERENCES
from data_pipeline.transforms import clip_preprocess
from persongen_jax import sampling
from persongen_jax.checkpoint import load_trained
from persongen_jax.conditioning import Conditioning, TokenStream, concatenate, select
from persongen_jax.methods import get_method
from persongen_jax.methods.base import without_identity
from persongen_jax.models.attention import branch_names, remove_branches
from persongen_jax.models.lora import merge_adapters, remove_adapters
from persongen_jax.models.vae import decode_images
from persongen_jax.partition import fill_trained
from persongen_jax.sampling_plan import make_plan
from persongen_jax.sharding import along_batch, make_mesh, replicated
from persongen_jax.weights.adapters import (
    apply_adapter,
    check_adapters,
    extract_adapter,
    module_paths,
)
from persongen_jax.weights.lora_files import read_lora, write_lora
from persongen_jax.weights.photomaker import load_photomaker_into, read_photomaker
from persongen_jax.weights.sdxl import SDXLBase, load_sdxl, save_sdxl

METHOD_PREFIX = "method:"  # of the name that a method's own LoRA goes by
IMAGES_PER_DEVICE = 4  # of a batch, where the caller does not say


class PipelineOutput(NamedTuple):
    """``images``: a list of PIL images, or an array (see ``output_type``)."""

    images: list | np.ndarray


@dataclass(frozen=True)
class Guidance:
    """What one sampling run is conditioned on.

    Up to and with step ``merge_step`` the UNet reads ``early``, after it ``late`` (PhotoMaker's
    delayed merging, arXiv 2312.04461, section 3.3); a run without references has only ``late``.
    """

    late: Conditioning
    unconditional: Conditioning | None = None
    early: Conditioning | None = None


jax.tree_util.register_dataclass(Guidance, ("late", "unconditional", "early"), ())


class Pipeline:
    """Text-to-image with SDXL.

    Prompts are worked through in batches of one size, dealt out over ``mesh``'s devices. Programs
    are compiled once per batch size, picture size, number of steps and sampler; another prompt,
    seed, guidance scale or adapter weight compiles nothing.
    """

    def __init__(self, base: SDXLBase, mesh=None):
        self.base = base
        self.mesh = make_mesh() if mesh is None else mesh
        self.adapters: dict[str, tuple[dict, float]] = {}
        self.method = None
        self.trigger_word = "img"
        self._place(self.model)

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(cls, path, *, dtype=jnp.float32, mesh=None, **options) -> "Pipeline":
        """Open a diffusers-format SDXL directory or a single-file checkpoint.

        ``options``: param_dtype, vae_dtype, variant, config; see
        :func:`~persongen_jax.weights.sdxl.load_sdxl`.
        """
        mesh = make_mesh() if mesh is None else mesh
        base = load_sdxl(path, dtype=dtype, shardings=replicated(mesh), **options)
        return cls(base, mesh)

    @classmethod
    def around(cls, base: SDXLBase, method, model, *, trigger_word="img", mesh=None) -> "Pipeline":
        """A pipeline over a model in memory that has the method's parts: one in training.

        Nothing is copied. Programs compiled for an earlier model of the same kind are used again.
        """
        pipe = cls(replace(base, model=model), mesh)
        pipe.method, pipe.trigger_word = method, trigger_word
        return pipe

    def save_pretrained(self, folder):
        """Write a directory that diffusers opens; fuse or unload LoRAs first."""
        if self.adapters:
            raise ValueError(
                f"LoRAs are loaded ({', '.join(self.adapters)}): call fuse_lora() to write their "
                "effect into the weights, or unload_lora() to leave it out"
            )
        branches = branch_names(self.model.unet)
        if branches:
            raise ValueError(
                f"the loaded method's attention branches ({', '.join(branches)}) have no place in "
                "a diffusers directory; keep its training run"
            )
        save_sdxl(self.base, folder)

    @property
    def model(self):
        return self.base.model

    @property
    def streams(self) -> tuple[str, ...]:
        """The prompts that are read apart from each other: "text", and what the method adds."""
        return ("text",) if self.method is None else self.method.streams

    def _place(self, model):
        """Every array of the model onto the mesh."""
        state = jax.device_put(nnx.state(model), replicated(self.mesh))
        nnx.update(model, state)

    # ---- an identity method ----

    def load_method(self, name: str | None, weights):
        """Put a trained identity method on the model; then give ``references`` when calling.

        Args:
            name: the method. None takes the one that a run trained, and photomaker for a file.
            weights: the working directory of a training run; or a PhotoMaker v1 file, ``.bin`` or
                ``.safetensors`` (weights/photomaker.py). What a method has beyond PhotoMaker, such
                as a branch for the background, starts where its training would.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: a run that trained another method, or weights that do not fit this base.
        """
        settings = {"base": self.base.path, "dtype": jnp.dtype(self.model.unet.dtype).name}
        if Path(weights).is_file():
            config = ConfigDict(self._photomaker_config(weights, name or "photomaker") | settings)
            self._attach_method(config)
            load_photomaker_into(self.model, weights)
        else:
            trained, config = load_trained(weights, replicated(self.mesh))
            if name not in (None, config["method"]):
                raise ValueError(
                    f"{weights}: holds weights of {config['method']!r}, not of {name!r}"
                )
            config = ConfigDict({**config, **settings})
            self._attach_method(config)
            if config.get("start_from"):
                # The run kept this file's image tower, which it did not train and so did not save.
                load_photomaker_into(self.model, config.start_from)
            fill_trained(self.model, trained, config.trainable or self.method.groups, str(weights))
        # From here on the method's LoRA is one adapter among others.
        self.adapters[METHOD_PREFIX + config.method] = (
            {"unet": extract_adapter(self.model.unet)},
            1.0,
        )
        self._apply_adapters()

    def _attach_method(self, config):
        """The method's parts on the model; what another one had added before goes."""
        method = get_method(config.method)
        self._remove_adapters()
        remove_branches(self.model.unet)
        self.adapters = {k: v for k, v in self.adapters.items() if not k.startswith(METHOD_PREFIX)}
        self.method = method
        self.method.attach(self.model, config, nnx.Rngs(0))
        self.trigger_word = config.trigger_word

    def _photomaker_config(self, path, name: str) -> dict:
        """What a method's ``attach`` has to know to have room for the file's tensors."""
        with read_photomaker(path) as file:
            rank = file.rank
        # The file has an image tower, but not its config; a directory beside the base has both.
        beside = (Path(self.base.path) / "image_encoder").is_dir()
        return {
            "method": name,
            "id_encoder": "" if beside else str(path),
            "rank": rank,
            "lora_alpha": float(rank),
            "trigger_word": "img",
        }

    # ---- LoRA ----

    def load_lora(self, path, *, weight: float = 1.0, name: str | None = None):
        """Put a LoRA file (diffusers, PEFT or kohya) on the model; several add up.

        Args:
            path: the ``*.safetensors`` file.
            weight: factor of its effect; change it later by :meth:`set_lora_weights`.
            name: what it is called from then on; by default ``str(path)``.

        Raises:
            WeightsError: the file is not there, not plain LoRA, or not for this model; what is
                loaded stays as it was.
        """
        paths = {part: module_paths(getattr(self.model, part)) for part in LORA_COMPONENTS}
        layers_per_block = self.base.configs["unet"].get("layers_per_block", 2)
        adapters = read_lora(path, paths, layers_per_block=layers_per_block)
        check_adapters(self.model, adapters, path)
        self.adapters[str(path) if name is None else name] = (adapters, weight)
        self._apply_adapters()

    def set_lora_weights(self, weights: dict[str, float]):
        """Change the factors of loaded LoRAs by name. Compiles nothing anew."""
        for name in weights:
            if name not in self.adapters:
                raise ValueError(f"no LoRA {name!r} is loaded; loaded: {sorted(self.adapters)}")
        for name, weight in weights.items():
            self.adapters[name] = (self.adapters[name][0], weight)
        self._apply_adapters()

    def save_lora(self, path, name: str):
        """Write a loaded LoRA, or a method's own ("method:photomaker"), in diffusers' format.

        Raises:
            ValueError: none of that name is loaded.
        """
        if name not in self.adapters:
            raise ValueError(f"no LoRA {name!r} is loaded; loaded: {sorted(self.adapters)}")
        write_lora(path, self.adapters[name][0])

    def unload_lora(self):
        """Take every LoRA off again; a method keeps its own, which is a part of it."""
        self.adapters = {k: v for k, v in self.adapters.items() if k.startswith(METHOD_PREFIX)}
        self._apply_adapters()

    def fuse_lora(self):
        """Add the loaded LoRAs into the weights: nothing to compute per step, no way back."""
        for part in LORA_COMPONENTS:
            merge_adapters(getattr(self.model, part))
        self.adapters = {}

    def _remove_adapters(self):
        for part in LORA_COMPONENTS:
            remove_adapters(getattr(self.model, part))

    def _apply_adapters(self):
        self._remove_adapters()
        for part in LORA_COMPONENTS:
            for parsed, weight in self.adapters.values():
                apply_adapter(getattr(self.model, part), parsed.get(part, {}), weight)
        self._place(self.model)

    # ---- pictures ----

    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        references: list | None = None,
        background: str | list[str] | None = None,
        body: str | list[str] | None = None,
        scales: dict[str, float] | None = None,
        start_merge_step: int = 10,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        latents=None,
        scheduler: str | None = None,
        scheduler_options: dict | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        output_type: str = "pil",
        batch_size: int | None = None,
        tiling: bool = False,
        tile_size: int = 512,
        progress=None,
        on_batch=None,
    ) -> PipelineOutput:
        """Paint ``num_images_per_prompt`` pictures of each prompt.

        Args:
            prompt: one or several. Picture j of prompt i is number i * num_images_per_prompt + j.
            negative_prompt: what to steer away from; one for all or one each. None: the zero
                embedding if model_index.json says so (SDXL's does), else the empty prompt.
            references: with a method loaded, for each prompt a list of one to four face crops of
                one person (PIL images or uint8 [h, w, 3]); the prompt then holds the trigger word
                behind the class word: "a man img in a space suit".
            background, body: with a method that reads them, further prompts; one for all or one
                each. They act from the first step on. None: the empty prompt.
            scales: factors of what the method adds, {"identity": 0.8}; 1 where nothing is said.
                "background", "body": of the attention branch that reads this stream. "identity":
                of the references: in text space a class token e, fused with a reference to f,
                becomes e + scale * (f - e); a branch that reads the references is scaled as
                others are. "lora": of the method's LoRA, on top of its weight.
            start_merge_step: up to and with this step the prompt alone acts, then the identity
                (delayed merging, arXiv 2312.04461, section 3.3).
            height, width: pixels, multiples of the VAE's factor (8). Default: the UNet's
                sample_size times that factor.
            guidance_scale: 1 or less turns guidance off and halves the work.
            guidance_rescale: 0..1 (Lin et al., arXiv 2305.08891, section 3.4).
            seed: picture n depends on (seed, n), not on how pictures are batched.
            latents: [n, h / 8, w / 8, 4] standard normal, instead of drawing them from the seed.
            scheduler: "ddpm", "ddim", "euler", "euler_ancestral", "dpmpp_2m" or a diffusers class
                name; default: scheduler_config.json's. scheduler_options: its parameters, e.g.
                {"use_karras_sigmas": True}.
            original_size, crops_coords_top_left, target_size: SDXL's micro-conditioning, (h, w).
            output_type: "pil"; "np", float32 [n, h, w, 3] in 0..1; or "latent", [n, h/8, w/8, 4].
            batch_size: pictures at once, rounded up to a multiple of the devices.
            tiling: decode in overlapping tiles with sides of ``tile_size`` pixels. At 1024 x 1024
                and SDXL's size, tiles of 512 need a quarter of the memory, 1 GiB (float32).
            progress: called with the number of steps done since the last call.
            on_batch: called with every batch's pictures as soon as they are painted, in their
                order and as ``output_type`` has them. They are not kept then: ``images`` is empty.

        Raises:
            ValueError: sizes, counts or names that do not fit; the message names them.
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type={output_type!r}: use 'pil', 'np' or 'latent'")
        height, width = self._picture_size(height, width)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or num_images_per_prompt < 1:
            raise ValueError(
                f"{len(prompts)} prompts, num_images_per_prompt={num_images_per_prompt}: at least "
                "one of each is needed"
            )
        negatives = _one_each(negative_prompt, len(prompts), "negative prompts")
        if references is not None:
            references = self._check_references(references, len(prompts))
            self._check_triggers(prompts, references)
        scales = self._check_scales(scales or {}, references)
        parts = {"background": background, "body": body}
        parts = self._check_parts(parts, references, len(prompts))
        plan = make_plan(
            self.base.scheduler_config, num_inference_steps, scheduler, **(scheduler_options or {})
        )
        time_ids = np.array(
            [
                *(original_size or (height, width)),
                *crops_coords_top_left,
                *(target_size or (height, width)),
            ],
            np.float32,
        )
        guided = guidance_scale > 1

        total = len(prompts) * num_images_per_prompt
        noise = self._first_noise(latents, seed, total, height, width)
        keys = _image_keys(seed, 1, total)
        batch = self.pictures_at_once(batch_size, total)

        def guidance_of(which):
            """Of one batch, whose rows are for the prompts of these numbers."""
            ids = np.tile(time_ids, (batch, 1))
            texts = [prompts[i] for i in which]
            against = [negatives[i] for i in which] if guided else None
            if references is None:
                return self._text_guidance(texts, against, ids)
            people = [references[i] for i in which]
            further = {name: [given[i] for i in which] for name, given in parts.items()}
            identity = scales.get("identity", 1.0)
            guidance = self._identity_guidance(texts, against, people, further, ids, identity)
            return self._scale_branches(guidance, scales)

        images = []
        keep = images.append if on_batch is None else on_batch
        with self._method_lora(scales.get("lora", 1.0)):
            for start in range(0, total, batch):
                # The last batch is filled up with its last picture: every batch has one shape.
                rows = np.minimum(np.arange(start, start + batch), total - 1)
                guidance = guidance_of(rows // num_images_per_prompt)
                first = sampling.initial_latents(plan, noise[rows])
                first = jax.device_put(first, along_batch(self.mesh))
                carry = sampling.init_carry(plan, first)
                settings = (guidance_scale, guidance_rescale, start_merge_step)
                carry = self._run(plan, carry, guidance, keys[rows], settings, progress)
                out = sampling.final_latents(carry)
                if output_type != "latent":
                    out = self._decode(out, tile_size if tiling else None)
                out = np.asarray(out)[: min(batch, total - start)]
                keep(to_pil(out) if output_type == "pil" else out)
        if on_batch is not None:
            return PipelineOutput([])
        pil = output_type == "pil"
        return PipelineOutput(list(itertools.chain(*images)) if pil else np.concatenate(images))

    @contextlib.contextmanager
    def _method_lora(self, scale: float):
        """Within it, the method's own LoRA has ``scale`` times its weight."""
        weights = {n: w for n, (_, w) in self.adapters.items() if n.startswith(METHOD_PREFIX)}
        if scale == 1:
            yield
            return
        self.set_lora_weights({name: weight * scale for name, weight in weights.items()})
        try:
            yield
        finally:
            self.set_lora_weights(weights)

    def encode_prompt(self, prompts: list[str]):
        """prompt_embeds [b, 77, d] and pooled_prompt_embeds [b, p] of b prompts."""
        ids = np.stack([self.base.tokenizers.encode(prompt) for prompt in prompts])
        return _encode_prompt(
            *nnx.split(self.model.conditioner()), jax.device_put(ids, along_batch(self.mesh))
        )

    def _text_guidance(self, prompts, negatives, time_ids) -> Guidance:
        ids = jax.device_put(time_ids, along_batch(self.mesh))
        embeds, pooled = self.encode_prompt(prompts)
        late = Conditioning({"text": TokenStream(embeds)}, pooled, ids)
        if negatives is None:
            return Guidance(late)
        zeros = self.base.model_index.get("force_zeros_for_empty_prompt", True)
        negative_embeds, negative_pooled = self.encode_prompt([text or "" for text in negatives])
        if zeros and any(text is None for text in negatives):
            named = jnp.array([text is not None for text in negatives])
            negative_embeds = jnp.where(named[:, None, None], negative_embeds, 0)
            negative_pooled = jnp.where(named[:, None], negative_pooled, 0)
        unconditional = Conditioning({"text": TokenStream(negative_embeds)}, negative_pooled, ids)
        return Guidance(late, unconditional)

    def _identity_guidance(
        self, prompts, negatives, references, parts, time_ids, identity_scale=1.0
    ) -> Guidance:
        """Late: prompts and identity. Early: the prompts alone. Unconditional: neither.

        All three are the method's own conditioning, of batches with less and less in them, so
        that the unconditional side is what training showed it: the empty prompt on the streams
        beside "text" (the released code fed zeros there). ``parts``: a text each, by stream.
        """
        encode = self.base.tokenizers.encode
        expanded = [
            self.base.tokenizers.encode_with_trigger(prompt, len(images), self.trigger_word)
            for prompt, images in zip(prompts, references, strict=True)
        ]
        pixels, id_mask = self._reference_pixels(references)
        part_ids = {
            name: np.stack([encode(t or "") for t in texts]) for name, texts in parts.items()
        }
        batch = {
            "input_ids": {"text": np.stack([ids for ids, _, _ in expanded]), **part_ids},
            "class_tokens_mask": np.stack([mask for _, mask, _ in expanded]),
            "id_pixel_values": pixels,
            "id_mask": id_mask,
            "time_ids": time_ids,
        }

        def with_prompts(texts, part_ids):
            ids = {"text": np.stack([encode(text) for text in texts]), **part_ids}
            return {**without_identity(batch), "input_ids": ids}

        early = with_prompts([text for _, _, text in expanded], part_ids)
        unconditional = None
        if negatives is not None:
            empty = {name: np.stack([encode("")] * len(prompts)) for name in parts}
            unconditional = with_prompts([text or "" for text in negatives], empty)
            unconditional = self._condition(unconditional)
        late = self._condition(batch)
        if identity_scale != 1:
            plain = self._condition(without_identity(batch)).streams["text"].tokens
            text = late.streams["text"]
            # Other tokens than the class word's copies are equal in both, and stay what they are.
            tokens = plain + jnp.float32(identity_scale) * (text.tokens - plain)
            late = late.with_stream("text", tokens, text.mask)
        return Guidance(late, unconditional, self._condition(early))

    def _scale_branches(self, guidance: Guidance, scales: dict[str, float]) -> Guidance:
        """Every stream but "text" with its scale, 1 included: no other scale is a new program."""

        def scaled(conditioning):
            for name, stream in conditioning.streams.items():
                if name != "text":
                    scale = np.full(len(stream.tokens), scales.get(name, 1.0), np.float32)
                    scale = jax.device_put(scale, along_batch(self.mesh))
                    conditioning = conditioning.with_stream(name, stream.tokens, stream.mask, scale)
            return conditioning

        return jax.tree.map(scaled, guidance, is_leaf=lambda x: isinstance(x, Conditioning))

    def _condition(self, batch) -> Conditioning:
        batch = jax.device_put(batch, along_batch(self.mesh))
        return _condition(self.method, *nnx.split(self.model.conditioner()), batch)

    def _reference_pixels(self, references):
        """[b, 4, s, s, 3] CLIP-normalised, and which of the four places are filled, [b, 4]."""
        size = self.method.reference_size(self.model)
        pixels = np.zeros((len(references), MAX_REFERENCES, size, size, 3), np.float32)
        mask = np.zeros((len(references), MAX_REFERENCES), bool)
        for row, images in enumerate(references):
            for column, image in enumerate(images):
                pixels[row, column] = clip_preprocess(np.asarray(image), size)
                mask[row, column] = True
        return pixels, mask

    def _check_references(self, references, count):
        if self.method is None:
            raise ValueError(
                "references need an identity method: call load_method(name, weights) first"
            )
        if len(references) != count:
            raise ValueError(
                f"{len(references)} lists of references for {count} prompts: give one list each"
            )
        for images in references:
            if not 1 <= len(images) <= MAX_REFERENCES:
                raise ValueError(f"{len(images)} references: give one to {MAX_REFERENCES}")
        return references

    def _check_triggers(self, prompts, references):
        """PromptError of the first prompt that cannot be read, before anything is painted."""
        for prompt, images in zip(prompts, references, strict=True):
            self.base.tokenizers.encode_with_trigger(prompt, len(images), self.trigger_word)

    def _check_scales(self, scales, references) -> dict[str, float]:
        if scales and references is None:
            raise ValueError(f"scales={scales}: they act with references; give them too")
        known = {"identity", *self.streams} - {"text"}
        if any(name.startswith(METHOD_PREFIX) for name in self.adapters):
            known.add("lora")
        unknown = sorted(set(scales) - known)
        if unknown:
            raise ValueError(
                f"scales: nothing is called {', '.join(map(repr, unknown))}; there are identity, "
                "lora unless it is fused, and the method's streams "
                f"({', '.join(sorted(self.streams))}) but for text"
            )
        return scales

    def _check_parts(self, parts, references, count) -> dict[str, list]:
        """A text (or None) for each prompt, by stream: all the method's streams but "text"."""
        for name, texts in parts.items():
            if texts is None:
                continue
            if name not in self.streams:
                raise ValueError(
                    f"{name}={texts!r}: no method that reads {name!r} is loaded (streams: "
                    f"{', '.join(self.streams)}); say it in the prompt"
                )
            if references is None:
                raise ValueError(f"{name}={texts!r}: it goes with references; give them too")
        return {
            name: _one_each(parts[name], count, f"{name} prompts")
            for name in self.streams
            if name != "text"
        }

    def _run(self, plan, carry, guidance, keys, settings, progress):
        """The whole loop, in one call; or in about twenty, so that ``progress`` hears of it."""
        graphdef, state = nnx.split(self.model.unet)
        keys = jax.device_put(keys, along_batch(self.mesh))
        n = plan.num_steps
        stride = n if progress is None else max(1, n // 20)
        for start in range(0, n, stride):
            stop = min(start + stride, n)
            scalars = (*settings, start, stop)
            with jax.set_mesh(self.mesh):
                carry = _sample(graphdef, state, plan, carry, guidance, keys, scalars)
            if progress is not None:
                jax.block_until_ready(carry)
                progress(stop - start)
        return carry

    def _decode(self, latents, tile_size):
        graphdef, state = nnx.split(self.model.vae)
        tile = None if tile_size is None else tile_size // self.model.vae.vae_scale_factor
        return _decode(graphdef, self.mesh, tile, state, latents)

    def _picture_size(self, height, width):
        factor = self.model.vae.vae_scale_factor
        default = self.base.configs["unet"]["sample_size"]
        default = (default, default) if isinstance(default, int) else default
        height = default[0] * factor if height is None else height
        width = default[1] * factor if width is None else width
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % factor:
                raise ValueError(f"{name}={side} is not a positive multiple of {factor}")
        return height, width

    def draw_latents(self, seed: int, total: int, height: int, width: int) -> np.ndarray:
        """What ``latents`` is when it is not given: [total, h / 8, w / 8, 4] standard normal."""
        shape = self._latent_shape(height, width)
        draw = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))
        return np.asarray(draw(_image_keys(seed, 0, total)))

    def _first_noise(self, latents, seed, total, height, width):
        if latents is None:
            return self.draw_latents(seed, total, height, width)
        shape = self._latent_shape(height, width)
        latents = np.asarray(latents, np.float32)
        if latents.shape != (total, *shape):
            raise ValueError(f"latents have shape {latents.shape}; {(total, *shape)} is needed")
        return latents

    def _latent_shape(self, height, width):
        factor = self.model.vae.vae_scale_factor
        channels = self.base.configs["unet"].get("in_channels", 4)
        return height // factor, width // factor, channels

    def pictures_at_once(self, batch_size: int | None, total: int) -> int:
        """The size of the batches that ``total`` pictures are painted in."""
        devices = self.mesh.shape["data"]
        if batch_size is None:
            batch_size = min(total, IMAGES_PER_DEVICE * devices)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} has to be at least 1")
        return -(-batch_size // devices) * devices


LORA_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def _one_each(texts, count, what):
    if texts is None or isinstance(texts, str):
        return [texts] * count
    if len(texts) != count:
        raise ValueError(f"{len(texts)} {what} for {count} prompts: give one, or one each")
    return list(texts)


def _image_keys(seed: int, purpose: int, total: int):
    """[total] random keys; purpose 0 is the first noise, 1 the sampler's own."""
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(total))


@functools.partial(jax.jit, static_argnums=0)
def _encode_prompt(graphdef, state, input_ids):
    return nnx.merge(graphdef, state).encode_prompt(input_ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _condition(method, graphdef, state, batch):
    return method.condition(nnx.merge(graphdef, state), batch)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _sample(graphdef, state, plan, carry, guidance: Guidance, keys, scalars):
    guidance_scale, guidance_rescale, merge_step, start, stop = scalars
    unet = nnx.merge(graphdef, state)

    def model(latents, timestep, step):
        conditioning = guidance.late
        if guidance.early is not None:
            conditioning = select(step <= merge_step, guidance.early, guidance.late)
        if guidance.unconditional is None:
            return unet(latents, timestep, conditioning)
        both = concatenate(guidance.unconditional, conditioning)
        out = unet(jnp.concatenate([latents, latents]), timestep, both)
        unconditional, conditional = jnp.split(out, 2)
        return sampling.guide(conditional, unconditional, guidance_scale, guidance_rescale)

    return sampling.run_steps(plan, model, carry, keys, start, stop)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(graphdef, mesh, tile, state, latents):
    def decode(state, latents):
        vae = nnx.merge(graphdef, state)
        return decode_images(vae, latents, tiling=tile is not None, tile_size=tile)

    # decode_images goes through its pictures one by one: each device through its own.
    specs = (PartitionSpec(), PartitionSpec("data"))
    return jax.shard_map(
        decode, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"), check_vma=False
    )(state, latents)


def to_pil(images) -> list:
    """Float [n, h, w, 3] in 0..1 to 8-bit PIL images."""
    from PIL import Image

    return [Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
