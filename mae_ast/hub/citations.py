"""BibTeX entries of the systems' papers."""

from __future__ import annotations

_MAE_AST = """\
@inproceedings{baade2022maeast,
  author    = {Alan Baade and Puyuan Peng and David Harwath},
  title     = {{MAE-AST}: Masked Autoencoding Audio Spectrogram Transformer},
  booktitle = {Interspeech},
  year      = {2022}
}"""
_SSAST = """\
@inproceedings{gong2022ssast,
  author    = {Yuan Gong and Cheng-I Lai and Yu-An Chung and James Glass},
  title     = {{SSAST}: Self-Supervised Audio Spectrogram Transformer},
  booktitle = {AAAI},
  year      = {2022}
}"""
_AST = """\
@inproceedings{gong2021ast,
  author    = {Yuan Gong and Yu-An Chung and James Glass},
  title     = {{AST}: Audio Spectrogram Transformer},
  booktitle = {Interspeech},
  year      = {2021}
}"""
_AUDIO_MAE = """\
@inproceedings{huang2022audiomae,
  author    = {Po-Yao Huang and Hu Xu and Juncheng Li and Alexei Baevski and Michael Auli and
               Wojciech Galuba and Florian Metze and Christoph Feichtenhofer},
  title     = {Masked Autoencoders that Listen},
  booktitle = {NeurIPS},
  year      = {2022}
}"""
BIBTEX = {"mae_ast": _MAE_AST, "ssast": _SSAST, "ast": _AST, "audio_mae": _AUDIO_MAE}
