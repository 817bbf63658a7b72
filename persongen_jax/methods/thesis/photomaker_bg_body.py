"""PhotoMaker with background and body as prompts of their own (the thesis code's last model).

As the method photomaker_bg, with one more parallel branch for what the person wears and does.
"""

from persongen_jax.methods.thesis.photomaker_bg import PhotoMakerBackground


class PhotoMakerBackgroundBody(PhotoMakerBackground):
    """Stacked ID embedding in "text", branches on "background" and "body", LoRA."""

    streams = ("background", "body")
    groups = (
        *PhotoMakerBackground.groups,
        (r"unet/.*/attn2/branches/body/to_[kv]/kernel", "body"),
    )
