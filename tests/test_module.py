import json

import lightning as L
import pytest
import torch
from speech_files import make_processor
from tiny import tiny_config
from transformers import GenerationConfig, WhisperForConditionalGeneration

from liteasr import SpeechDataModule, WhisperModule
from liteasr.compression import AttentionPlan, CompressionPlan, LayerPlan, collect_head_dims
from liteasr.config import ConfigError, DataConfig, SourceConfig, SourceKind
from liteasr.modeling import LowRankLinear

ATTENTION = "model.encoder.layers.1.self_attn"


@pytest.fixture(scope="module")
def english(real_model):
    return WhisperModule(str(real_model))


@pytest.fixture
def multilingual(tmp_path):
    """Folder of a tiny multilingual checkpoint over windows of one second."""
    processor = make_processor(("en", "de"), chunk_length=1)
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_vocab()}
    special = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "decoder_start_token_id": ids["<|startoftranscript|>"],
    }
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer), **special)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **special,
        max_length=24,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in ("en", "de")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
    )
    model.save_pretrained(tmp_path / "multilingual")
    processor.save_pretrained(tmp_path / "multilingual")
    return tmp_path / "multilingual"


def batch(processor, audio, **extra):
    features = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt")
    return {"input_features": features.input_features, "segments": [1] * len(audio), **extra}


def spoken(real_speech, corpus, count, longest=30.0):
    from liteasr.data import load_audio

    folder = real_speech / corpus / "dev"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["duration"] <= longest][:count]
    return [load_audio(folder / row["file_name"]) for row in rows], [row["text"] for row in rows]


def test_recognises_real_speech(english, real_speech):
    audio, texts = spoken(real_speech, "an4", 3)
    heard = english.decode(batch(english.processor, audio))
    assert [english.normalizer(t) for t in heard] == [english.normalizer(t) for t in texts]


def test_a_known_encoder_output_gives_the_same_text(english, real_speech):
    one = batch(english.processor, spoken(real_speech, "an4", 2)[0])
    with torch.no_grad():
        encoded = english.encoder(one["input_features"]).last_hidden_state
    assert english.decode(one, encoded) == english.decode(one)


def test_windows_of_one_utterance_are_joined(english, real_speech):
    audio, _ = spoken(real_speech, "an4", 3)
    one = batch(english.processor, audio)
    apart = english.decode(one)
    joined = english.decode({**one, "segments": [2, 1]})
    assert joined == [f"{apart[0]} {apart[1]}", apart[2]]


@pytest.mark.parametrize("long_form", ["windows", "timestamps"])
def test_long_audio_is_decoded_whole(english, real_speech, tmp_path, long_form):
    """Both ways run; this checkpoint was trained for the first only, so only that is judged."""
    folder = real_speech / "librispeech" / "dev"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    row = max(rows, key=lambda row: row["duration"])
    assert row["duration"] > 30
    manifest = tmp_path / "long.jsonl"
    manifest.write_text(json.dumps({"audio": str(folder / row["file_name"]), "text": row["text"]}))
    data = DataConfig(
        test={"long": SourceConfig(SourceKind.manifest, str(manifest))}, num_workers=0
    )
    datamodule = SpeechDataModule(
        data, english.processor, normalizer=english.normalizer, long_form=long_form
    )
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(english, datamodule=datamodule, verbose=False)
    assert english.results["long"]["utterances"] == 1
    assert english.results["long"]["seconds"] == pytest.approx(row["duration"], abs=0.01)
    assert english.rtfx > 0
    if long_form == "windows":
        assert english.results["long"]["wer"] < 50
        assert english.encoder_rtfx > english.rtfx
    else:
        assert english.encoder_rtfx is None, "Whisper's algorithm runs the encoder out of sight"


def test_many_windows_are_decoded_a_few_at_a_time(english, real_speech, monkeypatch):
    one = batch(english.processor, spoken(real_speech, "an4", 3)[0])
    expected = english.decode(one)
    monkeypatch.setattr(WhisperModule, "WINDOWS_AT_ONCE", 2)
    assert english.decode(one) == expected


def test_language_and_task_reach_the_decoder(multilingual, monkeypatch):
    module = WhisperModule(str(multilingual), language="de", task="translate", max_new_tokens=3)
    seen = {}
    real = module.model.generate

    def generate(**options):
        seen.update(options)
        return real(**options)

    monkeypatch.setattr(module.model, "generate", generate)
    module.decode({"input_features": torch.randn(2, 80, 100), "segments": [1, 1]})
    assert (seen["language"], seen["task"], seen["max_new_tokens"]) == ("de", "translate", 3)


def test_the_basic_normaliser_serves_other_languages(multilingual):
    german = WhisperModule(str(multilingual), language="de", task="transcribe")
    english = WhisperModule(str(multilingual), language="en", task="transcribe")
    assert english.normalizer("I won't, colour!") == "i will not color"
    assert german.normalizer("I won't, colour!") != english.normalizer("I won't, colour!")


def test_an_english_only_checkpoint_takes_no_language(real_model):
    with pytest.raises(ConfigError, match=r"model\.language.*English-only"):
        WhisperModule(str(real_model), language="en")


def test_an_unknown_language_is_named(multilingual):
    with pytest.raises(ConfigError, match=r"model\.language: 'klingon' is none of de, en"):
        WhisperModule(str(multilingual), language="klingon")
    assert WhisperModule(str(multilingual), language="German").is_multilingual


def test_more_tokens_than_the_decoder_has_room_for_are_refused(multilingual):
    with pytest.raises(ConfigError, match=r"decoding\.max_new_tokens: 32 is more than the 28"):
        WhisperModule(str(multilingual), language="en", max_new_tokens=32)


def swap_one(module):
    layer = LowRankLinear(64, 256, 8)
    module.model.model.encoder.layers[0].fc1 = layer
    return layer


def reduce_one(module):
    """The heads of one layer in fewer dimensions, and a low rank for its values besides."""
    plan = CompressionPlan(
        {f"{ATTENTION}.v_proj": LayerPlan(64, 24, 4, 0.9, dense_params=1536, params=376)},
        attention={ATTENTION: AttentionPlan(64, 2, 8, 12, dense_params=16576, params=5200)},
    )
    module.apply_plan(plan)
    return module.model.get_submodule(ATTENTION)


def test_a_checkpoint_rebuilds_reduced_attention(multilingual, tmp_path):
    module = WhisperModule(str(multilingual), language="en")
    reduce_one(module)
    trainer = L.Trainer(accelerator="cpu", logger=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = WhisperModule.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert again.compression_plan == module.compression_plan
    assert collect_head_dims(again.model) == {ATTENTION: (8, 12)}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("trainable", ["factors", "encoder", "all"])
def test_what_trains(multilingual, trainable):
    module = WhisperModule(str(multilingual), language="en", trainable=trainable)
    factors = {*swap_one(module).parameters(), *reduce_one(module).parameters()}
    module.trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False)
    module.setup("fit")
    training = {p for p in module.model.parameters() if p.requires_grad}
    everything = set(module.model.parameters())
    fixed = set(module.encoder.embed_positions.parameters())
    expected = {
        "factors": factors,
        "encoder": set(module.encoder.parameters()) - fixed,
        "all": everything - fixed,
    }
    assert training == expected[trainable]


def test_loss_is_the_cross_entropy_of_the_shifted_labels(multilingual):
    module = WhisperModule(str(multilingual), language="en", label_smoothing=0.0)
    module.log = lambda *_args, **_kwargs: None
    labels = torch.tensor([[5, 6, 7, -100], [8, 9, 10, 11]])
    features = torch.randn(2, 80, 100)
    loss = module.training_step({"input_features": features, "labels": labels}, 0)
    expected = module.model(input_features=features, labels=labels).loss
    torch.testing.assert_close(loss, expected)


def test_learning_rate_warms_up_and_falls(multilingual):
    module = WhisperModule(
        str(multilingual), language="en", trainable="all", learning_rate=1.0, warmup_steps=2
    )
    module.trainer = L.Trainer(max_steps=10, accelerator="cpu", logger=False)
    module.setup("fit")
    chosen = module.configure_optimizers()
    scheduler, rates = chosen["lr_scheduler"]["scheduler"], []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        chosen["optimizer"].step()
        scheduler.step()
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_hyperparameters_are_plain(multilingual):
    module = WhisperModule(str(multilingual), language="en")
    assert json.loads(json.dumps(dict(module.hparams)))["language"] == "en"
