"""How many people are drawn."""

N = 160
