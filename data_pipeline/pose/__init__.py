"""Body joints in photographs."""
