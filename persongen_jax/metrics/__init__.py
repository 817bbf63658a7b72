"""Metrics of generated images, one file each, and what turns their values into figures.

images/         a value for each image
sets/           one number for a whole set of images
base.py         what a metric is given, and what it gives back
registry.py     the names that config.metrics knows
judges.py       the networks that several metrics share
judge_check.py  refuses a judge that the method itself reads or is trained on
measures.py     values to means with intervals, and their description
"""
