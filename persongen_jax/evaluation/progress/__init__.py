"""What a run shows while it trains: samples, and the best checkpoint by its validations."""
