"""Captioners: functions from pictures to texts, opened by name (base.py)."""
