"""fairseq criterions, imported by the tasks because fairseq does not import them itself."""
