"""``python -m mae_ast.launch``: fairseq-hydra-train that hands a cluster's signals on.

Registering at import, not through ``common.user_dir``, since processes that the trainer spawns
import this module first, and fairseq then takes the package for registered.
"""

from __future__ import annotations

import fairseq_cli.hydra_train

from mae_ast import interruption
from mae_ast.plugin import register

register()

if __name__ == "__main__":
    interruption.listen(forward=True)
    fairseq_cli.hydra_train.cli_main()
