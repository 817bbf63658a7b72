"""DreamBooth: the whole UNet is trained on one person's pictures (Ruiz et al., arXiv 2208.12242).

Class images keep the class' meaning (section 3.2; BoLID's eq. 10). The LoRA method with class
images is the light form.
"""

from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.methods.base import Parts
from persongen_jax.methods.personal.base import Personal
from persongen_jax.methods.start import find_origin, load_remaining


class DreamBooth(Personal):
    """All weights of the UNet, group "unet", and of both text towers, group "text_encoders"."""

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Reads config.train_text_encoders and start_from: an earlier run of DreamBooth."""
        rows = [("unet/.*", "unet")]
        if config.train_text_encoders:
            rows += [("text_encoder(_2)?/.*", "text_encoders")]
        self.groups = tuple(rows)
        origin = find_origin(config)
        if origin.file:
            raise ValueError(
                f"config.start_from={origin.source}: DreamBooth starts from config.base; give "
                "other weights as --config.base or --config.unet, or a run's --workdir here"
            )
        load_remaining(parts.model, origin)
