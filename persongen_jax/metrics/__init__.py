"""Metrics of generated images, one file each, and the code that turns their values into figures.

images/         a value per image
pose/           a value per image, of joints
sets/           one number for a whole set of images
intervals/      95 % intervals over people and runs, and of differences between methods
base.py         the input and output of a metric
registry.py     the names that config.metrics accepts
judges.py       networks that several metrics share
judge_check.py  refuses a judge that the method itself reads or is trained with
measures.py     turns values into means with intervals and a description
"""
