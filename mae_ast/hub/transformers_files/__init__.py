"""Modelling code that is copied into folders exported for transformers."""
