"""Pipeline: prompts to images, called as diffusers' pipelines are.

    pipe = Pipeline.from_pretrained("/path/to/sdxl", dtype=jnp.bfloat16)
    pipe("a lighthouse at dusk", seed=1).images[0].save("lighthouse.png")

text_to_image.py is the library's face and the loop over batches of prompts; conditioner.py makes
of a call what the UNet reads, images.py makes images of that; loading.py reads methods and LoRA.
"""

from persongen_jax.pipeline.images import to_pil
from persongen_jax.pipeline.loading import LORA_COMPONENTS, METHOD_PREFIX
from persongen_jax.pipeline.text_to_image import Pipeline, PipelineOutput

__all__ = ["LORA_COMPONENTS", "METHOD_PREFIX", "Pipeline", "PipelineOutput", "to_pil"]
