"""Check of a light installation, run by :mod:`scripts.light_install` in a fresh environment."""
