"""Decode audio with libsndfile or FFmpeg: whole files, parts, lengths."""
