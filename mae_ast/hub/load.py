"""``mae_ast.load(source)``: models from files, URLs and the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from mae_ast.core.checkpoints import hf_ast_config, hub_files
from mae_ast.core.checkpoints.layout import Checkpoint
from mae_ast.core.checkpoints.reader import (
    CheckpointError,
    build_with_weights,
    check_weights,
    read_checkpoint,
)
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.inference import features
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.near_files import near_names, suggestion
from mae_ast.core.models import encoder
from mae_ast.core.models.config import EncoderConfig, PretrainingConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import SYSTEMS, build_encoder, system_name
from mae_ast.hub.download import cache_folder, download, name_from_url
from mae_ast.hub.model_card import CardFacts, model_card, usage_here
from mae_ast.hub.offline import cache_if_unreachable, offline_advice
from mae_ast.hub.registry import RELEASED
from mae_ast.hub.sources import is_path

ENCODER_ONLY = (
    "an encoder only, from a fine-tuned checkpoint; the pretraining or AST heads are missing"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HubModel(PyTorchModelHubMixin, Encoder):
    """Pretrained model of any system: a network with feature extraction and the Hugging Face hub.

    Models are of a class derived from this one and the system's network, see :func:`hub_class`;
    ``PretrainedMaeAst`` is that of ``mae_ast``, and so on. ``save_pretrained(folder)``,
    ``from_pretrained(folder or hub id)`` and ``push_to_hub(id)`` are huggingface_hub's, with
    ``model.safetensors`` and ``config.json``.

    Args:
        config: configuration of the system.
        mask_type: type of mask in pretraining; ``None`` for models trained without, such as AST.
        labels: class names, if known.
        encoder_only: without pretraining modules, as :func:`encoder.encoder_only` leaves it.
        independent: a classifier's scores are sigmoids (multi-label); else a softmax over all
            classes.
        training: what is recorded about the training, as in
            :class:`mae_ast.core.checkpoints.layout.Checkpoint`.
    """

    config: Any

    def __init__(
        self,
        config: Any,
        mask_type: str | None = None,
        labels: Sequence[str] | None = None,
        encoder_only: bool = False,
        independent: bool = True,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config)  # the network is the next base
        self.mask_type = mask_type
        self.labels = None if labels is None else tuple(labels)
        self.encoder_only = encoder_only
        self.independent = independent
        self.training_record = dict(training or {})
        if encoder_only:
            encoder.encoder_only(self)
        self._hub_mixin_config = hub_files.config_dict(
            config, mask_type, self.labels, encoder_only, independent, self.training_record
        )

    extract_features = features.extract_features

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card.

        Args:
            args: not used.
            kwargs: as in :func:`mae_ast.hub.model_card.model_card`, such as ``license`` and
                ``scores``; others replace fields of its template. ``push_to_hub`` and
                ``save_pretrained`` take them as ``model_card_kwargs``.
        """
        facts = self.card_facts()
        tags = ("model_hub_mixin", "pytorch_model_hub_mixin")
        return model_card(facts, usage_here(facts), **{"tags": tags, **kwargs})

    def card_facts(self) -> CardFacts:
        """Return what a model card says about the model."""
        return CardFacts(
            self.config,
            sum(parameter.numel() for parameter in self.parameters()),
            self.training_record,
            0 if self.encoder_only else getattr(self.config, "num_classes", 0),
            self.labels,
            self.independent,
            self.encoder_only,
            self.mask_type,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        write_safetensors(self.state_dict(), save_directory / hub_files.WEIGHTS_FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubModel:
        is_folder = Path(model_id).is_dir()
        return from_file(model_id if is_folder else hub_file(model_id, **options))


Pretrained = HubModel


def hub_class(name: str) -> Any:
    """Return the class of a system's pretrained models: :class:`HubModel` and the network.

    Args:
        name: a key of ``SYSTEMS``.
    """
    network: Any = SYSTEMS[name].network
    return _hub_class(name, network)


def __getattr__(name: str) -> Any:
    """Return ``PretrainedMaeAst``, the class of the system ``mae_ast``, and so on."""
    for system in SYSTEMS:
        if name == _class_name(system):
            return hub_class(system)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _hub_class(name: str, network: Any) -> type[HubModel]:
    system = SYSTEMS[name]
    return types.new_class(
        _class_name(name),
        (HubModel, network),
        {},
        lambda body: body.update(
            __module__=__name__, __doc__=f"Pretrained {system.title or name}."
        ),
    )


def _class_name(system: str) -> str:
    return "Pretrained" + "".join(word.capitalize() for word in system.split("_"))


def write_safetensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights to a safetensors file, with the permissions given by the umask.

    (``save_file`` alone ignores the umask.)

    Raises:
        OSError: the file could not be written.
    """
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    with atomic_write(path) as part:
        save_file(contiguous, part, {"format": "pt"})


def load(source: str | os.PathLike[str]) -> Pretrained:
    """Load a model of any system with plain PyTorch.

    Args:
        source: name of a released model; a file (a checkpoint of this project, a released MAE-AST,
            SSAST, AST or Audio-MAE, or safetensors); the folder of a run; a folder written by
            ``save_pretrained`` or by transformers' ``ASTForAudioClassification``; a URL; or an id
            on the Hugging Face hub.

    Returns:
        The model in eval mode, on the CPU, in float32 regardless of the dtype in training. For a
        fine-tuned checkpoint it is the encoder; for AST it is the full classifier.
        :func:`mae_ast.finetune.checkpoint.load_finetuned` reads classifiers.

    Raises:
        ValueError: the source is none of these.
        FileNotFoundError: there is no such file, and no model of that name on the hub.
        CheckpointError: the file is not a checkpoint, or its weights do not match the model.
        DownloadError: the file could not be downloaded.
    """
    return from_file(locate(source))


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the file or folder of a model, downloaded if necessary.

    Args:
        source: as in :func:`load`.

    Raises:
        ValueError, FileNotFoundError, DownloadError: as :func:`load`.
    """
    text = os.fspath(source)
    if text in RELEASED:
        return released_file(text)
    if text.startswith(("http://", "https://")):
        return _from_url(text)
    path = Path(text).expanduser()
    if text and path.exists():
        return path
    if not isinstance(source, str) or is_path(text):
        raise FileNotFoundError(f"{text}: no such checkpoint{suggestion(path)}")
    if _HUB_ID.fullmatch(text):
        return _from_hub(text)
    near = get_close_matches(text, RELEASED)
    hint = f"; did you mean {near[0]}?" if near else near_names(text)
    raise ValueError(
        f"{text!r} is not a file, URL, hub id (user/model) or released model; the released models "
        f"are {', '.join(RELEASED)}{hint}"
    )


def released_file(name: str) -> Path:
    """Return the cached file of a released model, which is downloaded if necessary.

    Raises:
        DownloadError: the file could not be downloaded.
    """
    model = RELEASED[name]
    return download(model.urls, model.file_name, model.sha256)


def load_masked(source: str | os.PathLike[str]) -> Pretrained:
    """Load a model that reconstructs masked patches; see :func:`load`.

    Raises:
        ValueError: the model is of another kind; or as :func:`load`.
    """
    model = load(source)
    kinds = [
        name for name, system in SYSTEMS.items() if issubclass(system.config, PretrainingConfig)
    ]
    if (kind := system_name(model.config)) not in kinds:
        raise ValueError(
            f"{os.fspath(source)}: a model of kind {kind!r} cannot reconstruct masked patches; "
            f"{', '.join(map(repr, kinds))} can"
        )
    if model.encoder_only:
        raise ValueError(f"{os.fspath(source)}: {ENCODER_ONLY}")
    return model


def read_encoder(source: str | os.PathLike[str]) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Read the encoder of a pretrained or fine-tuned model, without building the model.

    Args:
        source: as in :func:`load`.

    Returns:
        Its configuration, with the input statistics that evaluation uses, and the other weights,
        in float32.

    Raises:
        ValueError, FileNotFoundError, CheckpointError, DownloadError: as :func:`load`.
    """
    path = locate(source)
    found = read_checkpoint(path)
    weights = {name: v for name, v in found.weights.items() if name.split(".")[0] in encoder.PARTS}
    with torch.device("meta"):
        own = build_encoder(found.config)
    check_weights(own.state_dict(), weights, path)
    config = dataclasses.replace(found.config, input_stats="fixed")
    given = InputNorm(False, config.input_mean, config.input_std)
    mean, variance = (weights[f"batch_norm.running_{of}"].float() for of in ("mean", "var"))
    if not (torch.equal(given.running_mean, mean) and torch.equal(given.running_var, variance)):
        std = variance.double().sqrt().item()
        config = dataclasses.replace(config, input_mean=mean.item(), input_std=std)
    return config, {n: v.float() for n, v in weights.items() if not n.startswith("batch_norm.")}


def load_encoder(source: str | os.PathLike[str]) -> Encoder:
    """Load the encoder of a model, in eval mode and float32; arguments as in :func:`load`.

    Layerdrop is off, so that all layers compute features in training mode as well.
    """
    config, weights = read_encoder(source)
    config = dataclasses.replace(config, precision="float32", encoder_layerdrop=0.0)
    norm = InputNorm(False, config.input_mean, config.input_std).state_dict()
    weights |= {f"batch_norm.{name}": value for name, value in norm.items()}
    return build_with_weights(lambda: build_encoder(config), weights, source)


def from_file(path: str | os.PathLike[str]) -> Pretrained:
    """Load a model from a file or folder."""
    return from_checkpoint(read_checkpoint(path), path)


def from_checkpoint(found: Checkpoint, path: str | os.PathLike[str]) -> Pretrained:
    """Build a model from a checkpoint read from ``path``."""
    kind = hub_class(system_name(found.config))
    model: Pretrained = build_with_weights(
        lambda: kind(
            found.config,
            found.mask_type,
            found.labels,
            found.encoder_only,
            found.independent,
            found.training,
        ),
        found.weights,
        path,
    )
    model.precision = "float32"  # for equal features on every machine
    return model


def _from_url(url: str) -> Path:
    """Return the cached file of a URL; for safetensors, fetch ``config.json`` as well."""
    parts = urlsplit(url)
    name = name_from_url(url)
    if not parts.path.endswith(".safetensors"):
        return download([url], name)
    folder = cache_folder() / Path(name).stem
    config_path = f"{parts.path.rpartition('/')[0]}/{hub_files.CONFIG_FILE}"
    config_url = urlunsplit(parts._replace(path=config_path))
    download([config_url], hub_files.CONFIG_FILE, None, folder)
    return download([url], hub_files.WEIGHTS_FILE, None, folder)


def hub_file(model_id: str, **options: Any) -> Path:
    """Return the cached weights file of a model on the Hugging Face hub, beside its description.

    Args:
        model_id: ``user/model``.
        options: of ``huggingface_hub.hf_hub_download``, such as ``revision``; others are ignored.

    Raises:
        FileNotFoundError: the model lacks a file.
        Exception: of huggingface_hub.
    """
    known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
    hub_options = {key: options[key] for key in known if key in options}

    def fetch(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(model_id, name, **hub_options))
        except LocalEntryNotFoundError:
            raise  # offline: unknown whether the hub has the file
        except EntryNotFoundError:
            return None

    if (config := fetch(hub_files.CONFIG_FILE)) is None:
        raise FileNotFoundError(f"{model_id}: has no {hub_files.CONFIG_FILE} on the hub")
    if hf_ast_config.is_known(hub_files.read_json(config)):
        fetch(hub_files.PREPROCESSOR_FILE)
    path = fetch(hub_files.WEIGHTS_FILE) or fetch(hub_files.TORCH_WEIGHTS_FILE)
    if path is None:
        raise FileNotFoundError(f"{model_id}: has no {hub_files.WEIGHTS_FILE} on the hub")
    return path


def _from_hub(model_id: str) -> Path:
    with cache_if_unreachable() as offline:
        try:
            return hub_file(model_id)
        except Exception as error:  # network, hub or cache errors, of many classes
            is_about_file = isinstance(error, (CheckpointError, FileNotFoundError))
            if is_about_file and not isinstance(error, LocalEntryNotFoundError):  # else: offline
                raise
            reason = first_line(error)
            if offline:
                reason = f"{offline}; {offline_advice()}"
            raise FileNotFoundError(
                f"{model_id}: no such file{near_names(model_id)}, and not available from "
                f"the Hugging Face hub ({reason})"
            ) from error
