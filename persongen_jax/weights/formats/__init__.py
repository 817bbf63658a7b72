"""Who writes which weight files, and what their keys mean."""
