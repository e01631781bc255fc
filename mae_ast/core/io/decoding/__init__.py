"""Decode audio with libsndfile or FFmpeg: whole files, parts of files, and their lengths."""
