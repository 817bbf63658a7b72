"""What a run logs about itself: metrics.jsonl, TensorBoard events, speeds."""
