"""Writing files so that what was there survives a failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["atomic_folder", "atomic_path", "recover", "write_text"]

_WRITERS = ("PytorchStreamWriter", "inline_container", "file write failed")
"""Words in the errors of torch's writer."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it there if the block succeeds.

    If the block fails (a full disk, an interrupt), the old file is as it was and nothing else is
    left.

    Args:
        path: File to be written.

    Yields:
        Path to write to, in the same folder.

    Raises:
        OSError: If the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _errors_of_writing(path):
            yield temporary
            _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Give a new folder beside ``folder``, and put it in its place if the block succeeds.

    Args:
        folder: Folder to be written; an old one is replaced only at the end.

    Yields:
        An empty folder to write into, in the same parent.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        with _errors_of_writing(folder):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _to_disk(file)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _to_disk(file: Path) -> None:
    """Wait until a file's content is on the disk: its name may be there sooner, at a power cut."""
    with file.open("rb") as content:
        os.fsync(content.fileno())


@contextmanager
def _errors_of_writing(path: Path) -> Iterator[None]:
    """Tell a full disk as what it is: torch and safetensors write with errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITERS):
            raise
        raise OSError(f"{path} cannot be written; is the disk full? ({error})") from error


def recover(folder: Path) -> None:
    """Put right what a process left that was killed while it wrote into a folder or one below it.

    A folder whose new content was not yet in place comes back; half-written files go.

    Args:
        folder: Where :func:`atomic_path` and :func:`atomic_folder` were used.
    """
    for old in list(folder.rglob(".*.old")):
        # As atomic_folder names it: a dot, the name, the process, the ending.
        place = old.with_name(old.name[1:].rsplit(".", 2)[0])
        if not place.exists():
            os.replace(old, place)
    for left in [*folder.rglob(".*.old"), *folder.rglob(".*.tmp")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
