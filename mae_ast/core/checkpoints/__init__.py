"""Read and write checkpoints: this project's and those of other implementations."""
