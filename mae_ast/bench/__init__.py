"""Benchmark this machine (``mae-ast bench``), and plan a run (``mae-ast plan``).

``work`` counts the operations and bytes of a training step. ``steps``, ``kernels``, ``files`` and
``training`` measure, ``suite`` runs them in separate processes, and ``report`` writes the results.
"""
