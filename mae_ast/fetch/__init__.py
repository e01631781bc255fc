"""Files from elsewhere: which models are released, and how they come into the cache."""
