"""MNIST, 28x28, conditioned on the digit, through tensorflow-datasets.

    python -m persongen_jax.train --config configs/attributes/classifier.py:mnist \\
        --workdir runs/attributes/mnist_classifier --config.download=True
    python -m persongen_jax.train --config configs/attributes/mnist.py

From a plain folder with a table: --config.data=FOLDER --config.channels=1.
"""

from configs.attributes.digits import get_config as digits


def get_config():
    config = digits()
    config.data, config.size, config.channels = "mnist", 28, 1
    config.block_out_channels, config.attention = (32, 64, 64), (False, True, True)
    config.lr_model = 1e-3
    config.steps, config.checkpoint_every, config.validation_every = 20_000, 2000, 5000
    config.classifier = "runs/attributes/mnist_classifier"
    return config
