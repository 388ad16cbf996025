"""Small sets of speech and a processor, made on the spot."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from speech_files import RATE, make_processor, noise
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from liteasr.config import DataConfig
from liteasr.data import SpeechDataModule


@pytest.fixture(scope="session")
def processor():
    """English-only, 80 bins, windows of 30 s."""
    return make_processor()


@pytest.fixture(scope="session")
def short_processor():
    """English-only, windows of 1 s, so that long audio is quick to make."""
    return make_processor(chunk_length=1)


@pytest.fixture(scope="session")
def multilingual_processor():
    return make_processor(tuple(LANGUAGES), chunk_length=1)


@pytest.fixture
def make_folder(tmp_path):
    """Write an audiofolder set: seconds of each file → its path."""

    def make(name, seconds, texts=None, broken=(), **columns):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = []
        for index, duration in enumerate(seconds):
            file = folder / f"{index:02}.flac"
            soundfile.write(file, noise(duration, seed=index), RATE)
            if index in broken:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            text = f"word {index}" if texts is None else texts[index]
            extra = {key: values[index] for key, values in columns.items()}
            lines.append(json.dumps({"file_name": file.name, "text": text, **extra}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def make_mirror(tmp_path, monkeypatch):
    """Write Parquet files as in a clone of a hub repository: rows of each file → its folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Else every shuffled stream ends with five seconds of waiting for Arrow's threads.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)

    def make(files, text="text", typed=False, folder="mirror"):
        for name, rows in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist(
                [
                    {"audio": {"bytes": content, "path": f"{index}.flac"}, text: transcript}
                    for index, (content, transcript) in enumerate(rows)
                ]
            )
            if typed:
                features = {"audio": {"_type": "Audio", "sampling_rate": RATE}}
                features[text] = {"dtype": "string", "_type": "Value"}
                info = json.dumps({"info": {"features": features}})
                table = table.replace_schema_metadata({"huggingface": info})
            pq.write_table(table, path, row_group_size=2)
        return tmp_path / folder

    return make


@pytest.fixture
def make_datamodule(short_processor):
    def make(processor=None, **config):
        options = {
            name: config.pop(name)
            for name in (
                "language",
                "task",
                "seed",
                "long_form",
                "normalizer",
                "max_labels",
                "train_transcripts",
            )
            if name in config
        }
        data = DataConfig(**{"num_workers": 0, **config})
        options = {"normalizer": str.lower, **options}
        return SpeechDataModule(data, processor or short_processor, **options)

    return make
