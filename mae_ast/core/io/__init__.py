"""Read files: audio, archives, manifests, labels."""
