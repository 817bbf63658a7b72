"""The thesis' experiments with PhotoMaker (5.1 and A.1): the baseline with a few changed lines.

    python -m persongen_jax.train --config configs/thesis/from_photomaker_with_warmup.py \\
        --config.base=/path/to/sdxl --config.id_encoder=/path/to/clip-vit-large-patch14 \\
        --config.data=/path/to/photographs

Configs that start from PhotoMaker's weights expect them in ``PHOTOMAKER``; give --config.start_from
for another path. The rows below are for ``config.trainable``.
"""

PHOTOMAKER = "weights/photomaker-v1.bin"
STOCK_SDXL = "weights/stable-diffusion-xl-base-1.0"

ENCODER = (r"id_encoder/vision_model/.*", "id_encoder")
HEADS = (r"id_encoder/visual_projection(_2)?/kernel", "projections")
MLP = (r"id_encoder/fuse_module/.*", "fuse_module")
LORA = (r"unet/.*/lora/(down|up)", "lora")
# Two layers each of SDXL's text towers, of 12 and 32, and of the ViT-L/14's 24.
LAST_LAYERS = (
    (r"text_encoder/encoder/layers/(9|10)/.*", "text_encoders"),
    (r"text_encoder_2/encoder/layers/(30|31)/.*", "text_encoders"),
    (r"id_encoder/vision_model/encoder/layers/(22|23)/.*", "id_encoder"),
)
