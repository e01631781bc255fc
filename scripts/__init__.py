"""Recipes that a person runs: shell scripts, the demo and the benchmark programs."""
