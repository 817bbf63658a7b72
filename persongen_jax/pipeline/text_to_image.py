"""The pipeline class: what is loaded, and the loop over batches of prompts."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from data_pipeline.examples.conditions import Text
from data_pipeline.examples.fields import Call
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.samplers import image_keys
from persongen_jax.methods.base import Method, Model, denoiser_module
from persongen_jax.models.branches import branch_names
from persongen_jax.parallel.sharding import make_mesh, put, replicated, shardings_by_path, to_host
from persongen_jax.pipeline import checks, images, loading
from persongen_jax.pipeline.additions.identity import WithMethod
from persongen_jax.pipeline.additions.loras import WithLoras
from persongen_jax.pipeline.additions.style import ARGUMENTS as STYLE_ARGUMENTS
from persongen_jax.pipeline.additions.style import NAME as STYLE
from persongen_jax.pipeline.additions.style import WithStyle
from persongen_jax.pipeline.additions.textual_inversion import WithEmbeddings
from persongen_jax.pipeline.conditioner import Conditioner
from persongen_jax.pipeline.control_options import CONTROL_ARGUMENTS
from persongen_jax.pipeline.controlnets import Control, ControlNets, WithControls
from persongen_jax.pipeline.words import AddedWords
from persongen_jax.weights.formats.sdxl.loading import SDXLBase, load_sdxl, save_sdxl

if TYPE_CHECKING:
    from persongen_jax.systems.sdxl import Sdxl

IMAGES_PER_DEVICE = 4  # default batch size


class PipelineOutput(NamedTuple):
    """``images``: a list of PIL images, or an array (see ``output_type``)."""

    images: list | np.ndarray


class Pipeline(WithLoras, WithEmbeddings, WithControls, WithStyle, WithMethod):
    """Text-to-image with SDXL.

    Prompts are processed in batches of one size, split over ``mesh``'s devices. Programs are
    compiled once per batch size, image size, number of steps and sampler; another prompt, seed,
    guidance scale or adapter weight compiles nothing. With several processes each must make the
    same calls; each gets all images.

    Args:
        mesh: of sharding.make_mesh; all devices by default.
        shard_weights: over the mesh's "fsdp" groups, for devices too small to hold them whole.

    Attributes:
        adapters, words: the loaded LoRAs, see pipeline/loading.py, and the words from files.
        conditioner: the inputs of the loaded method, see pipeline/conditioner.py.
    """

    def __init__(self, base: SDXLBase, mesh: Mesh | None = None, *, shard_weights: bool = False):
        self.base = base
        self.mesh = make_mesh() if mesh is None else mesh
        self.shard_weights = shard_weights
        self.adapters: loading.Adapters = {}
        self._own_lora = self._of_base = {}
        self._own_schedule = base.scheduler_config
        self.controlnets = ControlNets(base, self.mesh, shard_weights)
        self.words = AddedWords(base)
        self.style = None
        self._set_method(None)
        self._place()

    # ---- loading and saving ----

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        **options,
    ) -> "Pipeline":
        """Open a diffusers-format SDXL directory or a single-file checkpoint.

        ``options``: param_dtype, vae_dtype, variant, config, unet, vae, text_encoders,
        prediction_type, check, quantize; see
        :func:`~persongen_jax.weights.formats.sdxl.loading.load_sdxl`.
        """
        checks.check_path("path", path)
        mesh = make_mesh() if mesh is None else mesh
        base = load_sdxl(path, dtype=dtype, shardings=replicated(mesh), **options)
        return cls(base, mesh)

    @classmethod
    def from_system(
        cls, system: "Sdxl", model: Model = None, *, mesh: Mesh | None = None, **options: bool
    ) -> "Pipeline":
        """A pipeline over a model in memory with its method's parts, for example one in training.

        Copies nothing. Programs compiled for an earlier model of the same kind are reused.

        Args:
            system: systems.sdxl.Sdxl.
            model: its current model; default: the system's own.
            options: shard_weights, as for the class.
        """
        pipe = cls(replace(system.base, model=model or system.model), mesh, **options)
        pipe._set_method(system.method, system.fields)
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a directory that diffusers opens; fuse or unload LoRAs first."""
        if self.adapters:
            raise ValueError(
                f"LoRAs are loaded ({', '.join(self.adapters)}): call fuse_lora() to merge them "
                "into the weights, or unload_lora() to leave them out"
            )
        branches = [name for name in branch_names(self.model.unet) if name != STYLE]
        if branches:
            raise ValueError(
                f"the loaded method's attention branches ({', '.join(branches)}) have no place in "
                "a diffusers directory; keep its training run"
            )
        if self.controlnets.nets or self.style:
            left = [*self.controlnets.nets, *([self.style.path] if self.style else ())]
            checks.warn_of_call(
                f"{', '.join(left)}: left out, because the directory of a base has no place for "
                "ControlNets and adapters; keep their own"
            )
        with self.words.removed(), self._style_taken_off():
            save_sdxl(self.base, folder)

    @property
    def model(self) -> Model:
        return self.base.model

    @property
    def method(self) -> Method | None:
        """The loaded identity method; None: the base alone."""
        return self.conditioner.method

    @property
    def fields(self) -> tuple:
        """The inputs of the method, see data_pipeline/examples/fields.py."""
        return self.conditioner.fields

    @property
    def text(self) -> Text:
        """The field that reads prompts."""
        return self.conditioner.text

    @property
    def streams(self) -> tuple[str, ...]:
        """The prompts that are read separately: "text", and what the method adds."""
        return self.text.streams

    @property
    def reads_references(self) -> bool:
        """Whether the loaded method takes ``references``; without them it then does nothing."""
        return bool(self.conditioner.identity)

    def _set_method(self, method, fields=(), released=False):
        """Use this method, attached to the model; None: the base alone."""
        self.conditioner = Conditioner(self.base, self.mesh, method, fields, released)

    def _place(self):
        """Place every array of the model on the mesh."""
        state = nnx.state(self.model)
        where = shardings_by_path(self.mesh, state) if self.shard_weights else replicated(self.mesh)
        nnx.update(self.model, put(state, where))

    # ---- generating ----

    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        references: list | None = None,
        regions: list | None = None,
        latents: Any = None,
        progress: Callable | None = None,
        on_preview: Callable | None = None,
        on_batch: Callable | None = None,
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> PipelineOutput:
        """Generate ``num_images_per_prompt`` images of each prompt.

        Args:
            prompt: one or several. Image j of prompt i is number i * num_images_per_prompt + j.
            negative_prompt: what to steer away from; one for all or one each. None: the zero
                embedding if model_index.json says so (SDXL's does), else the empty prompt; with a
                run's method always the empty prompt, the dropped condition in its training.
            references: with a method loaded, per prompt a list of one to four face crops of one
                person (paths, PIL images, arrays: see data_pipeline/pictures/reading.py); the
                prompt then holds the trigger word after the class word: "a man img in a suit".
                Methods that align faces (FaceID, PhotoMaker v2, InstantID, PuLID) read Faces, as
                data_pipeline.faces.locate finds them, or crops that are aligned already. A method
                that reads identities only by an attention branch does not need the trigger word and
                supports several people: per prompt a list of such lists, and ``regions``. (If the
                identity is also written into the class word, that is the first person's.)
            regions: per prompt a list of masks, one per person: where in the image the branches
                that read a person may act for them. Each is an image (white is 1) or bool [h, w] of
                any size, stretched over the image.
            latents: [n, h / 8, w / 8, 4] standard normal, instead of drawing them from the seed.
            progress: called with the number of steps done since the last call, about twenty times
                per batch. What it raises ends the call.
            on_preview: called with what a batch is becoming, uint8 [b, h, w, 3] of about 256 pixels
                a side: the end that the last step predicts. Once at least, and as often as takes
                less than a twelfth of the time.
            on_batch: called with each batch's images as soon as they are ready, in order and in the
                form of ``output_type``. They are not kept then: ``images`` is empty.
            options: the settings that are not given by name.
            named: settings, by the names of SamplingOptions (diffusion/options.py):
                num_inference_steps, guidance_scale, scheduler, seed, height, ... And other inputs
                of the method's fields: additional prompts (``background``, ``body``: a text for all
                or one each; they act from the first step on, None is the empty prompt), control
                images and points (a list, one each). And what ControlNets read: ``control_image``,
                controlnet_conditioning_scale, control_guidance_start, control_guidance_end,
                guess_mode (pipeline/control_options.py); the first control image's size is then
                the default size. And ``style_image`` and ``style_region``, for what
                :meth:`load_style` has loaded.

        Raises:
            ValueError: sizes, counts or names that do not fit; the message names them. A
                checks.CallWarning reports prompts that are cut, and arguments without effect.
        """
        checks.check_kinds(SamplingOptions, "SamplingOptions", options=options)
        options, inputs = (options or SamplingOptions()).taking(named)
        called = {"progress": progress, "on_preview": on_preview, "on_batch": on_batch}
        checks.check_kinds(Callable, "a function", **called)
        prompts = checks.as_texts("prompt", prompt)
        conditioner, count = self.conditioner, len(prompts)
        nets, usual = None, None
        control: Control | None = None
        asked = None
        if self.style is not None or not STYLE_ARGUMENTS.isdisjoint(
            {*inputs, *(options.scales or ())}
        ):
            asked, inputs, options = self._read_style(inputs, options, count)
        if self.controlnets.nets or not CONTROL_ARGUMENTS.isdisjoint(inputs):
            nets, inputs = self.controlnets.read(inputs, count)
        if nets is not None:
            usual = nets.size(self.base.model.vae.vae_scale_factor)
        size = images.image_size(self.base, options.height, options.width, usual)
        shape = images.latent_shape(self.base, size)
        negatives = checks.broadcast_texts(negative_prompt, count, "negative prompts")
        people, where = conditioner.check_people(references, regions, prompts, shape[:2])
        acts = conditioner.is_active(references)
        if acts and self.method is not None and options.start_merge_step is None:
            options = replace(options, start_merge_step=self.method.start_merge_step)
        parts, inputs = conditioner.check_inputs(inputs, acts, count)
        plan = options.plan(self.base.scheduler_config)
        own_lora = self._own_lora
        scales = (options.scales or {}, bool(own_lora), acts, plan.num_steps)
        strengths = conditioner.schedules(*scales)
        if own_lora and not acts:  # without references nothing of the method acts
            strengths = {"lora": np.zeros(plan.num_steps, np.float32)}
        if nets is not None:
            control = nets.control(size, plan.num_steps, options.guidance)
        said = (prompts, negatives, parts, people, where)
        checks.warn_of_ineffective_options(self, *said, plan, strengths, options, latents)
        time_ids = np.tile(options.time_ids(size), (count, 1))
        call = Call(prompts, parts, people, time_ids, size, inputs)
        against = negatives if options.guides else None
        seed, total = options.seed or 0, count * options.num_images_per_prompt
        noise = images.initial_noise(latents, seed, (total, *shape))
        keys = image_keys(seed, 1, total)
        batch = self.batch_size_for(options.batch_size, total)
        tile_size = (options.tile_size or 512) if options.tiling else None
        method = self.method if acts else None
        run: tuple[Any, Any] = denoiser_module(self.model, method), method
        if nets is not None and control is not None:
            run = nets.in_front(self.model, method, control, against is not None)
        look = asked and self._look(asked, shape[:2], plan.num_steps)
        done = []
        keep = done.append if on_batch is None else on_batch
        for start in range(0, total, batch):
            # The last batch is padded with its last image: every batch has the same shape.
            rows = np.minimum(np.arange(start, start + batch), total - 1)
            which = rows // options.num_images_per_prompt
            guidance = conditioner.guidance(call, against, where, which)
            guidance = replace(guidance, scales=strengths, lora=own_lora)
            if control is not None:
                guidance = control.added(guidance, which, self.mesh)
            if look:
                guidance = look.added(guidance, which, self.mesh)
            scalars = options.scalars(plan.num_steps, plan.calls_per_step)
            row = (plan, noise[rows], guidance, keys[rows], scalars)
            here = min(batch, total - start)
            watch = on_preview and self._watch(on_preview, here)
            out = images.sample(run[0], run[1], self.mesh, *row, progress, watch)
            if options.output_type != "latent":
                out = images.decode(self.model.vae, self.mesh, out, tile_size)
            made = to_host(out)[:here]
            keep(images.to_pil(made) if options.output_type == "pil" else made)
        if on_batch is not None or options.output_type == "pil":
            return PipelineOutput(list(itertools.chain(*done)))
        return PipelineOutput(np.concatenate(done))

    def _watch(self, on_preview, count):
        """What images.sample calls with predicted latents, of which ``count`` are wanted."""

        def watch(latents):
            on_preview(images.preview(self.model.vae, self.mesh, latents)[:count])

        return watch

    def encode_prompt(self, prompts: list[str]) -> tuple[jax.Array, jax.Array]:
        """prompt_embeds [b, 77, d] and pooled_prompt_embeds [b, p] of b prompts."""
        prompts = checks.as_texts("prompts", prompts)
        checks.warn_of_texts(self.conditioner, prompts, (), {}, None)
        return self.conditioner.encode_prompt(prompts)

    def draw_latents(self, seed: int, total: int, height: int, width: int) -> np.ndarray:
        """The default ``latents``: [total, h / 8, w / 8, 4] standard normal."""
        shape = (total, *images.latent_shape(self.base, (height, width)))
        return images.initial_noise(None, seed, shape)

    def batch_size_for(self, batch_size: int | None, total: int) -> int:
        """The size of the batches in which ``total`` images are generated."""
        devices = self.mesh.size
        size = min(total, IMAGES_PER_DEVICE * devices) if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        return -(-size // devices) * devices
