"""The miniature's networks as systems, for persongen_jax.train; ../configs.py has their configs."""
