"""What s3prl 0.4.18 expects of its dependencies and their newer releases no longer have.

Each bridge fills in what is missing and leaves alone what is there. All of it can go once s3prl
itself runs on these releases (its issue 575 is about torchaudio).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import soundfile
import torch
import torchaudio
from torch import Tensor
from torchaudio.functional import resample

Effects = Sequence[Sequence[str]]


def install() -> None:
    """Install all bridges; a second time changes nothing."""
    bridge_audio_backend()
    bridge_audio_files()
    bridge_sox_effects()
    bridge_hugging_face()
    bridge_safe_loading()
    bridge_catalyst()
    bridge_librosa()


def bridge_audio_backend() -> None:
    """``torchaudio.set_audio_backend``, gone in 2.9, is called at import; there is one backend."""
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None


def bridge_audio_files() -> None:
    """``torchaudio.info`` is gone in 2.9, and ``load`` wants torchcodec: both from soundfile."""
    if not hasattr(torchaudio, "info"):
        torchaudio.info = _info
    if not _can_import("torchcodec"):
        torchaudio.load = _load


def bridge_sox_effects() -> None:
    """``torchaudio.sox_effects``, gone in 2.9, is how most tasks read their files."""
    if hasattr(torchaudio, "sox_effects"):
        return
    module = _new_module("torchaudio.sox_effects")
    module.apply_effects_file = apply_effects_file
    module.apply_effects_tensor = apply_effects_tensor
    torchaudio.sox_effects = module


def bridge_hugging_face() -> None:
    """``HfFolder`` and ``Repository``, gone in 1.0, are imported, and used to push to the hub."""
    import huggingface_hub

    use = _refuse(
        "pushing to or loading from the Hugging Face hub through s3prl", "huggingface_hub<1"
    )
    if not _has(huggingface_hub, "HfFolder"):
        huggingface_hub.HfFolder = SimpleNamespace(save_token=use, get_token=use)
    if not _has(huggingface_hub, "Repository"):
        huggingface_hub.Repository = use


def bridge_safe_loading() -> None:
    """Since torch 2.6 ``torch.load`` admits no classes; s3prl's files hold an argparse one."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])


def bridge_catalyst() -> None:
    """speech_commands imports a sampler of catalyst (last release 2022) for several GPUs only."""
    if _can_import("catalyst"):
        return
    for name in ("catalyst", "catalyst.data"):
        _new_module(name).__path__ = []
    sampler = _new_module("catalyst.data.sampler")
    sampler.DistributedSamplerWrapper = _refuse("speech_commands on several GPUs", "catalyst")


def bridge_librosa() -> None:
    """voxceleb1 imports one function of librosa, and does not call it."""
    if _can_import("librosa"):
        return
    _new_module("librosa").__path__ = []
    _new_module("librosa.util").find_files = _find_files


def apply_effects_file(
    path: str | os.PathLike[str],
    effects: Effects,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,  # noqa: A002, torchaudio's name
) -> tuple[Tensor, int]:
    """Read a file and apply effects, as torchaudio's function of this name did."""
    waveform, rate = _load(path)
    return apply_effects_tensor(waveform, rate, effects, channels_first=channels_first)


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Effects, channels_first: bool = True
) -> tuple[Tensor, int]:
    """Apply effects of sox.

    Args:
        tensor: (channels, L) float in [-1, 1], or (L, channels).
        sample_rate: in Hz.
        effects: each a name and its arguments: ``channels 1``, ``rate HZ``, ``gain DB`` and
            ``norm [DB]``. At the rate it has, ``rate`` changes nothing; else its filter is
            torchaudio's, not sox's.
        channels_first: whether the tensor is.

    Returns:
        The new tensor and sample rate.

    Raises:
        ValueError: there is no bridge for an effect or its arguments.
    """
    waveform = tensor if channels_first else tensor.T
    for name, *arguments in effects:
        match name, arguments:
            case "channels", ["1"]:
                waveform = waveform.mean(dim=0, keepdim=True)
            case "rate", [rate]:
                waveform = resample(waveform, sample_rate, int(float(rate)))
                sample_rate = int(float(rate))
            case "gain", [decibel] if not decibel.startswith("-") or decibel[1:2].isdigit():
                waveform = waveform * 10 ** (float(decibel) / 20)
            case "norm", [] | [_]:
                peak = waveform.abs().max().clamp(min=torch.finfo(waveform.dtype).tiny)
                waveform = waveform * (10 ** (float(*arguments) / 20) / peak)
            case _:
                raise ValueError(
                    f"sox effect {' '.join([name, *arguments])!r}: torchaudio "
                    f"{torchaudio.__version__} has no sox, and only channels 1, rate, gain DB and "
                    "norm are bridged; use torchaudio<2.9 for it"
                )
        waveform = waveform.clamp(-1, 1)  # sox clips after each
    return (waveform if channels_first else waveform.T), sample_rate


def _load(
    uri: Any,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    **unused: Any,
) -> tuple[Tensor, int]:
    """``torchaudio.load``: (channels, L) float32 in [-1, 1] and the sample rate."""
    samples, rate = soundfile.read(
        uri, frames=num_frames, start=frame_offset, dtype="float32", always_2d=True
    )
    waveform = torch.from_numpy(samples)
    return (waveform.T.contiguous() if channels_first else waveform), rate


def _info(uri: Any, **unused: Any) -> SimpleNamespace:
    """``torchaudio.info``: what a file's header says."""
    header = soundfile.info(uri)
    return SimpleNamespace(
        sample_rate=header.samplerate,
        num_frames=header.frames,
        num_channels=header.channels,
        bits_per_sample=int("".join(filter(str.isdigit, header.subtype)) or 0),
        encoding=header.subtype,
    )


def _find_files(directory: str | os.PathLike[str], **unused: Any) -> list[str]:
    """``librosa.util.find_files``: absolute paths of the audio below a folder, sorted."""
    kinds = {".aac", ".au", ".flac", ".m4a", ".mp3", ".ogg", ".wav"}
    root = Path(directory).absolute()
    return sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in kinds)


def _can_import(name: str) -> bool:
    """Whether a package is installed and none of this file's making."""
    return name not in _MADE and find_spec(name) is not None


def _has(module: ModuleType, name: str) -> bool:
    """Whether a module that imports its parts late has one."""
    try:
        getattr(module, name)
    except (AttributeError, ImportError):
        return False
    return True


_MADE: set[str] = set()


def _new_module(name: str) -> Any:
    """Get a module of this name that can be imported; made once."""
    if name not in _MADE:
        module = ModuleType(name)
        # Others ask importlib whether a package is there, and want a spec then.
        module.__spec__ = ModuleSpec(name, loader=None)
        module.__dict__["__getattr__"] = lambda attribute: _missing(name, attribute)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        sys.modules[name] = module
        _MADE.add(name)
    return sys.modules[name]


def _missing(module: str, attribute: str) -> Any:
    package = module.partition(".")[0]
    raise AttributeError(
        f"{module}.{attribute} is not bridged (mae_ast.superb.compat); install {package} itself"
    )


def _refuse(what: str, needs: str) -> Callable[..., Any]:
    """A function that says which package would be needed."""

    def use(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{what} needs another package: pip install '{needs}'")

    return use
