"""Noise schedule, objective, conditioning and samplers."""
