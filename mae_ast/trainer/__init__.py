"""Code around fairseq's training program: commands, checks, preemption, patches."""
