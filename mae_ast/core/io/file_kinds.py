"""Recognise by content files that are not checkpoints: failed downloads, other formats."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_HEAD_BYTES = 4096
_LENGTH_BYTES = 8  # little-endian length of a safetensors header, stored before its JSON

GIT_LFS_POINTER = "a Git LFS pointer instead of the file ('git lfs pull' downloads the file)"
WEB_PAGE = "a web page (HTML), usually left by a failed download"
XML = "an XML document, usually a storage server's error message"
PLACEHOLDERS = frozenset({GIT_LFS_POINTER, WEB_PAGE, XML})  # what servers send instead of a file

# First bytes of a file and its description; the first matching pattern is used.
_FIRST_BYTES: tuple[tuple[bytes, str], ...] = (
    (rb"\Z", "an empty file"),
    (rb"version https://git-lfs\.github\.com", GIT_LFS_POINTER),
    (rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|title)\b", WEB_PAGE),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|Error)\b", XML),
    (rb"\x93NUMPY", "a NumPy array (.npy)"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes"),
    (rb"\x08\x01\x12", "a TensorFlow SavedModel"),
    (rb".{4}TFL3", "a TensorFlow Lite model"),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model"),
    (rb"GGUF", "a GGUF model"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "a compressed file; decompress it first"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!|.{257}ustar", "an archive; unpack it first"),
    (rb"RIFF|FORM|fLaC|OggS|ID3|\xff[\xf1-\xff]|.{4}ftyp|\x1aE\xdf\xa3", "an audio or video file"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
    (rb"%PDF-", "a PDF document"),
)
_PATTERNS = tuple((re.compile(first, re.DOTALL), kind) for first, kind in _FIRST_BYTES)
_TENSORFLOW_NAME = re.compile(r".+\.(index|meta|data-\d{5}-of-\d{5})")


def describe(path: Path) -> str | None:
    """Describe a file's type, with an article; ``None`` if it may be a PyTorch checkpoint.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for pattern, kind in _PATTERNS:
        if pattern.match(head):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _describe_zip(path)
    if _TENSORFLOW_NAME.fullmatch(path.name):
        return "part of a TensorFlow checkpoint"
    return _describe_text(head)


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins with a safetensors header, regardless of its name."""
    with path.open("rb") as file:
        head = file.read(_LENGTH_BYTES + 1)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return head[_LENGTH_BYTES:] == b"{" and length < path.stat().st_size


def _describe_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None  # truncated
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "a TorchScript archive; save the state_dict of its model instead"
    if "data.pkl" in inside:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)"
    return "a ZIP archive that torch.save did not write"


def _describe_text(head: bytes) -> str | None:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) - error.start > 3:  # more than one truncated character at the end
            return None
        text = head[: error.start].decode()
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    return "JSON" if text.lstrip().startswith(("{", "[")) else "a text file"
