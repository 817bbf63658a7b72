"""Identity through an attention branch, and LoRA everywhere (thesis, 5.2.3).

The branch of id_branch.py. Its keys and values are not trained themselves: like the base layers
they carry a LoRA. PhotoMaker's LoRA holds much about identity, so it is what both start from.
"""

from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.methods.base import Parts
from persongen_jax.methods.published.photomaker import ATTENTION_LAYERS, PhotoMaker
from persongen_jax.methods.start import add_id_encoder, load_remaining, load_start
from persongen_jax.methods.thesis.id_branch import IDBranch, add_identity
from persongen_jax.models.branches import ParallelCrossAttention, add_branch
from persongen_jax.models.lora import add_lora, copy_lora


class IPLora(IDBranch):
    """Streams "text" and "identity"; LoRA on the base layers and on the branch's keys and values.

    The branch starts as the base layer with its LoRA, copying both. (The thesis' released code
    merged the LoRA into the copy and added it again on top.)
    """

    groups = (
        *(row for row in IDBranch.groups if row[1] != "identity"),
        *(row for row in PhotoMaker.groups if row[1] == "lora"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Reads config.rank and lora_alpha, and the keys that methods/start.py reads."""
        model = parts.model
        add_id_encoder(model, config, rngs)
        add_lora(model.unet, ATTENTION_LAYERS, config.rank, alpha=config.lora_alpha, rngs=rngs)
        origin = load_start(model, config)
        add_identity(model, config)
        add_branch(model.unet, "identity")
        for _, layer in nnx.iter_graph(model.unet):
            if isinstance(layer, ParallelCrossAttention):
                copy_lora(layer.to_k, layer.branches["identity"].to_k)
                copy_lora(layer.to_v, layer.branches["identity"].to_v)
        load_remaining(model, origin)
