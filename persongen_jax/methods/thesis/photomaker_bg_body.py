"""PhotoMaker with separate prompts for background and body (the thesis code's last model).

Like the method photomaker_bg, with one more parallel branch for the person's clothes and actions.
"""

from persongen_jax.methods.thesis.photomaker_bg import PhotoMakerBackground


class PhotoMakerBackgroundBody(PhotoMakerBackground):
    """Stacked ID embedding in "text", branches on "background" and "body", LoRA."""

    streams = ("background", "body")
    groups = (
        *PhotoMakerBackground.groups,
        (r"unet/.*/attn2/branches/body/to_[kv]/kernel", "body"),
    )
