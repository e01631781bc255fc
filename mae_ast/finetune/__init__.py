"""Fine-tune encoders: initialise, read back, average, cross-validate."""
