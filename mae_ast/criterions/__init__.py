"""fairseq criterions; the tasks import them, since fairseq does not."""
