"""Compatibility patches: run s3prl 0.4.18 on newer releases of its dependencies.

Each patch adds only what is missing. This file can be removed once s3prl supports these releases
(its issue 575 is about torchaudio).
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
    """Apply all patches; repeated calls have no effect."""
    patch_audio_backend()
    patch_audio_files()
    patch_sox_effects()
    patch_hugging_face()
    patch_safe_loading()
    patch_catalyst()
    patch_librosa()


def patch_audio_backend() -> None:
    """Add ``torchaudio.set_audio_backend``, removed in 2.9, which s3prl calls at import."""
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None


def patch_audio_files() -> None:
    """Add ``torchaudio.info``, removed in 2.9, and replace a ``load`` that needs torchcodec."""
    if not hasattr(torchaudio, "info"):
        torchaudio.info = _info
    if not _can_import("torchcodec"):
        torchaudio.load = _load


def patch_sox_effects() -> None:
    """Add ``torchaudio.sox_effects``, removed in 2.9, with which most tasks read their files."""
    if hasattr(torchaudio, "sox_effects"):
        return
    module = _new_module("torchaudio.sox_effects")
    module.apply_effects_file = apply_effects_file
    module.apply_effects_tensor = apply_effects_tensor
    torchaudio.sox_effects = module


def patch_hugging_face() -> None:
    """Add ``HfFolder`` and ``Repository``, removed in 1.0; s3prl needs them to push to the hub."""
    import huggingface_hub

    use = _refuse(
        "pushing to or loading from the Hugging Face hub through s3prl", "huggingface_hub<1"
    )
    if not _has(huggingface_hub, "HfFolder"):
        huggingface_hub.HfFolder = SimpleNamespace(save_token=use, get_token=use)
    if not _has(huggingface_hub, "Repository"):
        huggingface_hub.Repository = use


def patch_safe_loading() -> None:
    """Allow ``argparse.Namespace``, part of s3prl's checkpoints, in ``torch.load`` (torch 2.6)."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])


def patch_catalyst() -> None:
    """Add a stand-in for catalyst, whose sampler speech_commands needs for several GPUs only."""
    if _can_import("catalyst"):
        return
    for name in ("catalyst", "catalyst.data"):
        _new_module(name).__path__ = []
    sampler = _new_module("catalyst.data.sampler")
    sampler.DistributedSamplerWrapper = _refuse("speech_commands on several GPUs", "catalyst")


def patch_librosa() -> None:
    """Add a stand-in for librosa, of which voxceleb1 imports one function."""
    if _can_import("librosa"):
        return
    _new_module("librosa").__path__ = []
    _new_module("librosa.util").find_files = _find_files


def apply_effects_file(
    path: str | os.PathLike[str],
    effects: Effects,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,  # noqa: A002, name as in torchaudio
) -> tuple[Tensor, int]:
    """Read a file and apply effects, as the function of this name in torchaudio < 2.9."""
    waveform, rate = _load(path)
    return apply_effects_tensor(waveform, rate, effects, channels_first=channels_first)


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Effects, channels_first: bool = True
) -> tuple[Tensor, int]:
    """Apply sox effects.

    Args:
        tensor: waveform, (channels, L) float in [-1, 1], or (L, channels).
        sample_rate: sample rate in Hz.
        effects: names and arguments of the effects: ``channels 1``, ``rate HZ``, ``gain DB`` and
            ``norm [DB]``. ``rate`` resamples with torchaudio's filter instead of sox's, and does
            nothing if the rate is the same.
        channels_first: whether the tensor is (channels, L).

    Returns:
        The resulting tensor and sample rate.

    Raises:
        ValueError: an effect or its arguments are not supported.
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
                    "norm are supported without it; use torchaudio<2.9"
                )
        waveform = waveform.clamp(-1, 1)  # sox clips after each effect
    return (waveform if channels_first else waveform.T), sample_rate


def _load(
    uri: Any,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    **unused: Any,
) -> tuple[Tensor, int]:
    """Replace ``torchaudio.load``: (channels, L) float32 in [-1, 1] and the sample rate."""
    samples, rate = soundfile.read(
        uri, frames=num_frames, start=frame_offset, dtype="float32", always_2d=True
    )
    waveform = torch.from_numpy(samples)
    return (waveform.T.contiguous() if channels_first else waveform), rate


def _info(uri: Any, **unused: Any) -> SimpleNamespace:
    """Replace ``torchaudio.info``: metadata from the header of a file."""
    header = soundfile.info(uri)
    return SimpleNamespace(
        sample_rate=header.samplerate,
        num_frames=header.frames,
        num_channels=header.channels,
        bits_per_sample=int("".join(filter(str.isdigit, header.subtype)) or 0),
        encoding=header.subtype,
    )


def _find_files(directory: str | os.PathLike[str], **unused: Any) -> list[str]:
    """Replace ``librosa.util.find_files``: sorted absolute paths of audio files in a folder."""
    kinds = {".aac", ".au", ".flac", ".m4a", ".mp3", ".ogg", ".wav"}
    root = Path(directory).absolute()
    return sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in kinds)


def _can_import(name: str) -> bool:
    """Return whether a package is installed, stand-ins of this file excluded."""
    return name not in _STAND_INS and find_spec(name) is not None


def _has(module: ModuleType, name: str) -> bool:
    """Return whether a module has an attribute, which may be imported lazily."""
    try:
        getattr(module, name)
    except (AttributeError, ImportError):
        return False
    return True


_STAND_INS: set[str] = set()


def _new_module(name: str) -> Any:
    """Return the stand-in module of this name, which can be imported; create it once."""
    if name not in _STAND_INS:
        module = ModuleType(name)
        # Other packages look for it with importlib, which needs a spec.
        module.__spec__ = ModuleSpec(name, loader=None)
        module.__dict__["__getattr__"] = lambda attribute: _missing(name, attribute)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        sys.modules[name] = module
        _STAND_INS.add(name)
    return sys.modules[name]


def _missing(module: str, attribute: str) -> Any:
    package = module.partition(".")[0]
    raise AttributeError(
        f"{module}.{attribute}: not part of the stand-in (mae_ast.superb.compat); install {package}"
    )


def _refuse(feature: str, needs: str) -> Callable[..., Any]:
    """Return a function that raises an error with the package to install."""

    def use(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{feature} needs another package: pip install '{needs}'")

    return use
