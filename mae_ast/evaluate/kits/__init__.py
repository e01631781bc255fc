"""Adapters for evaluation kits: HEAR, X-ARES, mteb and EVAR; no kit is imported or required."""
