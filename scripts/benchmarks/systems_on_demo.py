"""Compare the systems on the demo's corpus: time, peak memory and downstream accuracy.

    mae-ast demo
    python scripts/benchmarks/systems_on_demo.py demo/corpus

pretrains each system with ``config/pretrain/demo.yaml``, at the same depth and width and for the
same number of updates, one after the other; then probes each on held-out voices, and prints a
table. AST has no pretraining: it is trained with labels from random weights, by
``config/finetune/ast_speechcommands2.yaml``, with overlapping patches. Systems that an earlier call
has measured in ``--out`` are not measured again.

Only training on the CPU is measured; validation and plots are disabled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from measuring import RESULTS, Report, peak_memory

from mae_ast.bench.training import seconds_per_update
from mae_ast.core.models.config import AudioMaeConfig, MaeAstConfig, SsastConfig, VitConfig
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub.load import Pretrained, PretrainedVit, load
from mae_ast.trainer.command import train_command
from mae_ast.trainer.metrics_log import read_metrics

sys.path.insert(0, str(Path(__file__).parents[2]))
from scripts.demo.cache import Results, cached
from scripts.demo.recognition import probe_words


def _without(config: type[Any]) -> tuple[str, ...]:
    """Return overrides that remove the MAE-AST keys which another system does not have."""
    own, others = ({field.name for field in fields(each)} for each in (MaeAstConfig, config))
    # Hydra cannot delete a key that is null.
    return tuple(
        each for key in sorted(own - others) for each in (f"model.{key}=0", f"~model.{key}")
    )


# Overrides of the preset for each system.
SSAST = ("model._name=ssast", *_without(SsastConfig), "model.random_mask_prob=0.78125")
# Audio-MAE has no InfoNCE loss, and its decoder is deeper and narrower than MAE-AST's.
AUDIO_MAE = (
    *("model._name=audio_mae", *_without(AudioMaeConfig)),
    *("criterion.classification_weight=0", "model.decoder_layers=4"),
    *("model.decoder_embed_dim=128", "model.decoder_ffn_embed_dim=512"),
    *("model.decoder_attention_heads=4", "model.random_mask_prob=0.8"),
)
# AST starts from random weights. The other overrides replace settings that the preset chose for an
# image network and 128 clips per batch.
AST = (
    *("model.checkpoint=null", "model.encoder_layers=4", "model.encoder_embed_dim=192"),
    *("model.encoder_ffn_embed_dim=768", "model.encoder_attention_heads=4"),
    *("criterion.loss=auto", "task.mixup=0", "lr_scheduler.force_anneal=null"),
    *("optimization.max_epoch=0", "optimization.lr=[0.001]", "optimization.clip_norm=1.0"),
    *("dataset.batch_size=32", "dataset.num_workers=1", "common.log_interval=10"),
    "optimizer.adam_betas='(0.9,0.98)'",
)
COMMON = ("common.cpu=true", "common.tensorboard_logdir=null", "dataset.disable_validation=true")


@dataclass(frozen=True)
class System:
    """Training settings of a system.

    Args:
        overrides: overrides of the preset, ``KEY=VALUE``.
        config: name of the preset.
        kind: kind of the preset, "pretrain" or "finetune".
    """

    overrides: tuple[str, ...]
    config: str = "demo"
    kind: str = "pretrain"


SYSTEMS = {
    "MAE-AST": System(()),
    "SSAST": System(SSAST),
    "SSAST, two passes": System((*SSAST, "++model.two_pass=true")),
    "Audio-MAE": System(AUDIO_MAE),
    "Audio-MAE, global decoder": System((*AUDIO_MAE, "++model.decoder_attention=global")),
    "AST, with labels": System(AST, "ast_speechcommands2", "finetune"),
}
MEASURED = "measured.json"  # in a run's folder: its command line and cost


@dataclass(frozen=True)
class Cost:
    """Cost of a training.

    Args:
        minutes: duration of the whole process.
        update_s: seconds per update, between the first and the last that were logged.
        update_cpu_s: CPU seconds of the whole process, data loading and start included, divided by
            the number of updates.
        peak_gib: peak memory of its largest process.
    """

    minutes: float
    update_s: float
    update_cpu_s: float
    peak_gib: float


def main() -> None:
    """Train and probe all systems; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder demo/corpus of `mae-ast demo`")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/systems_on_demo"), help="folder of the runs"
    )
    parser.add_argument("--updates", type=int, default=1300, help="updates of each system")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="systems to compare"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    arguments = parser.parse_args()
    if arguments.updates < 20:
        parser.error(f"--updates {arguments.updates}: at least 20, since every tenth is logged")
    for split in ("train", "test"):
        if not (arguments.corpus / f"{split}.lbl").exists():
            parser.error(
                f"{arguments.corpus / f'{split}.lbl'}: no such file; the corpus is DEMO/corpus, as "
                "written by `mae-ast demo --out DEMO`"
            )
    runs = {name: arguments.out / re.sub(r"\W+", "_", name.lower()) for name in arguments.systems}
    costs = {
        name: pretrain(arguments.corpus, run, arguments.updates, SYSTEMS[name])
        for name, run in runs.items()
    }
    probes = {
        name: cached(
            run / "probe.json",
            json.loads((run / MEASURED).read_text()),
            lambda name=name, run=run: probe_words(trained(run, SYSTEMS[name]), arguments.corpus),
        )
        for name, run in runs.items()
    }
    report = Report(
        "The four systems on the demo's corpus, CPU",
        "4 layers of width 192 (decoders: MAE-AST 2 layers, Audio-MAE 4 of width 128), 16 x 16 "
        "patches, masking\nratios of 75 % (MAE-AST), 78 % (SSAST) and 80 % (Audio-MAE), the "
        f"demo's settings and corpus, {arguments.updates} updates\nof 32 clips of one second, one "
        "seed. AST is trained with labels and has 108 overlapping patches, the\nothers have 48. "
        "The probe (linear, on the best layer) is scored on held-out voices; random weights: the\n"
        "same network untrained. CPU time is that of the whole process divided by the number of "
        "updates. Peak\nmemory is that of the largest process; at this size more than half of it "
        "is PyTorch and fairseq.",
    )
    add_table(report, costs, probes)
    values = {name: {**asdict(cost), "probe": probes[name]} for name, cost in costs.items()}
    report.write("systems_on_demo", arguments.results, values)


def pretrain(corpus: Path, run: Path, updates: int, system: System) -> Cost:
    """Train a system in a child process, from scratch.

    Raises:
        SystemExit: training failed; the message names its log.
    """
    settings = [f"optimization.max_update={updates}", *COMMON, *system.overrides]
    if system.kind == "pretrain":
        settings.append("model.input_stats=batch")
    command = train_command(corpus, system.config, run, settings, system.kind)
    measured = run / MEASURED
    if measured.exists():
        earlier = json.loads(measured.read_text())
        if earlier["command"] == command:
            return Cost(**earlier["cost"])
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    log = run / "train.log"
    print(f"training, see {log}", flush=True)
    with log.open("w") as output:
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"training failed, see {log}")
    cost = Cost(
        seconds / 60,
        seconds_per_update(read_metrics(run), warm_up=0),
        (used.ru_utime + used.ru_stime) / updates,
        peak_memory(used),
    )
    measured.write_text(json.dumps({"command": command, "cost": asdict(cost)}))
    return cost


def trained(run: Path, system: System) -> Pretrained:
    """Load the trained model of a run."""
    last = run / "checkpoints" / "checkpoint_last.pt"
    if system.kind == "pretrain":
        return load(last)
    encoder = load_finetuned(last).model.encoder
    model = PretrainedVit(VitConfig.from_mapping(asdict(encoder.config)))
    model.load_state_dict(encoder.state_dict())
    return model.eval()


def add_table(report: Report, costs: dict[str, Cost], probes: dict[str, Results]) -> None:
    """Add the table of all measurements."""
    report.add(
        "| system | training (min) | update (ms) | relative to the first | CPU per update (ms) | "
        "peak (GiB) | linear probe | random weights | k-NN | layer |"
    )
    report.add("| --- " * 10 + "|")
    first = next(iter(costs.values()))
    for name, cost in costs.items():
        pretrained, random = probes[name]["pretrained"], probes[name]["random weights"]
        report.add(
            f"| {name} | {cost.minutes:.1f} | {1000 * cost.update_s:.0f} | "
            f"{cost.update_s / first.update_s:.2f} | {1000 * cost.update_cpu_s:.0f} | "
            f"{cost.peak_gib:.2f} | {pretrained['linear']:.1%} | {random['linear']:.1%} | "
            f"{pretrained['knn']:.1%} | {pretrained['layer']} |"
        )
    log_mel = next(iter(probes.values()))["mean log-mel"]
    report.add(f"\nLinear probe on mean log-mel: {log_mel['linear']:.1%}.")


if __name__ == "__main__":
    main()
