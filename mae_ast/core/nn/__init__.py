"""Layers of the networks: attention, transformer, positions, dropout."""
