"""``mae-ast plan``: predict size and duration of a pretraining run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mae_ast.cli.options import DataAndOverrides, PretrainPreset, data_argument, split_data
from mae_ast.cli.quiet import quiet
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:  # fairseq takes seconds to import
    from mae_ast.bench.plan import Plan, Timed


def plan(
    data: Annotated[Path, data_argument("Folder with train.tsv, or a manifest.")],
    overrides: DataAndOverrides = None,
    config: PretrainPreset = "mae_ast",
    gpus: Annotated[int, typer.Option(help="Number of GPUs per node.")] = 1,
    nodes: Annotated[int, typer.Option(help="Number of nodes.")] = 1,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Results of 'mae-ast bench' on the same kind of GPU, to predict the duration."
        ),
    ] = None,
) -> None:
    """Predict the size and duration of a pretraining run.

    Counts batches, updates, epochs and hours of audio for the settings of 'mae-ast pretrain', and
    the memory of weights, gradients and moments on each GPU. Nothing is trained and no audio is
    read.
    """
    from mae_ast.bench.report import read_results
    from mae_ast.bench.state_memory import state_memory

    if gpus < 1 or nodes < 1:
        raise ValueError(f"--gpus {gpus} --nodes {nodes}: at least 1 each")
    results = None if bench is None else read_results(bench)
    given, arguments = split_data(data, overrides or [])
    folders = [each if each.is_dir() else each.parent for each in given]
    with quiet():
        from mae_ast.bench.plan import compose_settings, make_plan, time_plan  # fairseq

        settings = compose_settings(folders, config, arguments)
        name = f"{settings.dataset.train_subset}.tsv"
        manifests = [each if each.is_file() else each / name for each in given]
        made = make_plan(settings, manifests, gpus * nodes)

    state = state_memory(settings, made.parameters, made.gpus)
    lines = _counts(made, settings.model._name)
    lines |= {"state per GPU": state.describe(), "parallelism": state.advise()}
    if results is None:
        lines["wall time"] = "unknown; --bench predicts it from results of 'mae-ast bench'"
    else:
        lines |= _times(time_plan(made, settings, results), results)
    width = max(map(len, lines))
    for name, value in lines.items():
        typer.echo(f"{name:<{width}}  {value}")


def _counts(made: Plan, system: str) -> dict[str, str]:
    from mae_ast.bench.setting import fixed_point
    from mae_ast.core.io.audio import SAMPLE_RATE

    batches = made.batches
    update = made.clips_per_update
    masked = made.num_masked / made.num_patches
    exaflop = made.flops * update * made.updates / 1e18
    lines = {
        "clips": f"{made.num_clips - made.clips_skipped:,} of {made.num_clips:,}, "
        f"{made.hours_per_epoch:,.1f} h after cropping",
        **({"mixture": made.mixture} if made.mixture else {}),
        "model": f"{system}, {made.parameters / 1e6:.1f} M parameters, "
        f"{made.num_patches} patches per clip, {masked:.1%} masked",
        "batch per GPU": f"{made.clips_per_batch:.1f} clips on average ({batches.clips.min()} to "
        f"{batches.clips.max()}), median length {batches.length / SAMPLE_RATE:.2f} s",
        "batch per update": f"{update:,.0f} clips: {plural(made.gpus, 'GPU')} x update_freq "
        f"{made.update_freq}",
        "updates": f"{made.updates:,}; {made.updates_per_epoch:,} per epoch",
        "epochs": f"{made.epochs:,.1f}",
        "hours of audio": f"{made.hours:,.0f}",
        "operations": f"{fixed_point(made.flops / 1e9, 0)} GFLOP per clip, "
        f"{fixed_point(exaflop, 2)} EFLOP in total",
    }
    if made.gpus > 1:
        traffic = 4 * made.parameters / 1e9
        lines["gradients"] = f"{traffic:.2f} GB summed over the GPUs in each update"
    return lines


def _times(timed: Timed, results: Mapping[str, Any]) -> dict[str, str]:
    lines = {
        "measured": f"{timed.case} on {results['hardware']}, {results['date']}; a batch "
        f"of this run has {timed.scale:.2f} times its operations",
        "time per batch": f"{1000 * timed.step_s:.1f} ms, if it is proportional to the operations",
    }
    if timed.workers is not None:
        lines["decoding"] = f"{timed.workers:.1f} worker processes needed per GPU"
    time = f"{timed.hours:,.1f} h ({timed.hours / 24:,.1f} days) for the steps alone"
    if timed.throughput_ratio is not None:
        time += f", {timed.hours / timed.throughput_ratio:,.1f} h at the "
        time += f"{timed.throughput_ratio:.0%} of this speed that training from files reached there"
    lines["wall time"] = f"{time}; without gradient sums over GPUs, validation and checkpoints"
    return lines
