"""Measure what this machine reaches (``mae-ast bench``), and plan a run (``mae-ast plan``).

``work`` counts what a step must do. ``steps``, ``kernels``, ``files`` and ``training`` measure;
``suite`` runs them in processes of their own, and ``report`` writes what came of it.
"""
