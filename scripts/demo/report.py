"""Markdown tables of the demo's results."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.demo.cache import Results

MODELS = ("random weights", "mean log-mel", "pretrained")  # columns of the second table


def report(results: Results) -> str:
    """Return all tables.

    Args:
        results: of the phases "pretraining", "probe" and "finetuning".
    """
    reconstruction = _reconstruction(results["pretraining"])
    return "\n".join([*reconstruction, *_recognition(results["probe"], results["finetuning"])])


def _reconstruction(results: Results) -> list[str]:
    chance = 1 / results["num_candidates"]
    minutes = f" ({results['minutes']:.1f} min)" if results["in_one_go"] else ""
    return [
        f"After {results['updates']} updates{minutes}, on held-out voices:",
        "",
        *_table(
            ["masked patches", "this model", "baseline"],
            [
                "mean squared error",
                f"{results['mse']:.4f}",
                f"{results['baseline_mse']:.4f} (each mel bin's mean + the clip's offset)",
            ],
            [
                f"InfoNCE accuracy among {results['num_candidates']:.0f} patches",
                f"{results['accuracy']:.1%}",
                f"{chance:.1%} (chance)",
            ],
        ),
    ]


def _recognition(probe: Results, finetuning: Results) -> list[str]:
    classes = finetuning["pretrained"]["num_classes_seen"]
    clips = finetuning["pretrained"]["num_clips"]
    finetuned = (
        f"{finetuning[model]['accuracy']:.1%}" if model in finetuning else "-" for model in MODELS
    )
    return [
        f"{classes}-word classification, {clips} clips of held-out voices "
        f"(chance {1 / classes:.1%}):",
        "",
        *_table(
            ["accuracy", *MODELS],
            ["linear probe", *(f"{probe[model]['linear']:.1%}" for model in MODELS)],
            ["k-NN, k = 10", *(f"{probe[model]['knn']:.1%}" for model in MODELS)],
            [f"fine-tuned, {finetuning['updates']} updates", *finetuned],
        ),
    ]


def _table(header: Sequence[str], *rows: Sequence[str]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]
