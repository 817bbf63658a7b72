"""Pipeline: prompts to images, called like diffusers' pipelines.

    pipe = Pipeline.from_pretrained("/path/to/sdxl", dtype=jnp.bfloat16)
    save_images(pipe("a lighthouse at dusk", seed=1).images, "outputs")

text_to_image.py has the public class and the loop over batches of prompts; conditioner.py turns a
call into what the UNet reads, images.py turns that into images; loading.py reads methods and LoRA;
saving.py writes images.
"""

from persongen_jax.pipeline.images import to_pil
from persongen_jax.pipeline.loading import LORA_COMPONENTS, METHOD_PREFIX
from persongen_jax.pipeline.saving import save_images
from persongen_jax.pipeline.text_to_image import Pipeline, PipelineOutput

__all__ = [
    "LORA_COMPONENTS",
    "METHOD_PREFIX",
    "Pipeline",
    "PipelineOutput",
    "save_images",
    "to_pil",
]
