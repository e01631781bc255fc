"""Evaluate models: metrics, reports, frozen-feature probes, extraction."""
