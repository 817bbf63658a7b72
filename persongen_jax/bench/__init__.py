"""Speed measurements: the bench command."""
