"""Files of the networks in models/judges/."""
