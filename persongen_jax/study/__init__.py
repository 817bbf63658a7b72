"""Several methods and seeds next to each other: the study command."""
