"""Methods that are trained on one person's pictures: LoRA, DreamBooth, Textual Inversion."""
