"""95 % intervals of means over people, of people and runs, and of differences between methods.

limits.py    the formulas, on arrays: from sums and counts of people to low and high
people.py    the interval of a mean over people, or of independent answers, or why there is none
runs.py      the interval of a mean over people and runs (seeds)
jackknife.py the interval of a number of a whole set, by leaving people out
pairs.py     differences of two methods on the same identities, prompts and seeds
settle.py    how many people or seeds would settle the sign of a difference

benchmarks/evaluation/coverage.py measures how often they hold the truth, next to the methods not
chosen.
"""
