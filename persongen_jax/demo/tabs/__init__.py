"""The page's tabs, a file each, and the inputs that they share."""
