"""Write model cards (README.md): settings, training, scores, use, licence and citation.

Whatever is not recorded in the checkpoint or given is named as unknown, or omitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.plural import plural
from mae_ast.core.models.registry import SYSTEMS, system_name
from mae_ast.hub.citations import BIBTEX
from mae_ast.hub.scores import Score

MAX_CLASSES = 10  # class names listed
_NOT_IN_ID = re.compile(r"[^\w./-]", re.ASCII)  # the hub refuses results with such a dataset's ID
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Jinja, like huggingface_hub's own template; model_card_kwargs of push_to_hub take precedence.
TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ summary }}{% if paper_url %} Paper: {{ paper_url }}{% endif %}

| | |
| --- | --- |
{% for name, value in settings %}| {{ name }} | {{ value }} |
{% endfor %}
## Training

{% if training %}| | |
| --- | --- |
{% for name, value in training %}| {{ name }} | {{ value }} |
{% endfor %}{% else %}The checkpoint does not record the training of these weights.
{% endif %}
## Scores

{% if scores %}{{ scores_of }}| data | split | metric | value |
| --- | --- | --- | --- |
{% for score in scores %}\
| {{ cell(score.data) or unknown }} | {{ cell(score.split) or unknown }} \
| {{ score.metric }} | {{ "%.4g" | format(score.value) }} |
{% endfor %}{% else %}No evaluation of these weights is recorded.
{% endif %}
## Use

{{ usage }}
## Licence

{% if license %}Weights: {{ license }}.\
{% else %}The licence of the weights is not recorded.{% endif %} \
The code of mae-ast\
{% if has_code %}, of which this folder contains the modelling code,{% endif %} \
is under the MIT licence.
{% if bibtex %}
## Citation

```bibtex
{{ bibtex }}
```
{% endif %}"""
_USE_HERE = """\
```python
import mae_ast

model = mae_ast.load("FOLDER_OR_HUB_ID")
features = model.extract_features(["speech.flac", "music.mp3"])
features.hidden_states[-1]  # last layer, (recordings, tokens, {width})
features.pooled[:, -1]  # its mean over time
```

Recordings of any length, sample rate and number of channels are accepted.
"""
_PREDICT = """
`mae-ast predict FOLDER speech.flac` prints the most likely classes.
"""
_USE_ENCODER = """\
```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("FOLDER_OR_HUB_ID")
model = AutoModel.from_pretrained("FOLDER_OR_HUB_ID", trust_remote_code=True)
waveforms = [torch.zeros(48_000).numpy(), torch.zeros(16_000).numpy()]  # 16 kHz, in [-1, 1]
inputs = extractor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")
output = model(**inputs, output_hidden_states=True)
output.last_hidden_state  # (clips, {prefix} + patches, {width}); prefix tokens come first
output.pooler_output  # (clips, {width}), mean over the {pooled}
```

Padding does not change the features of a clip.{cropped} The package mae-ast is not needed.
"""
_USE_CLASSIFIER = """\
```python
from transformers import pipeline

classify = pipeline("audio-classification", model="FOLDER_OR_HUB_ID"{code})
classify({{"array": waveform, "sampling_rate": 16_000}}{function})
```

`waveform` is a NumPy array (samples,) in [-1, 1]. Other sampling rates need torchaudio; the path of
a file instead of the array needs ffmpeg. {long_clips}
"""
_OF_CLASSIFIER = "Scores of the classifier that the encoder was fine-tuned in:\n\n"
_WINDOWS = (
    "A clip longer than {seconds:g} s is split into windows; its scores are the mean of their "
    "probabilities."
)
_CROPPED = "Clips are cropped or zero-padded to {seconds:g} s."


@dataclass(frozen=True)
class CardFacts:
    """Facts about a model that its card states.

    Args:
        config: configuration of the encoder.
        num_parameters: number of parameters.
        training: as ``Checkpoint.training``.
        num_classes: number of classes; 0: not a classifier.
        labels: class names, if known.
        independent: scores are sigmoids (multi-label); else a softmax over all classes.
        encoder_only: without modules of pretraining or a classification head.
        mask_type: type of mask in pretraining, if the model has its modules.
    """

    config: Any
    num_parameters: int
    training: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 0
    labels: Sequence[str] | None = None
    independent: bool = True
    encoder_only: bool = False
    mask_type: str | None = None

    @property
    def system(self) -> str:
        """Name of the system."""
        return system_name(self.config)


def model_card(
    facts: CardFacts,
    usage: str,
    *,
    library: str = "mae-ast",
    tags: Sequence[str] = (),
    scores: Iterable[Score] = (),
    license: str | None = None,  # noqa: A002
    has_code: bool = False,
    **replaced: Any,
) -> ModelCard:
    """Return a model card.

    Args:
        facts: the model.
        usage: the section about its use, see :func:`usage_here` and :func:`usage_in_transformers`.
        library: ``library_name`` on the hub.
        tags: further tags on the hub.
        scores: measured scores.
        license: identifier of the weights' licence on the hub, such as ``cc-by-4.0``.
        has_code: the folder contains modelling code.
        replaced: fields of :data:`TEMPLATE` with other values.

    Raises:
        ValueError: ``license`` cannot be an identifier of the hub, which would refuse the card.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"licence {license!r}; must be an identifier of the Hugging Face hub, such as "
            "cc-by-4.0, or other"
        )
    system = SYSTEMS[facts.system]
    scores = [*_validation(facts.training), *scores]
    kind = "classifies audio" if facts.num_classes else "extracts features of audio"
    task = "audio-classification" if facts.num_classes else "feature-extraction"
    title = system.title or facts.system
    results = [_result(score, task) for score in scores if score.data and facts.num_classes]
    data = ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=["audio", "spectrogram-transformer", *system.tags, *tags],
        license=license,
        model_name=title if results else None,
        eval_results=results or None,
    )
    fields = {
        "title": title,
        "summary": f"A spectrogram transformer that {kind}, exported by the Python package "
        "`mae-ast`.",
        "paper_url": system.paper_url,
        "settings": _settings(facts),
        "training": _training(facts.training),
        "scores": scores,
        "scores_of": "" if facts.num_classes else _OF_CLASSIFIER,
        "unknown": "not recorded",
        "cell": _cell,
        "usage": usage,
        "license": license,
        "has_code": has_code,
        "bibtex": BIBTEX.get(facts.system),
    }
    values = {**fields, **replaced}
    card: ModelCard = ModelCard.from_template(data, template_str=TEMPLATE, **values)
    return card


def usage_here(facts: CardFacts) -> str:
    """Return the section about the use with this package."""
    text = _USE_HERE.format(width=facts.config.encoder_embed_dim)
    return text + (_PREDICT if facts.num_classes else "")


def usage_in_transformers(facts: CardFacts, window_s: float = 0.0, native: bool = False) -> str:
    """Return the section about the use with transformers.

    Args:
        facts: the model.
        window_s: of a classifier, the longest clip that is scored as a whole.
        native: it is of a class of transformers.
    """
    if not facts.num_classes:
        config = facts.config
        fixed_s = (config.input_frames or 0) / 100
        return _USE_ENCODER.format(
            width=config.encoder_embed_dim,
            prefix=config.prefix_tokens,
            pooled="patches" if config.pool == "tokens" else "prefix tokens",
            cropped=f" {_CROPPED.format(seconds=fixed_s)}" if fixed_s else "",
        )
    long_clips = (_CROPPED if native else _WINDOWS).format(seconds=window_s)
    return _USE_CLASSIFIER.format(
        code="" if native else ", trust_remote_code=True",
        # The default since transformers 5.23; before, it is a softmax.
        function=', function_to_apply="sigmoid"' if facts.independent else "",
        long_clips=long_clips,
    )


def _settings(facts: CardFacts) -> list[tuple[str, str]]:
    config, shape = facts.config, facts.config.patch_shape
    has_decoder = not (facts.encoder_only or facts.num_classes) and hasattr(
        config, "decoder_layers"
    )
    decoder = f" + {config.decoder_layers} (decoder)" if has_decoder else ""
    settings = [
        ("system", f"`{facts.system}`{' (encoder only)' if facts.encoder_only else ''}"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("layers", f"{config.encoder_layers}{decoder}"),
        ("width, attention heads", f"{config.encoder_embed_dim}, {config.encoder_attention_heads}"),
        ("input", "16 kHz mono, log-mel with 128 bins every 10 ms"),
        ("patches", f"{shape.time} frames x {plural(shape.mel, 'mel bin')}"),
    ]
    if shape.overlaps:
        stride = f"{shape.time_stride} frames x {plural(shape.mel_stride, 'mel bin')}"
        settings.append(("stride of the patches", stride))
    if config.input_frames is not None:
        settings.append(("length of the input", f"{config.input_frames / 100:g} s"))
    ratio = getattr(config, "random_mask_prob", None)
    if facts.mask_type is not None and ratio is not None and not facts.encoder_only:
        masks = f"`{facts.mask_type}`, `random_mask_prob={ratio:g}`"
        settings.append(("masking in pretraining", masks))
    if facts.num_classes:
        settings.append(("classes", _classes(facts.num_classes, facts.labels, facts.independent)))
    return settings


def _training(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table about the training."""
    samples = training.get("clip_samples")
    rows = {
        "stage": training.get("stage"),
        "data": training.get("data"),
        "updates": _format(training.get("updates"), ",d"),
        "learning rate": _format(training.get("learning_rate"), "g"),
        "clips": f"of up to {samples / SAMPLE_RATE:g} s" if samples else None,
        "seed": training.get("seed"),
    }
    return [(name, _cell(value)) for name, value in rows.items() if value is not None]


def _format(value: Any, spec: str) -> str | None:
    return None if value is None else format(value, spec)


def _validation(training: Mapping[str, Any]) -> list[Score]:
    """Return the validation metric that a fine-tuned checkpoint records."""
    found = training.get("validation")
    if not isinstance(found, Mapping) or training.get("stage") != "fine-tuning":
        return []
    data = training.get("data", "")
    return [Score(str(data), str(found["split"]), str(found["metric"]), float(found["value"]))]


def _result(score: Score, task: str) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=_NOT_IN_ID.sub("_", score.data),
        dataset_name=score.data,
        dataset_split=score.split or None,
        metric_type=score.metric,
        metric_value=score.value,
    )


def _classes(count: int, labels: Sequence[str] | None, independent: bool) -> str:
    text = f"{count} ({'sigmoid' if independent else 'softmax'})"
    if not labels:
        return text
    names = "; ".join(labels[:MAX_CLASSES])  # many names contain commas
    return f"{text}: {_cell(names)}{'; ...' if count > MAX_CLASSES else ''}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")
