"""PhotoMaker with the background as a prompt of its own (thesis, 5.2.4 and 6: its final method).

Identity enters through text space as PhotoMaker has it (Li et al., arXiv 2312.04461); what stands
behind the person is read by a parallel branch of every cross-attention, as IP-Adapter reads its
image (Ye et al., arXiv 2308.06721). What the prompt need not say about the background leaves it
more room for the face.
"""

from persongen_jax.methods.published.photomaker import PhotoMaker


class PhotoMakerBackground(PhotoMaker):
    """Stacked ID embedding in "text", a branch on "background", LoRA on the base layers alone."""

    streams = ("background",)
    groups = (
        *PhotoMaker.groups,
        (r"unet/.*/attn2/branches/background/to_[kv]/kernel", "background"),
    )
