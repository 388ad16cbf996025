import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from speech_files import make_processor
from transformers.models.whisper.modeling_whisper import WhisperAttention

from liteasr import LiteWhisperForConditionalGeneration, load
from liteasr.compression import (
    AttentionPlan,
    CalibrationBatch,
    CompressionPlan,
    PCAMethod,
    ThresholdRule,
    apply_plan,
    collect_head_dims,
    collect_ranks,
    find_linears,
)
from liteasr.export import export_model
from liteasr.model_card import write_model_card
from liteasr.modeling import use_rank_space

REDUCED = "model.encoder.layers.1.self_attn"


def compress(model, features, rule):
    method = PCAMethod(rule)
    method.prepare(model.model.encoder, find_linears(model))
    for x, frames in features:
        method.observe(CalibrationBatch(x, frames))
    plan = method.allocate()
    apply_plan(model, plan, {n: method.factorize(n, rank) for n, rank in plan.ranks.items()})
    return plan


@pytest.fixture
def processor():
    processor = make_processor(chunk_length=1)
    processor.tokenizer.english_spelling_normalizer = {"colour": "color"}
    return processor


@pytest.fixture
def compressed(tiny_model, tiny_features, processor):
    tiny_model.resize_token_embeddings(len(processor.tokenizer))
    compress(tiny_model, tiny_features, ThresholdRule(0.9999, 0.995, multiple=8))
    return tiny_model


@pytest.fixture
def reduced(compressed):
    """One layer's heads in fewer dimensions, with low-rank layers beside it."""
    layer = compressed.model.encoder.layers[1]
    layer.self_attn = WhisperAttention(64, 2, config=compressed.config)
    plan = AttentionPlan(64, 2, 8, 12, dense_params=0, params=0)
    apply_plan(compressed, CompressionPlan(attention={REDUCED: plan}))
    for parameter in layer.self_attn.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return compressed.eval()


def test_the_folder_holds_all_that_is_needed(compressed, processor, tmp_path):
    export_model(compressed, processor, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "attention_lite_whisper.py",
        "config.json",
        "configuration_lite_whisper.py",
        "convolution_lite_whisper.py",
        "fast_lite_whisper.py",
        "generation_config.json",
        "linear_lite_whisper.py",
        "products_lite_whisper.py",
        "model.safetensors",
        "modeling_lite_whisper.py",
        "normalizer.json",
        "processor_config.json",
        "rank_space_lite_whisper.py",
        "tiles_lite_whisper.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_reloaded_weights_are_those_in_memory(compressed, processor, tmp_path):
    export_model(compressed, processor, tmp_path / "model")
    reloaded, reloaded_processor = load(str(tmp_path / "model"))
    assert isinstance(reloaded, LiteWhisperForConditionalGeneration)
    assert collect_ranks(reloaded) == collect_ranks(compressed)
    for name, tensor in compressed.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name
    spelling = processor.tokenizer.english_spelling_normalizer
    assert spelling
    assert reloaded_processor.tokenizer.english_spelling_normalizer == spelling


def test_published_tensor_names_layouts_and_config(compressed, processor, tmp_path):
    export_model(compressed, processor, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "lite-whisper"
    assert config["architectures"] == ["LiteWhisperForConditionalGeneration"]
    assert config["auto_map"]["AutoModel"] == (
        "modeling_lite_whisper.LiteWhisperForConditionalGeneration"
    )
    assert "reduced_attention" not in config
    rank = config["low_rank_config"][0]["fc1"]
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert state["model.encoder.layers.0.fc1.weight1"].shape == (64, rank)
    assert state["model.encoder.layers.0.fc1.weight2"].shape == (rank, 256)
    assert state["model.encoder.layers.0.fc1.bias"].shape == (256,)
    dense = [n for n in find_linears(compressed) if f"{n}.weight" in state]
    assert dense, "some layers stayed dense and keep their names"
    assert "proj_out.weight" not in state


def test_reduced_attention_is_reloaded_as_it_was(reduced, processor, tiny_features, tmp_path):
    export_model(reduced, processor, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["reduced_attention"] == [{}, {"qk_dim": 8, "v_dim": 12}]
    reloaded, _ = load(str(tmp_path / "model"))
    assert collect_head_dims(reloaded) == {REDUCED: (8, 12)}
    assert collect_ranks(reloaded) == collect_ranks(reduced)
    assert reloaded.state_dict().keys() == reduced.state_dict().keys()
    x = tiny_features[0][0]
    with torch.no_grad():
        expected = reduced.model.encoder(x).last_hidden_state
        torch.testing.assert_close(reloaded.model.encoder(x).last_hidden_state, expected)
    export_model(reloaded, processor, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_a_model_of_reduced_attention_alone_is_lite_whisper_too(tiny_model, processor, tmp_path):
    tiny_model.resize_token_embeddings(len(processor.tokenizer))
    plan = AttentionPlan(64, 2, 8, 12, dense_params=0, params=0)
    apply_plan(tiny_model, CompressionPlan(attention={REDUCED: plan}))
    export_model(tiny_model, processor, tmp_path / "model")
    reloaded, _ = load(str(tmp_path / "model"))
    assert collect_head_dims(reloaded) == {REDUCED: (8, 12)}


def test_the_published_format_gets_heads_filled_up_with_zeros(
    reduced, processor, tiny_features, tmp_path
):
    export_model(reduced, processor, tmp_path / "model", published=True)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "reduced_attention" not in config
    assert not config.get("pivoted")
    published, _ = load(str(tmp_path / "model"))
    assert collect_head_dims(published) == {}
    assert collect_head_dims(reduced)
    # Two factors of 2 heads of 8 or 12 dimensions, where they are smaller.
    assert config["low_rank_config"][1]["q_proj"] == 16
    assert published.model.encoder.layers[1].self_attn.k_proj.rank == 16
    x = tiny_features[0][0]
    with torch.no_grad():
        expected = reduced.model.encoder(x).last_hidden_state
        actual = published.model.encoder(x).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_published_format_takes_low_rank_layers(compressed, processor, tmp_path):
    export_model(compressed, processor, tmp_path / "model", published=True)
    export_model(compressed, processor, tmp_path / "ours")
    for file in (tmp_path / "ours").iterdir():
        assert file.read_bytes() == (tmp_path / "model" / file.name).read_bytes()


def test_rank_space_leaves_the_folder_as_it_is(compressed, processor, tmp_path):
    export_model(compressed, processor, tmp_path / "plain")
    use_rank_space(compressed, fuse_all=True)
    export_model(compressed, processor, tmp_path / "model")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_the_stored_type_is_chosen_and_the_model_untouched(compressed, processor, tmp_path):
    export_model(compressed, processor, tmp_path / "model", torch.float16)
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert compressed.dtype == torch.float32


def test_weights_that_do_not_fit_the_type_are_refused_before_writing(
    compressed, processor, tmp_path
):
    with torch.no_grad():
        compressed.model.encoder.layers[0].fc1.weight1.mul_(1e8)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16.*export\.dtype"):
        export_model(compressed, processor, tmp_path / "model", torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_written_as_plain_whisper(tiny_model, processor, tmp_path):
    tiny_model.resize_token_embeddings(len(processor.tokenizer))
    export_model(tiny_model, processor, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "whisper"
    assert not list((tmp_path / "model").glob("*.py"))


@pytest.mark.parametrize("kind", ["dense", "compressed"])
def test_an_output_projection_of_its_own_stays_one(kind, request, processor, tmp_path):
    """Though the configuration says that it is the embedding."""
    model = request.getfixturevalue("tiny_model" if kind == "dense" else "compressed")
    model.resize_token_embeddings(len(processor.tokenizer))
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.detach() + 1)
    assert model.config.tie_word_embeddings
    export_model(model, processor, tmp_path / "model")
    reloaded, _ = load(str(tmp_path / "model"))
    assert torch.equal(reloaded.proj_out.weight, model.proj_out.weight)
    assert not torch.equal(reloaded.proj_out.weight, reloaded.model.decoder.embed_tokens.weight)


def test_a_compressed_layer_outside_the_encoder_is_refused(tiny_model, processor, tmp_path):
    from liteasr.modeling import LowRankLinear

    tiny_model.model.decoder.layers[0].fc1 = LowRankLinear(64, 64, 8)
    with pytest.raises(ValueError, match="decoder.layers.0.fc1 is not in an encoder layer"):
        export_model(tiny_model, processor, tmp_path / "model")


def test_exporting_again_replaces_the_folder(compressed, processor, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.bin").write_text("x")
    export_model(compressed, processor, tmp_path / "model")
    assert not (tmp_path / "model" / "stale.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


REMOTE = """
import sys
sys.modules["liteasr"] = None  # importing it would fail: as if it were not installed
import torch
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor

folder, features = sys.argv[1], torch.load(sys.argv[2])
for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight, "not tied"
    assert type(model).__module__.startswith("transformers_modules"), type(model)
processor = AutoProcessor.from_pretrained(folder)
tokens = model.generate(features, max_new_tokens=4)
print(processor.batch_decode(tokens, skip_special_tokens=True))
with torch.no_grad():
    torch.save(model.model.encoder(features).last_hidden_state, sys.argv[3])
"""


def test_opens_with_remote_code_where_liteasr_is_not_installed(
    reduced, processor, tiny_features, tmp_path
):
    """The usage that the published models' cards show, in a process without liteasr."""
    export_model(reduced, processor, tmp_path / "model")
    features = tiny_features[0][0][:2]
    torch.save(features, tmp_path / "features.pt")
    (tmp_path / "use.py").write_text(REMOTE)
    subprocess.run(
        [sys.executable, "use.py", "model", "features.pt", "output.pt"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    with torch.no_grad():
        expected = reduced.model.encoder(features).last_hidden_state
    torch.testing.assert_close(torch.load(tmp_path / "output.pt"), expected, rtol=1e-5, atol=1e-5)


def test_the_model_card_says_what_was_measured(tmp_path):
    def part(params, wer):
        return {"encoder_params": params, "wer": wer, "datasets": {"an4": wer, "other": wer}}

    metrics = {
        "dense": part(7632384, 17.9),
        "compressed": part(6786048, 18.0),
        "finetuned": None,
        "encoder_relative_error": 0.0123,
    }
    write_model_card(tmp_path, "openai/whisper-tiny.en", metrics)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: openai/whisper-tiny.en" in card
    assert "| encoder parameters, M | 7.63 | 6.79 |" in card
    assert "| **WER, mean of sets, %** | 17.90 | 18.00 |" in card
    assert "0.0123" in card
    write_model_card(tmp_path, "/home/someone/secret/model", {**metrics, "dense": None})
    card = (tmp_path / "README.md").read_text()
    assert "secret" not in card
    assert "| encoder parameters, M | – | 6.79 |" in card
