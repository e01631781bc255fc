"""The demo's figures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from mae_ast.demo.kept import Figures


def report(figures: Figures) -> str:
    """All tables.

    Args:
        figures: of the phases "pretraining", "probe" and "finetuning".
    """
    return "\n".join(
        [*_pretraining(figures["pretraining"]), *_words(figures["probe"], figures["finetuning"])]
    )


def _pretraining(found: Figures) -> list[str]:
    chance = 1 / found["num_candidates"]
    took = f" ({found['minutes']:.1f} min)" if found["in_one_go"] else ""
    return [
        f"After {found['updates']} updates{took}, on voices never heard:",
        "",
        *_table(
            ["hidden patches", "this model", "simple guess"],
            [
                "mean squared error",
                f"{found['mse']:.4f}",
                f"{found['baseline_mse']:.4f} (each mel bin's mean + the clip's offset)",
            ],
            [
                f"picked among {found['num_candidates']:.0f} (InfoNCE accuracy)",
                f"{found['accuracy']:.1%}",
                f"{chance:.1%} (chance)",
            ],
        ),
    ]


def _words(probe: Figures, finetuning: Figures) -> list[str]:
    kinds = ["random weights", "mean log-mel", "pretrained"]
    classes = finetuning["pretrained"]["num_classes_seen"]
    clips = finetuning["pretrained"]["num_clips"]
    return [
        f"{classes} words told apart, {clips} clips of voices never heard "
        f"(chance {1 / classes:.1%}):",
        "",
        *_table(
            ["accuracy", *kinds],
            ["linear probe", *(f"{probe[kind]['linear']:.1%}" for kind in kinds)],
            ["10 nearest neighbours", *(f"{probe[kind]['neighbours']:.1%}" for kind in kinds)],
            [
                f"fine-tuned, {finetuning['updates']} updates",
                *(
                    f"{finetuning[kind]['accuracy']:.1%}" if kind in finetuning else "-"
                    for kind in kinds
                ),
            ],
        ),
    ]


def _table(header: Sequence[str], *rows: Sequence[str]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]
