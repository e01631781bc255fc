"""mae-ast: self-supervised pretraining of spectrogram transformers.

``mae_ast.core`` is plain PyTorch. ``mae_ast.plugin.register()`` adds task, model and criterion to
fairseq; ``fairseq-hydra-train common.user_dir=.../mae_ast`` does the same by itself.
"""

__version__ = "0.1.0"
