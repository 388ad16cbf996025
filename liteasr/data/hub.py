"""Data sets of the Hugging Face hub, and local copies of their Parquet files."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from liteasr.config import ConfigError, SourceConfig
from liteasr.data.rows import FEATURES, AudioFile, pick, transcript_column

__all__ = ["hub_identity", "is_mirror", "load_hub"]

_RENAMED = {"audio_length_s": "duration", "speaker_id": "speaker"}


def load_hub(
    source: SourceConfig, key: str, *, transcripts: bool = True
) -> datasets.Dataset | datasets.IterableDataset:
    """A split of a hub data set, or of a local folder with the Parquet files of one.

    A local folder holds ``<subset>/<split>-*.parquet``, ``<subset>/<split>/*.parquet`` or,
    without a subset, ``data/<split>-*.parquet`` or ``<split>-*.parquet``.

    ``id`` is ``hub://<path>/<subset>/<split>/<row>``. Rows of a stream have no numbers; theirs ends
    in the row's own name and a digest of the audio. Without ``transcripts`` they may be missing.

    Raises:
        ConfigError: If it cannot be opened, has no audio or no transcript, or no rows are left.
    """
    rows = _open(source, key)
    columns = list(rows.column_names or [])
    if "audio" not in columns:
        raise ConfigError(
            f"{key}.path: {source.path} has no column audio; "
            f"its columns are {', '.join(columns) or 'unknown'}"
        )
    text = transcript_column(columns, source, key, source.path, required=transcripts)
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    if isinstance(rows, datasets.IterableDataset):
        return _stream(rows, text, source)
    return _table(rows, text, source, key)


def hub_identity(source: SourceConfig) -> str:
    """What the ids of a hub source begin with; equal for sources that read the same split.

    Example:
        >>> hub_identity(SourceConfig(path="org/name", subset="clean", split="test"))
        'hub://org/name/clean/test'
    """
    local = Path(source.path).expanduser()
    path = str(local.resolve()) if local.is_dir() else source.path
    return "hub://" + "/".join([path, *([source.subset] if source.subset else []), source.split])


def is_mirror(folder: Path) -> bool:
    """Whether a local folder holds Parquet files where :func:`load_hub` looks for them."""
    return any(next(folder.glob(p), None) for p in ("*.parquet", "*/*.parquet", "*/*/*.parquet"))


def _open(source: SourceConfig, key: str) -> Any:
    local = Path(source.path).expanduser()
    if local.exists() or source.path.startswith((".", "/", "~")):
        files = _parquet_files(local, source, key)
        arguments: dict[str, Any] = {"path": "parquet", "data_files": {source.split: files}}
    else:
        arguments = {"path": source.path, "name": source.subset, "revision": source.revision}
    try:
        return datasets.load_dataset(**arguments, split=source.split, streaming=source.streaming)
    # Hub, network, builders and Arrow each have errors of their own.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        what = source.path if local.exists() else f"hub data set {source.path}"
        hint = "" if local.exists() else " (nor is there a folder of this name)"
        raise ConfigError(f"{key}.path: cannot open {what}{hint}: {reason}") from error


def _parquet_files(folder: Path, source: SourceConfig, key: str) -> list[str]:
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{key}.path: {source.path} {state}")
    bases = [folder / source.subset] if source.subset else [folder / "data", folder]
    for base in bases:
        for pattern in ("{}-*.parquet", "{}/*.parquet", "{}.parquet"):
            escaped = glob.escape(str(base / pattern.format(source.split)))
            files = sorted(glob.glob(escaped.replace("[*]", "*")))
            if files:
                # datasets takes them for patterns, too.
                return [glob.escape(file) for file in files]
    wanted = f"{source.subset}/{source.split}" if source.subset else f"data/{source.split}"
    files_there = (str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))
    there = sorted({re.sub(r"(-\d+-of-\d+)?\.parquet$", "", file) for file in files_there})
    raise ConfigError(
        f"{key}.path: {source.path} has no Parquet files {wanted}-*.parquet; "
        f"there are {', '.join(there[:12]) or 'none at all'}"
    )


def _table(
    rows: datasets.Dataset, text: str | None, source: SourceConfig, key: str
) -> datasets.Dataset:
    chosen = pick(len(rows), source, key)
    rows = rows.select(chosen)
    renamed = {old: new for old, new in _RENAMED.items() if new not in rows.column_names}
    renamed = {old: new for old, new in renamed.items() if old in rows.column_names}
    rows = rows.rename_columns(renamed)
    optional = [name for name in ("duration", "speaker") if name in rows.column_names]
    rows = rows.select_columns(
        ["audio", *([text] if text else []), *(name for name in optional if name != text)]
    )
    if text is None:
        rows = rows.add_column("text", [""] * len(rows))
    elif text != "text":
        rows = rows.rename_column(text, "text")
    prefix = hub_identity(source)
    return rows.add_column("id", [f"{prefix}/{number}" for number in chosen])


def _stream(
    rows: datasets.IterableDataset, text: str | None, source: SourceConfig
) -> datasets.IterableDataset:
    used = [name for name in ("audio", text, "id") if name in rows.column_names]
    rows = rows.select_columns(list(dict.fromkeys(used)))
    if source.skip:
        rows = rows.skip(source.skip)
    if source.limit is not None:
        rows = rows.take(source.limit)
    features = datasets.Features(FEATURES)
    rows = rows.map(
        partial(_stream_row, text=text, prefix=hub_identity(source)),
        remove_columns=rows.column_names,
        features=features,
    )
    if not source.skip and source.limit is None:
        return rows
    # Whoever shares out the files of a stream shares out the rows to skip and to take with them,
    # and they are others then. So it looks like a single file.
    return datasets.IterableDataset.from_generator(
        _rows_of, features=features, gen_kwargs={"rows": rows}
    )


def _rows_of(rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    yield from rows


def _stream_row(row: dict[str, Any], text: str | None, prefix: str) -> dict[str, Any]:
    audio: AudioFile = row["audio"] or AudioFile(path=None, bytes=None)
    content = audio["bytes"]
    digest = hashlib.sha256(content if content is not None else str(audio["path"]).encode())
    names: Sequence[Any] = (row.get("id"), audio["path"])
    name = next((str(one) for one in names if one not in (None, "")), "")
    return {
        "id": f"{prefix}/{name}#{digest.hexdigest()[:12]}",
        "audio": {"path": audio["path"], "bytes": content},
        "text": "" if text is None else row[text] or "",
    }
