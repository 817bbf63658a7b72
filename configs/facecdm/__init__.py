"""FaceCDM on SDXL at 512, in three stages that start from each other.

    bash launch/stages.sh runs/facecdm configs/facecdm/stage1.py configs/facecdm/stage2.py \\
        configs/facecdm/stage3.py -- --config.base=/path/to/sdxl \\
        --config.data=/path/to/photographs --config.face_encoder=w600k_r50.onnx \\
        --config.id_encoder=/path/to/clip-vit-large-patch14
"""
