"""Model card (README.md) of a model on the Hugging Face hub, filled in from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mae_ast.core.io.plural import plural
from mae_ast.core.models.registry import SYSTEMS, system_name

MAX_CLASSES = 10  # class names listed
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
## Use

```python
import mae_ast

model = mae_ast.load("FOLDER_OR_HUB_ID")
features = model.extract_features(["speech.flac", "music.mp3"])
features.hidden_states[-1]  # last layer, (recordings, tokens, {{ width }})
features.pooled[:, -1]  # its mean over time
```

Recordings of any length, sample rate and number of channels are accepted.
{% if num_classes %}
`mae-ast predict FOLDER speech.flac` prints the most likely classes.
{% endif %}"""


def card_fields(model: Any) -> dict[str, Any]:
    """Return the fields of :data:`TEMPLATE` for a :class:`mae_ast.hub.load.HubModel`."""
    config = model.config
    name = system_name(config)
    num_classes = 0 if model.encoder_only else getattr(config, "num_classes", 0)
    kind = "classifies audio" if num_classes else "extracts features of audio"
    return {
        "title": SYSTEMS[name].title or name,
        "summary": f"A spectrogram transformer that {kind}, for the Python package `mae-ast`.",
        "settings": _settings(model, name, num_classes),
        "width": config.encoder_embed_dim,
        "num_classes": num_classes,
    }


def _settings(model: Any, name: str, num_classes: int) -> list[tuple[str, str]]:
    config, shape = model.config, model.config.patch_shape
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    has_decoder = not model.encoder_only and hasattr(config, "decoder_layers")
    decoder = f" + {config.decoder_layers} (decoder)" if has_decoder else ""
    settings = [
        ("system", f"`{name}`{' (encoder only)' if model.encoder_only else ''}"),
        ("parameters", f"{num_parameters:,}"),
        ("layers", f"{config.encoder_layers}{decoder}"),
        ("width, attention heads", f"{config.encoder_embed_dim}, {config.encoder_attention_heads}"),
        ("input", "16 kHz mono, log-mel with 128 bins every 10 ms"),
        ("patches", f"{shape.time} frames x {plural(shape.mel, 'mel bin')}"),
    ]
    if config.input_frames is not None:
        settings.append(("length of the input", f"{config.input_frames / 100:g} s"))
    ratio = getattr(config, "random_mask_prob", None)
    if model.mask_type is not None and ratio is not None and not model.encoder_only:
        masks = f"`{model.mask_type}`, `random_mask_prob={ratio:g}`"
        settings.append(("masking in pretraining", masks))
    if num_classes:
        settings.append(("classes", _classes(num_classes, model.labels, model.independent)))
    return settings


def _classes(count: int, labels: Sequence[str] | None, independent: bool) -> str:
    text = f"{count} ({'sigmoid' if independent else 'softmax'})"
    if not labels:
        return text
    names = ", ".join(labels[:MAX_CLASSES]).replace("|", "\\|")
    return f"{text}: {names}{', ...' if count > MAX_CLASSES else ''}"
