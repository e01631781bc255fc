"""Apply models to recordings of any length: features, logits, reconstructions."""
