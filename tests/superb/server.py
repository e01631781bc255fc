"""Server that runs ``mae-ast superb`` repeatedly with one import of s3prl, which takes 6 seconds.

For each input line, a JSON list [log, cwd, arguments...], it runs the command in a forked process
whose output goes to the log, and prints the process id and then the exit status.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import typer


def serve() -> None:
    from mae_ast.superb import compat

    torch.set_num_threads(1)
    compat.install()
    import s3prl.downstream.emotion.expert
    import s3prl.downstream.speech_commands.expert
    import s3prl.downstream.voxceleb1.expert
    import s3prl.run_downstream  # noqa: F401

    for line in sys.stdin:
        log, folder, *arguments = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(_run(log, folder, arguments))
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(log: str, folder: str, arguments: list[str]) -> int:
    from mae_ast.cli.superb import superb

    with open(log, "w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os.chdir(folder)
        app = typer.Typer()
        app.command(context_settings={"allow_extra_args": True})(superb)
        status = 0
        try:
            app(arguments, standalone_mode=False)
        except (ValueError, OSError) as error:
            print(f"mae-ast: error: {error}", file=sys.stderr)
            status = 1
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 2
        sys.stdout.flush()
        sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve()
