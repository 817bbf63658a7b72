"""LoRA on one person as configs/bench_mid.py measures PhotoMaker: 275 million parameters, a CPU.

    python -m persongen_jax.bench train --config configs/bench_lora.py --out runs/bench \\
        --versus torch
"""

from configs.bench_mid import get_config as bench_config


def get_config():
    config = bench_config()
    config.method = "lora"
    config.token = "ohwx"
    config.drop_prob = 0.0
    config.face_loss_prob = 0.0
    return config
