"""Trainings as programs of their own, with their progress shown and what they log kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mae_ast.core.checkpoint import RUN_FILE, read_state
from mae_ast.core.plural import plural
from mae_ast.train_command import train_command

_JSON_LINE = re.compile(r"\]\[(train_inner|train|valid)\]\[INFO\] - (\{.*\})")

History = list[dict[str, Any]]


def num_updates(checkpoint: Path) -> int:
    """Steps that a checkpoint of the trainer has behind it; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return int(read_state(checkpoint)["optimizer_history"][-1]["num_updates"])


def train(
    corpus: Path,
    run: Path,
    updates: int,
    overrides: list[str] | None = None,
    kind: str = "pretrain",
) -> History:
    """Train with the preset ``demo``; a run that was interrupted goes on.

    Args:
        corpus: folder of the manifests.
        run: folder of the training, for its checkpoints, ``train.log`` and ``history.jsonl``.
        updates: steps, all in all.
        overrides: further settings.
        kind: "pretrain" or "finetune".

    Returns:
        The values that the trainer logged, a mapping a line.

    Raises:
        SystemExit: training failed, and the message names its log; or it was stopped.
    """
    run.mkdir(parents=True, exist_ok=True)
    history_file, log_file = run / "history.jsonl", run / "train.log"
    settings = [f"optimization.max_update={updates}", *(overrides or [])]
    command = train_command(corpus, "demo", run, settings, kind)
    # A core is the data worker's: threads that wait for one another are slower than one of them.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) - 1))
    environment = {
        **os.environ,
        "HYDRA_FULL_ERROR": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
    }
    last = run / RUN_FILE
    is_new = not last.exists()
    what = "pretraining" if kind == "pretrain" else f"fine-tuning, {run.name.replace('_', ' ')}"
    with (
        log_file.open("a", buffering=1) as log,
        history_file.open("w" if is_new else "a", buffering=1) as history,
        tqdm(total=updates, desc=what, unit="update") as progress,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            found = _JSON_LINE.search(line)
            if found is None:
                continue
            values = json.loads(found[2])
            if found[1] == "train_inner":
                progress.update(int(values["num_updates"]) - progress.n)
                progress.set_postfix({k: values[k] for k in ("mse", "accuracy") if k in values})
            history.write(json.dumps({"kind": found[1], **values}) + "\n")
    if process.returncode:
        raise SystemExit(f"mae-ast: error: training failed, see {log_file}")
    if num_updates(last) < updates:  # asked by a signal to save and end
        raise SystemExit(
            f"mae-ast: error: stopped after {num_updates(last)} of {plural(updates, 'update')}; "
            "the same command goes on"
        )
    return [json.loads(line) for line in history_file.read_text().splitlines()]
