"""``mae-ast bench``: what this machine makes of the project, held against what it could.

``work`` counts what a step must do. ``steps``, ``kernels``, ``files`` and ``training`` measure;
``suite`` runs them in processes of their own, and ``report`` writes what came of it.
"""
