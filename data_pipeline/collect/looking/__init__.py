"""Measures pictures once: faces, embeddings, hashes, sharpness; kept by the picture's key."""
