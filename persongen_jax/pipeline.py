"""Pipeline: prompts to pictures, called as diffusers' pipelines are.

    pipe = Pipeline.from_pretrained("/path/to/sdxl", dtype=jnp.bfloat16)
    pipe("a lighthouse at dusk", seed=1).images[0].save("lighthouse.png")

It is the library's face: loading, LoRA, identity methods, and the loop over batches of prompts.
"""

import functools
import itertools
import re
from dataclasses import replace
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
from persongen_jax.conditioning import Conditioning, TokenStream, deinterleave, interleave
from persongen_jax.guidance import Guidance
from persongen_jax.methods import get_method
from persongen_jax.methods.base import without_identity
from persongen_jax.models.attention import branch_names, remove_branches
from persongen_jax.models.lora import merge_adapters, remove_adapters
from persongen_jax.models.sdxl import COMPONENTS
from persongen_jax.models.vae import decode_images
from persongen_jax.partition import fill_trained
from persongen_jax.regions import check_people, region_arrays
from persongen_jax.sampling_plan import make_plan
from persongen_jax.scales import Strength, schedule
from persongen_jax.sharding import (
    BATCH,
    along_batch,
    make_mesh,
    put,
    put_array,
    replicated,
    shardings_by_path,
    to_host,
)
from persongen_jax.weights.adapters import (
    apply_adapter,
    check_adapters,
    extract_adapter,
    module_paths,
)
from persongen_jax.weights.directory import read_config
from persongen_jax.weights.ip_adapter import is_ip_adapter
from persongen_jax.weights.lora_files import read_lora, write_lora
from persongen_jax.weights.photomaker import has_tower_like, read_photomaker
from persongen_jax.weights.sdxl import SDXLBase, load_sdxl, save_sdxl

METHOD_PREFIX = "method:"  # of the name that a method's own LoRA goes by
IMAGES_PER_DEVICE = 4  # of a batch, where the caller does not say


class PipelineOutput(NamedTuple):
    """``images``: a list of PIL images, or an array (see ``output_type``)."""

    images: list | np.ndarray


class Pipeline:
    """Text-to-image with SDXL.

    Prompts are worked through in batches of one size, dealt out over ``mesh``'s devices. Programs
    are compiled once per batch size, picture size, number of steps and sampler; another prompt,
    seed, guidance scale or adapter weight compiles nothing.

    With several processes each has to make the same calls; each gets all pictures.

    Args:
        mesh: of sharding.make_mesh; all devices by default.
        divided: weights lie in pieces on the mesh's "fsdp" groups, for devices too small to hold
            them whole.
    """

    def __init__(self, base: SDXLBase, mesh=None, *, divided=False):
        self.base = base
        self.mesh = make_mesh() if mesh is None else mesh
        self.divided = divided
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
    def around(
        cls, base: SDXLBase, method, model, *, trigger_word="img", mesh=None, divided=False
    ) -> "Pipeline":
        """A pipeline over a model in memory that has the method's parts: one in training.

        Nothing is copied. Programs compiled for an earlier model of the same kind are used again.
        """
        pipe = cls(replace(base, model=model), mesh, divided=divided)
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
        state = nnx.state(model)
        where = shardings_by_path(self.mesh, state) if self.divided else replicated(self.mesh)
        nnx.update(model, put(state, where))

    # ---- an identity method ----

    def load_method(self, name: str | None, weights, *, encoder=""):
        """Put a trained identity method on the model; then give ``references`` when calling.

        Args:
            name: the method. None takes the one that a run trained; for a file photomaker, or
                ip_adapter_file, which an IP-Adapter file is also by the name ip_adapter.
            weights: the working directory of a training run; or a PhotoMaker v1 file, ``.bin`` or
                ``.safetensors`` (weights/photomaker.py). What a method has beyond PhotoMaker, such
                as a branch for the background, is then as its training begins with it. Or an
                IP-Adapter file for SDXL (weights/ip_adapter.py).
            encoder: the folder of the image encoder that the weights go with. Default: what the
                run was trained with; for a file ``<base>/image_encoder``, where that is no other
                than a PhotoMaker file's own. FaceID has no default: it needs the face recogniser's
                file.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: weights of another method than ``name``, or that do not fit this base;
                FaceID without ``encoder``. Where they turn out not to fit, no method is loaded
                afterwards.
        """
        settings = {"base": self.base.path, "dtype": jnp.dtype(self.model.unet.dtype).name}
        if encoder:
            settings |= {"id_encoder": str(encoder), "face_net": str(encoder)}
        trained = None
        if not Path(weights).is_file():
            trained, config = load_trained(weights, replicated(self.mesh))
            if name not in (None, config["method"]):
                raise ValueError(
                    f"{weights}: holds weights of {config['method']!r}, not of {name!r}"
                )
        else:
            settings["start_from"] = str(weights)
            if is_ip_adapter(weights):
                if name not in (None, "ip_adapter", "ip_adapter_file"):
                    raise ValueError(f"{weights}: is an IP-Adapter file, not one for {name!r}")
                config = {"method": "ip_adapter_file", "trigger_word": "img", "id_encoder": ""}
            else:
                config = self._photomaker_config(weights, name or "photomaker")
        config = ConfigDict({**config, **settings})
        method = get_method(config.method)
        self._remove_method()
        try:
            self._remove_adapters()
            method.attach(self.model, config, nnx.Rngs(0))
            if trained is not None:
                fill_trained(self.model, trained, config.trainable or method.groups, str(weights))
            # From here on the method's LoRA is one adapter among others.
            own = extract_adapter(self.model.unet)
            if own:
                self.adapters[METHOD_PREFIX + config.method] = ({"unet": own}, 1.0)
            self._apply_adapters()
        except BaseException:
            self._remove_method()
            self._apply_adapters()
            raise
        self.method, self.trigger_word = method, config.trigger_word

    def _remove_method(self):
        """Take off all that a method has added; what it is made of leaves the devices."""
        self.method = None
        self.adapters = {k: v for k, v in self.adapters.items() if not k.startswith(METHOD_PREFIX)}
        remove_branches(self.model.unet)
        for name, part in list(vars(self.model).items()):
            if isinstance(part, nnx.Module) and name not in COMPONENTS:
                delattr(self.model, name)

    def _photomaker_config(self, path, name: str) -> dict:
        """What a method's ``attach`` has to know to have room for the file's tensors."""
        beside = Path(self.base.path) / "image_encoder"
        with read_photomaker(path) as file:
            rank = file.rank
            # The file has an image tower, but not its config; a directory beside the base has
            # both, unless it is an IP-Adapter's image encoder.
            same = beside.is_dir() and has_tower_like(file, read_config(beside))
        return {
            "method": name,
            "id_encoder": "" if same else str(path),
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
            ValueError: none of that name is loaded, or it lies on branches.
        """
        if name not in self.adapters:
            raise ValueError(f"no LoRA {name!r} is loaded; loaded: {sorted(self.adapters)}")
        adapters = self.adapters[name][0]
        if any(".branches." in layer for layer in adapters.get("unet", ())):
            raise ValueError(
                f"{name}: lies on the method's attention branches too, which a LoRA file has no "
                "place for; keep its training run"
            )
        write_lora(path, adapters)

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
        regions: list | None = None,
        background: str | list[str] | None = None,
        body: str | list[str] | None = None,
        scales: dict[str, Strength] | None = None,
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
                embedding if model_index.json says so (SDXL's does), else the empty prompt; with
                references always the empty prompt, which is what training drops conditions to.
            references: with a method loaded, for each prompt a list of one to four face crops of
                one person (PIL images or uint8 [h, w, 3]); the prompt then holds the trigger word
                behind the class word: "a man img in a space suit". For a FaceID file the crops are
                aligned faces (data_pipeline/align.py). A method that reads identities
                by an attention branch alone does not need the trigger word. With such a branch
                several people: for each prompt a list of such lists, and ``regions``. (Where the
                identity is also written into the class word, that is the first person's.)
            regions: for each prompt a list of masks, one per person: where in the picture the
                branch on the identity may act for them. Each is a PIL image (white is 1), bool or
                float in 0..1 [h, w] of any size, which is stretched over the picture.
            background, body: with a method that reads them, further prompts; one for all or one
                each. They act from the first step on. None: the empty prompt.
            scales: factors of what the method adds, {"identity": 0.8}; 1 where nothing is said.
                Each is a number, or [(start, end, number), ...] over fractions of the steps
                (persongen_jax/scales.py). "background", "body": of the attention branch that reads
                this stream. "identity": of the references: in text space a class token e, fused
                with a reference to f, becomes e + scale * (f - e); a branch that reads the
                references is scaled as others are. "lora": of the method's LoRA, on top of its
                weight.
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
        people, regions = self._check_people(references, regions, prompts, height, width)
        parts = {"background": background, "body": body}
        parts = self._check_parts(parts, references, len(prompts))
        self._check_scales(scales or {}, references)
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
        strengths = {"scales": self._schedules(scales or {}, plan.num_steps)}
        strengths["lora"] = self._own_lora_scales()

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
            further = {name: [given[i] for i in which] for name, given in parts.items()}
            persons = [people[i] for i in which]
            where = None if regions is None else regions[which]
            guidance = self._identity_guidance(texts, against, persons, further, ids, where)
            return replace(guidance, **strengths)

        images = []
        keep = images.append if on_batch is None else on_batch
        for start in range(0, total, batch):
            # The last batch is filled up with its last picture: every batch has one shape.
            rows = np.minimum(np.arange(start, start + batch), total - 1)
            guidance = guidance_of(rows // num_images_per_prompt)
            first = sampling.initial_latents(plan, noise[rows])
            first = put_array(first, along_batch(self.mesh))
            carry = sampling.init_carry(plan, first)
            settings = (guidance_scale, guidance_rescale, start_merge_step)
            carry = self._run(plan, carry, guidance, keys[rows], settings, progress)
            out = sampling.final_latents(carry)
            if output_type != "latent":
                out = self._decode(out, tile_size if tiling else None)
            out = to_host(out)[: min(batch, total - start)]
            keep(to_pil(out) if output_type == "pil" else out)
        if on_batch is not None:
            return PipelineOutput([])
        pil = output_type == "pil"
        return PipelineOutput(list(itertools.chain(*images)) if pil else np.concatenate(images))

    def _own_lora_scales(self) -> dict[str, np.ndarray]:
        """Path of a layer of the UNet to [r]: of its LoRA's scale, what is the method's own."""
        own = {}
        if "lora" not in self._scale_names():
            return own
        for name, (parsed, weight) in self.adapters.items():
            for path, lora in parsed.get("unet", {}).items():
                scale = weight * lora.scale if name.startswith(METHOD_PREFIX) else 0.0
                own.setdefault(path, []).append(np.full(lora.rank, scale, np.float32))
        return {path: np.concatenate(columns) for path, columns in own.items()}

    def encode_prompt(self, prompts: list[str]):
        """prompt_embeds [b, 77, d] and pooled_prompt_embeds [b, p] of b prompts."""
        ids = np.stack([self.base.tokenizers.encode(prompt) for prompt in prompts])
        return _encode_prompt(
            *nnx.split(self.model.conditioner()), put_array(ids, along_batch(self.mesh))
        )

    def _text_guidance(self, prompts, negatives, time_ids) -> Guidance:
        ids = put_array(time_ids, along_batch(self.mesh))
        embeds, pooled = self.encode_prompt(prompts)
        late = Conditioning({"text": TokenStream(embeds)}, pooled, ids)
        if negatives is None:
            return Guidance(late)
        zeros = self.base.model_index.get("force_zeros_for_empty_prompt", True)
        negative_embeds, negative_pooled = self.encode_prompt([text or "" for text in negatives])
        if zeros and any(text is None for text in negatives):
            named = np.array([text is not None for text in negatives])
            negative_embeds = jnp.where(named[:, None, None], negative_embeds, 0)
            negative_pooled = jnp.where(named[:, None], negative_pooled, 0)
        unconditional = Conditioning({"text": TokenStream(negative_embeds)}, negative_pooled, ids)
        return Guidance(late, unconditional)

    def _identity_guidance(
        self, prompts, negatives, people, parts, time_ids, regions=None
    ) -> Guidance:
        """Late: prompts and identity. Early: the prompts alone. Unconditional: neither.

        All three are the method's own conditioning, of batches with less and less in them, so
        that the unconditional side is what training showed it: the empty prompt on the streams
        beside "text" (the released code fed zeros there).

        Args:
            people: for each prompt, for each person, a list of references.
            parts: a text for each prompt, by stream.
            regions: [b, people, h, w] or None.
        """
        encode = self.base.tokenizers.encode
        read = [
            self.read_prompt(prompt, len(persons[0]))
            for prompt, persons in zip(prompts, people, strict=True)
        ]
        pixels, id_mask = self._reference_pixels(people)
        part_ids = {
            name: np.stack([encode(t or "") for t in texts]) for name, texts in parts.items()
        }
        batch = {
            "input_ids": {"text": np.stack([ids for ids, _, _ in read]), **part_ids},
            "class_tokens_mask": np.stack([mask for _, mask, _ in read]),
            "id_pixel_values": pixels,
            "id_mask": id_mask,
            "time_ids": time_ids,
        }

        def condition(batch):
            conditioning = self._condition(batch)
            if regions is None:
                return conditioning
            identity = conditioning.streams["identity"]
            where = put_array(regions, along_batch(self.mesh))
            identity = (identity.tokens, identity.mask, identity.scale, where)
            return conditioning.with_stream("identity", *identity)

        def with_prompts(texts, part_ids):
            ids = {"text": np.stack([encode(text) for text in texts]), **part_ids}
            return condition({**without_identity(batch), "input_ids": ids})

        early = with_prompts([text for _, _, text in read], part_ids)
        unconditional = None
        if negatives is not None:
            empty = {name: np.stack([encode("")] * len(prompts)) for name in parts}
            unconditional = with_prompts([text or "" for text in negatives], empty)
        plain = self._condition({**batch, "id_mask": np.zeros_like(id_mask)})
        plain = plain.streams["text"].tokens
        return Guidance(condition(batch), unconditional, early, plain)

    def read_prompt(self, prompt: str, num_references: int):
        """ids [2, 77], class_tokens_mask [77], and the prompt without its trigger word.

        PromptError unless the prompt says where the identity goes, for a method that needs it.
        """
        tokenizers = self.base.tokenizers
        if self.method.needs_trigger:
            return tokenizers.encode_with_trigger(prompt, num_references, self.trigger_word)
        trigger = rf"\s*(?<!\w){re.escape(self.trigger_word)}(?!\w)"
        text = re.sub(trigger, "", prompt, flags=re.IGNORECASE)
        ids = tokenizers.encode(text)
        return ids, np.zeros(ids.shape[1], bool), text

    def _condition(self, batch) -> Conditioning:
        batch = put(batch, along_batch(self.mesh))
        return _condition(self.method, *nnx.split(self.model.conditioner()), batch)

    def _reference_pixels(self, people):
        """[b, p * 4, s, s, 3] CLIP-normalised, and which places are filled, [b, p * 4].

        The four places of a person stand side by side; p is the most people of a prompt.
        """
        size = self.method.reference_size(self.model)
        shape = (len(people), max(map(len, people)), MAX_REFERENCES)
        pixels = np.zeros((*shape, size, size, 3), np.float32)
        mask = np.zeros(shape, bool)
        for row, persons in enumerate(people):
            for person, images in enumerate(persons):
                for column, image in enumerate(images):
                    pixels[row, person, column] = clip_preprocess(np.asarray(image), size)
                    mask[row, person, column] = True
        return pixels.reshape(shape[0], -1, size, size, 3), mask.reshape(shape[0], -1)

    def _check_people(self, references, regions, prompts, height, width):
        """(people, regions): for each prompt and person the references; [n, p, h / 8, w / 8].

        Raises before anything is painted, also PromptError of the first prompt that cannot be read.
        """
        if references is None:
            if regions is not None:
                raise ValueError("regions go with references; give them too")
            return None, None
        if self.method is None:
            raise ValueError(
                "references need an identity method: call load_method(name, weights) first"
            )
        people = check_people(references, regions, len(prompts))
        several = max(map(len, people)) > 1
        if (several or regions is not None) and "identity" not in branch_names(self.model.unet):
            raise ValueError(
                f"{'several people' if several else 'regions'}: the loaded method writes the "
                "identity into the prompt, which acts everywhere; take one that reads it by an "
                "attention branch (ip_adapter, ip_lora, dual, cascade)"
            )
        for prompt, persons in zip(prompts, people, strict=True):
            self.read_prompt(prompt, len(persons[0]))
        if regions is not None:
            regions = region_arrays(regions, people, *self._latent_shape(height, width)[:2])
        return people, regions

    def _scale_names(self) -> set[str]:
        names = {"identity", *self.streams} - {"text"}
        if any(name.startswith(METHOD_PREFIX) for name in self.adapters):
            names.add("lora")
        return names

    def _check_scales(self, scales, references):
        if scales and references is None:
            raise ValueError(f"scales={scales}: they act with references; give them too")
        unknown = sorted(set(scales) - self._scale_names())
        if unknown:
            raise ValueError(
                f"scales: nothing is called {', '.join(map(repr, unknown))}; there are identity, "
                "lora unless it is fused or the method has none, and the method's streams "
                f"({', '.join(sorted(self.streams))}) but for text"
            )

    def _schedules(self, scales, num_steps) -> dict[str, np.ndarray]:
        """[steps] for each name, 1 included: no other strength is a new program."""
        return {n: schedule(n, scales.get(n, 1.0), num_steps) for n in sorted(self._scale_names())}

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
        keys = put_array(keys, along_batch(self.mesh))
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
        devices = self.mesh.size
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

    def model(latents, timestep, step):
        unet = nnx.merge(graphdef, guidance.unet_state(state, step))
        conditioning = guidance.conditional(step, merge_step)
        if guidance.unconditional is not None:
            latents = interleave(latents, latents)
            conditioning = interleave(guidance.unconditional, conditioning)
        if guidance.scales:
            conditioning = conditioning.with_scales(guidance.scales_at(step))
        out = unet(latents, timestep, conditioning)
        if guidance.unconditional is None:
            return out
        unconditional, conditional = deinterleave(out, 2)
        return sampling.guide(conditional, unconditional, guidance_scale, guidance_rescale)

    return sampling.run_steps(plan, model, carry, keys, start, stop)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(graphdef, mesh, tile, state, latents):
    def decode(state, latents):
        vae = nnx.merge(graphdef, state)
        return decode_images(vae, latents, tiling=tile is not None, tile_size=tile)

    # decode_images goes through its pictures one by one: each device through its own.
    specs = (PartitionSpec(), BATCH)
    return jax.shard_map(decode, mesh=mesh, in_specs=specs, out_specs=BATCH, check_vma=False)(
        state, latents
    )


def to_pil(images) -> list:
    """Float [n, h, w, 3] in 0..1 to 8-bit PIL images."""
    from PIL import Image

    return [Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
