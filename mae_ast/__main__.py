"""``python -m mae_ast``: the command where ``mae-ast`` is not on the PATH."""

from mae_ast.cli.main import main

if __name__ == "__main__":
    main()
