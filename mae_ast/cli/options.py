"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Choice(str, Enum):
    """Values that an option may have; the same as ``StrEnum`` of Python 3.11."""

    def __str__(self) -> str:
        return str(self.value)


def _complete_preset(kind: str) -> Callable[[str], list[str]]:
    """Return the completion of a preset's name; ``kind`` is "pretrain" or "finetune"."""

    def complete(incomplete: str) -> list[str]:
        from mae_ast.trainer.command import preset_names

        return [name for name in preset_names(kind) if name.startswith(incomplete)]

    return complete


def complete_model(incomplete: str) -> list[str]:
    """Return the names of released models that begin with ``incomplete``."""
    from mae_ast.hub.registry import RELEASED

    return [name for name in RELEASED if name.startswith(incomplete)]


CHECKPOINT_HELP = (
    "Checkpoint file, run folder, name of a released model (see 'mae-ast models'), URL, or Hugging "
    "Face hub id."
)


def model_argument(metavar: str, text: str = CHECKPOINT_HELP) -> Any:
    """Return an argument for a model, which completes the names of released ones."""
    return typer.Argument(metavar=metavar, help=text, autocompletion=complete_model)


def data_argument(text: str) -> Any:
    """Return the argument for the folder of the manifests."""
    return typer.Argument(metavar="DATA", help=text)


def split_data(data: Path, arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split the arguments of a command that takes several data folders, then settings.

    Args:
        data: the first folder.
        arguments: what follows it.

    Returns:
        The folders, and what begins with the first option or ``KEY=VALUE``.
    """
    count = 0
    while count < len(arguments) and not _is_setting(arguments[count]):
        count += 1
    return [data, *map(Path, arguments[:count])], list(arguments[count:])


def _is_setting(argument: str) -> bool:
    is_deletion = argument.startswith("~") and not argument.startswith("~/")
    return "=" in argument or argument.startswith(("-", "+")) or is_deletion


def seed_option(drawn: str) -> Any:
    """Return the option for the seed of what a command draws."""
    return typer.Option(help=f"Seed of the {drawn}.")


# --- models ---------------------------------------------------------------------------------------

Checkpoint = Annotated[str, model_argument("CHECKPOINT")]
InitialCheckpoint = Annotated[
    str,
    model_argument(
        "CHECKPOINT",
        f"Model to start from. {CHECKPOINT_HELP} The ast_* presets also take timm:NAME.",
    ),
]
Classifier = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="Fine-tuned model: run folder or checkpoint file of 'mae-ast finetune', a published "
        "AST file, or a folder of transformers' AST.",
    ),
]
Average = Annotated[
    int, typer.Option(min=1, help="Average the weights of the run's last N epoch checkpoints.")
]
Device = Annotated[
    str | None,
    typer.Option(help="PyTorch device, such as cpu or cuda:1; default: cuda if available."),
]

Precision = Annotated[
    str,
    typer.Option(
        help="Dtype of the transformer: float32; bfloat16, about twice as fast on devices that "
        "multiply bfloat16 matrices in hardware, and an error on others; or auto, bfloat16 on "
        "these devices and else float32.",
        autocompletion=lambda incomplete: [
            name for name in ("float32", "bfloat16", "auto") if name.startswith(incomplete)
        ],
    ),
]

# --- data -----------------------------------------------------------------------------------------

ManifestFile = Annotated[
    Path, typer.Argument(metavar="MANIFEST", help="Manifest of audio files, such as train.tsv.")
]
AudioFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Audio files in any format.")
]
ExcerptSeconds = Annotated[
    float, typer.Option(help="Maximum length of an excerpt to reconstruct, in seconds.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Number of files to read in parallel.")]

# --- training -------------------------------------------------------------------------------------

PretrainPreset = Annotated[
    str,
    typer.Option(
        metavar="PRESET",
        help="Name of a pretraining preset, or path of a YAML file.",
        autocompletion=_complete_preset("pretrain"),
    ),
]
FinetunePreset = Annotated[
    str,
    typer.Option(
        metavar="PRESET",
        help="Name of a fine-tuning preset, or path of a YAML file. 'own' is for labelled data of "
        "your own and for models of all systems. The published recipes are named after the data "
        "set, such as esc50, speechcommands2 or audioset_balanced (for MAE-AST); those for SSAST, "
        "AST and Audio-MAE begin with ssast_, ast_ and audio_mae_.",
        autocompletion=_complete_preset("finetune"),
    ),
]
RUN_FOLDER_HELP = "Run folder for checkpoints and logs; the same command again resumes the run."
RunFolder = Annotated[Path, typer.Option(help=RUN_FOLDER_HELP)]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Train the same network from random weights, as a baseline.",
    ),
]
Multirun = Annotated[
    bool,
    typer.Option(
        "--multirun",
        "-m",
        help="Start the jobs of a sweep, such as model.encoder_layers=6,12, each in its own folder "
        "OUT/0, OUT/1, ...; or one job in OUT by hydra's launcher, such as SLURM's.",
    ),
]
DataAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATA]... KEY=VALUE",
        help="More folders of data, to pretrain on a mixture (task.mixture=[0.7,0.3]); then "
        "settings that differ from the preset, such as optimization.max_update=100000. Options of "
        "fairseq-hydra-train are passed on, too.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that differ from the preset, such as optimization.max_update=100000; "
        "options of fairseq-hydra-train are passed on, too.",
        show_default=False,
    ),
]
