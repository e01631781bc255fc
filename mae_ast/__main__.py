"""``python -m mae_ast``: ``mae-ast`` where the command is not on the PATH."""

from mae_ast.cli.main import main

if __name__ == "__main__":
    main()
