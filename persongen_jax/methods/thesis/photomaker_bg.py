"""PhotoMaker with a separate prompt for the background (thesis, 5.2.4 and 6: its final method).

Identity enters through text space as in PhotoMaker (Li et al., arXiv 2312.04461); a parallel branch
of every cross-attention reads the background, as IP-Adapter's branch reads its image (Ye et al.,
arXiv 2308.06721). A prompt that need not describe the background leaves more room for the face.
"""

from persongen_jax.methods.published.photomaker import PhotoMaker


class PhotoMakerBackground(PhotoMaker):
    """Stacked ID embedding in "text", a branch on "background", LoRA on the base layers alone."""

    streams: tuple[str, ...] = ("background",)
    groups: tuple[tuple[str, str], ...] = (
        *PhotoMaker.groups,
        (r"unet/.*/attn2/branches/background/to_[kv]/kernel", "background"),
    )
