"""``python -m mae_ast.launch``: fairseq-hydra-train that handles and forwards signals.

Registering at import, not through ``common.user_dir``, since processes that the trainer spawns
import this module first, and fairseq then takes the package for registered.
"""

from __future__ import annotations

import sys

from mae_ast import stop_request

if __name__ in ("__main__", "__mp_main__"):  # the latter in a process that the trainer spawned
    stop_request.listen(spawned=__name__ == "__mp_main__")

import fairseq_cli.hydra_train  # takes seconds, during which a signal may arrive

from mae_ast import hydra_job
from mae_ast.plugin import register

register()
fairseq_cli.hydra_train._hydra_main = hydra_job.train

if __name__ == "__main__":
    with hydra_job.waiting(sys.argv):
        fairseq_cli.hydra_train.cli_main()
