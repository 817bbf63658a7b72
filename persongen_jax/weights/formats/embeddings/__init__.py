"""Files of words' embeddings (Textual Inversion), read and written in every public form."""
