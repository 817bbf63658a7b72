"""The miniature's quality, measured on unseen people and pictures by judges that no method reads.

    python -m persongen_jax.miniature.figures            # minutes; writes assets/figures.json

Each figure comes with its bar and aim, its number of samples, a 95 % interval, and if it is judged,
with the judge's own accuracy on drawn images. Everything is read from the shipped checkpoints.
"""
