"""The networks: Flax NNX modules whose paths mirror the keys of diffusers and transformers."""
