"""Models to use: ``mae_ast.load(source)`` from anywhere, features, and Hugging Face's hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from mae_ast.core.checkpoints import reader
from mae_ast.core.checkpoints.reader import Checkpoint, load_weights, read_checkpoint
from mae_ast.core.inference import features
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.near_files import near_names, suggestion
from mae_ast.core.models import encoder
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.encoder import Encoder, Vit
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.registry import system_name
from mae_ast.core.models.ssast import Ssast
from mae_ast.hub.download import cache_folder, download, name_from_url
from mae_ast.hub.model_card import TEMPLATE, card_fields
from mae_ast.hub.offline import cache_if_unreachable, offline_advice
from mae_ast.hub.registry import RELEASED
from mae_ast.hub.sources import is_path

ENCODER_ALONE = (
    "an encoder alone, as fine-tuned files hold it; heads of pretraining, or of AST, are not there"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HubModel(
    PyTorchModelHubMixin,
    library_name="mae-ast",
    pipeline_tag="feature-extraction",
    tags=["audio", "spectrogram-transformer"],
    model_card_template=TEMPLATE,
):
    """A model, how it was trained, and what people do with it; first base of each system's class.

    ``save_pretrained(folder)``, ``from_pretrained(folder or hub id)`` and ``push_to_hub(id)`` are
    huggingface_hub's: ``model.safetensors`` and ``config.json``.

    Args:
        config: what it is made of.
        mask_type: the masking it was trained with; ``None``: with none, as AST.
        labels: what a classifier's outputs are called, where that is known.
        encoder_only: without what serves pretraining alone, as :func:`encoder.encoder_only` has it.
        independent: a classifier's scores are sigmoids, each class by itself; else a softmax.
    """

    def __init__(
        self,
        config: Any,
        mask_type: str | None = None,
        labels: Sequence[str] | None = None,
        encoder_only: bool = False,
        independent: bool = True,
    ) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # of the network, which comes next
        self.mask_type = mask_type
        self.labels = None if labels is None else tuple(labels)
        self.encoder_only = encoder_only
        self.independent = independent
        if encoder_only:
            encoder.encoder_only(cast(Encoder, self))
        self._hub_mixin_config = reader.config_dict(
            config, mask_type, self.labels, encoder_only, independent
        )

    extract_features = features.extract_features

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the README.md of the hub; keyword arguments replace fields of its template."""
        return super().generate_model_card(*args, **{**card_fields(self), **kwargs})

    def _save_pretrained(self, save_directory: Path) -> None:
        state = cast(nn.Module, self).state_dict()
        weights = {name: value.contiguous() for name, value in state.items()}
        write_safetensors(weights, save_directory / reader.WEIGHTS_FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Pretrained:
        if Path(model_id).is_dir():
            return from_file(model_id)
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        of_hub = {key: options[key] for key in known if key in options}

        def fetch(name: str) -> str | None:
            try:
                return str(hf_hub_download(model_id, name, **of_hub))
            except LocalEntryNotFoundError:
                raise  # no network, which says nothing about the hub
            except EntryNotFoundError:
                return None

        if (config := fetch(reader.CONFIG_FILE)) is None:
            raise FileNotFoundError(f"{model_id}: has no {reader.CONFIG_FILE} on the hub")
        if reader.is_hugging_face(config):
            fetch(reader.PREPROCESSOR_FILE)
        path = fetch(reader.WEIGHTS_FILE) or fetch(reader.TORCH_WEIGHTS_FILE)
        if path is None:
            raise FileNotFoundError(f"{model_id}: has no {reader.WEIGHTS_FILE} on the hub")
        return from_file(path)


class PretrainedMaeAst(
    HubModel,
    MaeAst,
    tags=["masked-autoencoder"],
    paper_url="https://arxiv.org/abs/2203.16691",
):
    """MAE-AST, to use."""

    mask_type: str


class PretrainedSsast(
    HubModel, Ssast, tags=["ssast"], paper_url="https://arxiv.org/abs/2110.09784"
):
    """SSAST, to use."""

    mask_type: str


class PretrainedAst(HubModel, Ast, tags=["ast"], paper_url="https://arxiv.org/abs/2104.01778"):
    """AST, to use."""


class PretrainedAudioMae(
    HubModel,
    AudioMae,
    tags=["masked-autoencoder", "audio-mae"],
    paper_url="https://arxiv.org/abs/2207.06405",
):
    """Audio-MAE, to use."""

    mask_type: str


class PretrainedVit(HubModel, Vit):
    """The encoder that AST and SSAST share, to use."""


PretrainedMasked = PretrainedMaeAst | PretrainedSsast | PretrainedAudioMae
Pretrained = PretrainedMasked | PretrainedAst | PretrainedVit
CLASSES: dict[str, Any] = {
    "mae_ast": PretrainedMaeAst,
    "ssast": PretrainedSsast,
    "ast": PretrainedAst,
    "audio_mae": PretrainedAudioMae,
    "vit": PretrainedVit,
}


def write_safetensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous weights to a file with the mode given by the umask, unlike the library.

    Raises:
        OSError: it could not be written.
    """
    with atomic_write(path) as part:
        save_file(dict(weights), part, {"format": "pt"})


def load(source: str | os.PathLike[str]) -> Pretrained:
    """Load a model of any system with plain PyTorch.

    Args:
        source: a released model's name, a file (of this project's training, in the layout of the
            released MAE-AST, SSAST, AST or Audio-MAE, or safetensors), the folder of a run, a
            folder that ``save_pretrained`` or transformers' ``ASTForAudioClassification`` wrote, a
            URL, or an id on the Hugging Face hub.

    Returns:
        In eval mode, on the CPU, in float32 whatever it was trained in. Of what was fine-tuned here
        the encoder, but all of AST; :func:`mae_ast.finetune.checkpoint.load_finetuned` reads
        classifiers.

    Raises:
        ValueError: the source is of none of these kinds.
        FileNotFoundError: there is no such file, and nothing of that name on the hub.
        CheckpointError: the file is no checkpoint, or its weights do not fit its model.
        DownloadError: it could not be downloaded.
    """
    text = os.fspath(source)
    if text in RELEASED:
        return from_file(released_file(text))
    if text.startswith(("http://", "https://")):
        return from_file(_from_url(text))
    path = os.path.expanduser(text)
    if os.path.exists(path):
        return from_file(path)
    if not isinstance(source, str) or is_path(text):
        raise FileNotFoundError(f"{text}: no such checkpoint{suggestion(path)}")
    if _HUB_ID.fullmatch(text):
        return _from_hub(text)
    near = get_close_matches(text, RELEASED)
    hint = f"; did you mean {near[0]}?" if near else near_names(text)
    raise ValueError(
        f"{text!r} is not a file, URL, hub id (user/model) or released model; these are "
        f"{', '.join(RELEASED)}{hint}"
    )


def released_file(name: str) -> Path:
    """The cached file of a released model, downloaded where it is not there.

    Raises:
        DownloadError: it could not be.
    """
    model = RELEASED[name]
    return download(model.urls, model.file_name, model.sha256)


def load_masked(source: str | os.PathLike[str]) -> PretrainedMasked:
    """:func:`load` for models that rebuild what a mask hides.

    Raises:
        ValueError: it is a model of another kind; or as :func:`load`.
    """
    model = load(source)
    if not isinstance(model, PretrainedMasked):
        kinds = [name for name, kind in CLASSES.items() if issubclass(kind, PretrainedMasked)]
        raise ValueError(
            f"{os.fspath(source)}: a model of kind {system_name(model.config)!r} rebuilds nothing; "
            f"{', '.join(map(repr, kinds))} do"
        )
    if model.encoder_only:
        raise ValueError(f"{os.fspath(source)}: {ENCODER_ALONE}")
    return model


def from_file(path: str | os.PathLike[str]) -> Pretrained:
    """:func:`load` for files and folders only."""
    return from_checkpoint(read_checkpoint(path), path)


def from_checkpoint(found: Checkpoint, path: str | os.PathLike[str]) -> Pretrained:
    """A model of what was read from ``path``."""
    kind = CLASSES[system_name(found.config)]
    empty = kind(found.config, found.mask_type, found.labels, found.encoder_only, found.independent)
    model: Pretrained = load_weights(empty, found, path)
    model.precision = "float32"  # features that are alike on every machine
    return model


def _from_url(url: str) -> Path:
    """The cached file of an address; beside safetensors lies the description of the model."""
    parts = urlsplit(url)
    name = name_from_url(url)
    if not parts.path.endswith(".safetensors"):
        return download([url], name)
    folder = cache_folder() / Path(name).stem
    description = f"{parts.path.rpartition('/')[0]}/{reader.CONFIG_FILE}"
    beside = urlunsplit(parts._replace(path=description))
    download([beside], reader.CONFIG_FILE, None, folder)
    return download([url], reader.WEIGHTS_FILE, None, folder)


def _from_hub(model_id: str) -> Pretrained:
    with cache_if_unreachable() as offline:
        try:
            return cast(Pretrained, HubModel.from_pretrained(model_id))
        except Exception as error:  # of the network, the hub, or its cache: of many classes
            of_a_file = isinstance(error, (reader.CheckpointError, FileNotFoundError))
            if of_a_file and not isinstance(error, LocalEntryNotFoundError):  # that is: no network
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if offline:
                reason = f"{offline}; {offline_advice()}"
            raise FileNotFoundError(
                f"{model_id}: no such file{near_names(model_id)}, and not to be had from the "
                f"Hugging Face hub ({reason})"
            ) from error
