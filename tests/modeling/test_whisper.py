import importlib.util

import pytest
import torch
from published import PublishedConfig, PublishedWhisper, published_model, write_published_folder
from tiny import tiny_config
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq

from liteasr import LiteWhisperConfig, LiteWhisperForConditionalGeneration, load
from liteasr.loading import load_model
from liteasr.modeling import LowRankLinear, ReducedAttention

RANKS = [{"fc1": 16, "q_proj": 8}, {"k_proj": 8, "v_proj": 24, "out_proj": 16, "fc2": 40}]
LARGE_V3_LAYERS = [
    {"fc1": 368, "fc2": 368, "k_proj": 32, "out_proj": 32, "q_proj": 32, "v_proj": 48},
    {"fc1": 272, "fc2": 352, "k_proj": 64, "out_proj": 112, "q_proj": 64, "v_proj": 128},
    {"fc1": 224, "fc2": 224, "k_proj": 48, "out_proj": 160, "q_proj": 48, "v_proj": 160},
    {"fc1": 288, "fc2": 208, "k_proj": 48, "out_proj": 160, "q_proj": 48, "v_proj": 192},
]


def lite_config(**changes):
    options = {k: v for k, v in tiny_config().to_dict().items() if k != "model_type"}
    return LiteWhisperConfig(**{**options, "low_rank_config": RANKS, **changes})


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory):
    """A folder in the published layout, and the model it was written from."""
    folder = tmp_path_factory.mktemp("published")
    model = published_model(tiny_config(), RANKS)
    write_published_folder(model, folder)
    return folder, model


def test_a_published_folder_gives_the_same_encoder_output(published_folder):
    folder, expected = published_folder
    model = load_model(str(folder))
    assert isinstance(model, LiteWhisperForConditionalGeneration)
    x = torch.randn(2, 80, 100)
    with torch.no_grad():
        torch.testing.assert_close(
            model.model.encoder(x).last_hidden_state,
            expected.model.encoder(x).last_hidden_state,
            rtol=1e-5,
            atol=1e-5,
        )


def test_weights_of_a_published_folder_are_tied_and_decode_alike(published_folder):
    folder, expected = published_folder
    model = load_model(str(folder))
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    x, tokens = torch.randn(1, 80, 100), torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        ours = model(input_features=x, decoder_input_ids=tokens).logits
        theirs = expected(input_features=x, decoder_input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSpeechSeq2Seq])
def test_a_published_folder_opens_without_remote_code(published_folder, auto):
    model = auto.from_pretrained(published_folder[0])
    assert type(model) is LiteWhisperForConditionalGeneration


def test_what_we_save_loads_into_the_published_classes(tmp_path):
    torch.manual_seed(0)
    model = LiteWhisperForConditionalGeneration(lite_config()).eval()
    model.save_pretrained(tmp_path)
    theirs, info = PublishedWhisper.from_pretrained(
        tmp_path, config=PublishedConfig.from_pretrained(tmp_path), output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    x = torch.randn(1, 80, 100)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.eval().model.encoder(x).last_hidden_state,
            model.model.encoder(x).last_hidden_state,
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_folder_without_tokenizer_says_what_to_do(published_folder):
    with pytest.raises(ValueError, match=r"no usable tokenizer.*model\.processor"):
        load(str(published_folder[0]))


def test_published_large_v3_layers_build_at_true_shape():
    ranks = LARGE_V3_LAYERS + [{}] * 28
    config = LiteWhisperConfig(
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_layers=1,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
        num_mel_bins=128,
        vocab_size=51866,
        low_rank_config=ranks,
    )
    with torch.device("meta"):
        encoder = LiteWhisperForConditionalGeneration(config).model.encoder
    for layer, expected in zip(encoder.layers, ranks, strict=True):
        present = {
            name.rpartition(".")[2]: module.rank
            for name, module in layer.named_modules()
            if isinstance(module, LowRankLinear)
        }
        assert present == expected
    fc2 = encoder.layers[0].fc2
    assert fc2.weight1.shape == (5120, 368)
    assert fc2.weight2.shape == (368, 1280)


def test_config_round_trip(tmp_path):
    lite_config().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, LiteWhisperConfig)
    assert config.low_rank_config == RANKS


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([{}], "has 1 entries, but the encoder has 2 layers"),
        ([{"fc3": 8}, {}], r"low_rank_config\[0\] names 'fc3'"),
        ([{}, {"fc1": 0}], r"low_rank_config\[1\]\['fc1'\] must be a positive integer, got 0"),
        ([{}, {"fc1": "8"}], "got '8'"),
    ],
)
def test_impossible_ranks_are_named(ranks, message):
    with pytest.raises(ValueError, match=message):
        lite_config(low_rank_config=ranks)


def test_reduced_attention_is_saved_and_loaded_strictly(tmp_path):
    dims = [{"qk_dim": 8, "v_dim": 12}, {}]
    torch.manual_seed(0)
    config = lite_config(low_rank_config=[{"fc1": 16, "v_proj": 6}, {}], reduced_attention=dims)
    model = LiteWhisperForConditionalGeneration(config).eval()
    attention = model.model.encoder.layers[0].self_attn
    assert (attention.qk_dim, attention.v_dim) == (8, 12)
    assert attention.v_proj.weight2.shape == (6, 24)
    assert not isinstance(model.model.encoder.layers[1].self_attn, ReducedAttention)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).reduced_attention == dims
    reloaded = load_model(str(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name
    x = torch.randn(1, 80, 100)
    with torch.no_grad():
        torch.testing.assert_close(
            reloaded.model.encoder(x).last_hidden_state, model.model.encoder(x).last_hidden_state
        )


def test_attention_weights_are_recorded_of_every_layer():
    dims = {"qk_dim": 8, "v_dim": 12}
    config = lite_config(low_rank_config=None, reduced_attention=[{}, dims])
    model = LiteWhisperForConditionalGeneration(config).eval()
    frames = config.max_source_positions
    features = torch.randn(2, config.num_mel_bins, 2 * frames)
    with torch.no_grad():
        weights = model.model.encoder(features, output_attentions=True).attentions
    assert len(weights) == config.encoder_layers == 2
    for one in weights:
        assert one.shape == (2, config.encoder_attention_heads, frames, frames)
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))


def test_without_reduced_attention_the_configuration_does_not_name_it(tmp_path):
    for config in (lite_config(), lite_config(reduced_attention=None)):
        assert "reduced_attention" not in config.to_dict()
        config.save_pretrained(tmp_path)
        assert "reduced_attention" not in (tmp_path / "config.json").read_text()
        assert AutoConfig.from_pretrained(tmp_path).reduced_attention is None


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([{}], "reduced_attention has 1 entries, but the encoder has 2 layers"),
        ([{"qk_dim": 8}, {}], r"reduced_attention\[0\] lacks 'v_dim'"),
        ([{}, {"qk_dim": 0, "v_dim": 4}], r"\[1\]\['qk_dim'\] must be a positive integer, got 0"),
        ([{}, {"heads": 4}], r"reduced_attention\[1\] names 'heads'"),
    ],
)
def test_impossible_dimensions_are_named(dims, message):
    with pytest.raises(ValueError, match=message):
        lite_config(reduced_attention=dims)


def test_missing_low_rank_weights_are_an_error_not_random_numbers(tmp_path):
    from safetensors.torch import load_file, save_file

    LiteWhisperForConditionalGeneration(lite_config()).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.encoder.layers.0.fc1.weight2"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: model\.encoder\.layers\.0\.fc1\.weight2"):
        load_model(str(tmp_path))


def test_random_initialisation_is_finite():
    torch.manual_seed(0)
    model = LiteWhisperForConditionalGeneration(lite_config())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert bool(model.model.encoder.layers[0].fc1.weight1.any())


def test_importing_the_package_is_enough_for_the_pipeline():
    assert importlib.util.find_spec("liteasr") is not None
    from transformers.pipelines import PIPELINE_REGISTRY

    task = PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]
    assert task["impl"].__name__ == "LiteWhisperPipeline"
