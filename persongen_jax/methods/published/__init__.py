"""Identity methods of published papers."""
