"""The miniature's quality, measured on unseen people and pictures by judges that no method reads.

    python -m persongen_jax.miniature.figures            # minutes; writes assets/figures.json

Each figure comes with its number of samples, a 95 % interval, where one is set its bar and aim, and
if it is judged with its judge, whose own accuracy on drawn images is a figure too. Everything is
read from the shipped checkpoints.
"""
