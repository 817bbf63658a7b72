"""The miniature world's networks: their sizes, their training, and the figures that judge them.

    python -m persongen_jax.miniature --work runs/miniature

trains all of them on drawn people (data_pipeline.people) and writes ordinary checkpoints into
``persongen_jax/assets``. Seeded and restartable: the same command resumes where it stopped.
"""
