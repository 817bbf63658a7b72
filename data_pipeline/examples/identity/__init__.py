"""Fields that say who the person is, other than plain references (conditions.py)."""
