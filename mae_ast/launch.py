"""``python -m mae_ast.launch``: ``fairseq-hydra-train`` that handles and forwards signals.

It also checks a run before it creates any file, and filters the console. The plug-in is registered
at import, not through ``common.user_dir``: processes spawned by the trainer import this module
first, and fairseq then assumes that the package is registered.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mae_ast.trainer import console_filter, stop_request

if __name__ in ("__main__", "__mp_main__"):  # the latter in a process that the trainer spawned
    stop_request.listen(spawned=__name__ == "__mp_main__")
    console_filter.quiet()

from mae_ast.console import TRAINING, describe, require, user_errors

with user_errors():
    require(*TRAINING)

from mae_ast.trainer import hydra_job  # takes seconds, during which a signal may arrive

hydra_job.install()


def main() -> None:
    """Train; report invalid settings in one line."""
    from fairseq_cli.hydra_train import cli_main
    from hydra._internal.utils import get_args
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from mae_ast.trainer import preflight
    from mae_ast.trainer.presets import check_preset
    from mae_ast.trainer.settings import explain_composition

    preflight.apply()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function
    arguments = get_args()
    file = Path(arguments.config_dir or "", f"{arguments.config_name}.yaml")
    if file.is_file():
        with user_errors():
            warning = check_preset(file, arguments.overrides)
        if warning is not None:
            print(f"mae-ast: warning: {warning}", file=sys.stderr)
    try:
        with user_errors(), hydra_job.leave_signals_to_jobs(sys.argv):
            cli_main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"mae-ast: error: {explain_composition(error, file, arguments.overrides)}")
    except OSError as error:  # such as a folder that cannot be created
        sys.exit(f"mae-ast: error: {describe(error)}")


if __name__ == "__main__":
    main()
