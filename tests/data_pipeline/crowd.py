"""How many people the fixture ``crowd`` draws."""

N = 160
