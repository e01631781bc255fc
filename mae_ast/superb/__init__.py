"""Fine-tuning on SUPERB's tasks through s3prl 0.4.18, which stays as it is."""
