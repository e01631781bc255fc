"""Golden data: numbers and files made by an earlier version, which every later version must keep.

``numbers.json`` holds losses and gradient norms of short trainings, hidden states and mask draws;
``files/`` holds one small file or folder of each kind that users have made. The tests train, resume
and load them through the command line and ``mae_ast.load`` only, so that they outlive refactoring.

After an intended change of numerics run ``python -m tests.golden.make``, look at the differences it
prints, and say so in the changelog under "Numerics". It leaves ``files/`` alone: those show that
what users made before can still be read. ``python -m tests.golden.make --files`` replaces them too,
which is right only if a format is given up.
"""
