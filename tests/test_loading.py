import json
import shutil

import pytest
import torch
from speech_files import make_processor
from transformers import BertConfig, WhisperForConditionalGeneration

from liteasr import load
from liteasr.config import ConfigError


@pytest.fixture
def copy(real_model, tmp_path):
    """A copy of the real checkpoint that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(real_model, folder)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def test_loads_the_real_checkpoint(real_model):
    model, processor = load(str(real_model))
    assert type(model) is WhisperForConditionalGeneration
    assert model.dtype == torch.float32
    assert not model.training
    assert processor.feature_extractor.feature_size == 80


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_loads_in_another_type(real_model, dtype):
    assert load(str(real_model), dtype=dtype)[0].dtype == getattr(torch, dtype)


def test_an_absent_folder_is_named():
    with pytest.raises(ConfigError, match=r"model\.id: there is no folder \./no/such/model"):
        load("./no/such/model")


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load(str(tmp_path))


def test_another_kind_of_model_is_refused(tmp_path):
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a 'bert' model; only 'whisper' and 'lite-whisper'"):
        load(str(tmp_path))


def test_a_configuration_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="no local folder with a readable model configuration"):
        load(str(tmp_path))


def test_a_missing_tokenizer_is_named(copy):
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (copy / file).unlink()
    with pytest.raises(ConfigError, match=r"no usable tokenizer.*model\.processor"):
        load(str(copy))


def test_the_processor_may_be_elsewhere(copy, real_model):
    (copy / "tokenizer.json").unlink()
    _, processor = load(str(copy), processor_id=str(real_model))
    assert len(processor.tokenizer) == 3510


def test_a_truncated_weights_file_is_named(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match="cannot load the weights of"):
        load(str(copy))


def test_absent_weights_are_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot load the weights of"):
        load(str(copy))


def test_weights_of_another_size_are_named(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "encoder_layers": 5}))
    with pytest.raises(ConfigError, match=r"missing keys: model\.encoder\.layers\.4"):
        load(str(copy))


def test_a_processor_of_another_size_is_refused(real_model, tmp_path):
    make_processor(feature_size=128).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"makes 128 mel bins, the model takes 80"):
        load(str(real_model), processor_id=str(tmp_path))
    make_processor(("en",) * 1 + tuple(f"x{i}" for i in range(4000))).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"tokens, the model 3510"):
        load(str(real_model), processor_id=str(tmp_path))


def test_a_hub_id_without_network_is_an_error_of_input():
    with pytest.raises(ConfigError, match="openai/whisper-of-no-such-size"):
        load("openai/whisper-of-no-such-size")
