"""Fine-tuning on SUPERB tasks with an unmodified s3prl 0.4.18."""
