"""What files add to a pipeline apart from its method: LoRA, words, a style adapter."""
