"""Load exported folders with transformers alone, and save what they compute.

Arguments: folder of the exported folders ``encoder_*`` and ``classifier_*``, with ``inputs.pt``. In
this process, neither ``mae_ast`` nor torchaudio can be imported.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

sys.modules["mae_ast"] = None  # type: ignore[assignment]
sys.modules["torchaudio"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    pipeline,
    pipelines,
)

CODE: dict[str, Any] = {"trust_remote_code": True}


@torch.no_grad()
def encode(folder: Path, waves: list[Any]) -> dict[str, Any]:
    """Return the states of a padded batch, and of the first clip alone."""
    model = AutoModel.from_pretrained(folder, **CODE)
    extractor = AutoFeatureExtractor.from_pretrained(folder, **CODE)
    batch = extractor(waves, sampling_rate=16_000, padding=True, return_tensors="pt")
    out = model(**batch, output_hidden_states=True)
    alone = model(batch["input_values"][:1])
    return {
        "states": [*out.hidden_states[1:], out.last_hidden_state],
        "pooled": out.pooler_output,
        "mask": out.patch_mask,
        "alone": alone.last_hidden_state,
    }


@torch.no_grad()
def classify(folder: Path, waves: list[Any]) -> dict[str, Any]:
    """Return the logits of a padded batch, and the scores that the pipeline gives each clip."""
    model = AutoModelForAudioClassification.from_pretrained(folder, **CODE)
    extractor = AutoFeatureExtractor.from_pretrained(folder, **CODE)
    batch = extractor(waves, sampling_rate=16_000, padding=True, return_tensors="pt")
    classifier = pipeline("audio-classification", model=str(folder), top_k=None, **CODE)
    options = {}
    # Before 5.23, pipelines always use softmax.
    if "problem_type" not in inspect.getsource(pipelines.audio_classification):
        is_multi_label = model.config.problem_type == "multi_label_classification"
        options = {"function_to_apply": "sigmoid" if is_multi_label else "softmax"}
    found = classifier(waves, **options)
    scores = [{each["label"]: each["score"] for each in clip} for clip in found]
    return {"logits": model(**batch).logits, "scores": scores}


def run_card(folder: Path, waveform: Any) -> None:
    """Run the code on a model card."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("FOLDER_OR_HUB_ID", str(folder)), {"waveform": waveform})


def main() -> None:
    """Load every folder."""
    root = Path(sys.argv[1])
    waves = [wave.numpy() for wave in torch.load(root / "inputs.pt")]
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        compute = encode if folder.name.startswith("encoder_") else classify
        found[folder.name] = compute(folder, waves)
        run_card(folder, waves[0])
    torch.save(found, root / "outputs.pt")


main()
