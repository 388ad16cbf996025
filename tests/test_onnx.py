import copy
import json
import shutil

import pytest
import torch
from checkpoints import save_checkpoint
from runs import ROOT
from speech_files import RATE, noise

from liteasr import benchmark, load
from liteasr.compression import encoder_parameters, pivot_layers
from liteasr.config import ConfigError
from liteasr.export import export_onnx
from liteasr.fit import main as fit
from liteasr.modeling import LowRankLinear, PivotedLinear, ReducedAttention
from liteasr.onnx import graphs
from liteasr.onnx.folder import check_graphs, quantize_encoder, rotate_factors
from liteasr.transcribe import load_transcriber

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")

RANK = 8


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A random model over windows of a second; two layers of its first block are low-rank."""
    model, processor = load(str(save_checkpoint(tmp_path_factory.mktemp("torch") / "model")))
    layer = model.model.encoder.layers[0]
    model.model.decoder.embed_tokens.weight = model.proj_out.weight
    torch.manual_seed(1)
    layer.fc1 = LowRankLinear(64, 256, RANK)
    layer.self_attn.out_proj = LowRankLinear(64, 64, RANK)
    return model, processor


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    """Its ONNX folder."""
    path = tmp_path_factory.mktemp("onnx") / "model"
    done = export_onnx(*original, path)
    assert max(done["differences"].values()) < 1e-5
    return path


@pytest.fixture(scope="module")
def quantized(folder, tmp_path_factory):
    """The same with the encoder in 8 bits."""
    path = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(folder, path)
    before, after = quantize_encoder(path)
    assert after < before
    return path


@pytest.fixture
def dense(tmp_path):
    """A folder of a random model of the same widths."""
    return save_checkpoint(tmp_path / "dense")


def test_a_benchmark_takes_graphs(folder, quantized, dense, tmp_path):
    for model in (folder, quantized):
        output = tmp_path / "speed.json"
        options = ["--repeats", "1", "--threads", "1", "--output", str(output)]
        assert benchmark.main(["--model", str(model), "--dense", str(dense), *options]) == 0
        (one,) = json.loads(output.read_text())["encoder"]
        assert one["speed_up"] > 0


@pytest.mark.parametrize(
    "options",
    [["--threads", "1", "2"], ["--dtype", "bfloat16"], ["--dtype", "float32", "bfloat16"]],
)
def test_graphs_run_in_one_way_alone(folder, dense, options, capsys):
    assert benchmark.main(["--model", str(folder), "--dense", str(dense), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"liteasr: {options[0]}:")
    assert f"--model {folder} holds ONNX graphs" in said.replace("\n", " ")


def test_dense_graphs_have_no_faster_way(folder, capsys):
    both = ["--model", str(folder), "--dense", str(folder)]
    assert benchmark.main([*both, "--fast-dense"]) == 2
    assert f"--fast-dense: --dense {folder} holds ONNX graphs" in capsys.readouterr().err.replace(
        "\n", " "
    )


@pytest.fixture
def features():
    return torch.rand(3, 80, 100, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_the_folder_is_laid_out_as_optimum_reads_it(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"),
        *("config.json", "generation_config.json", "preprocessor_config.json"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "whisper"
    assert config["architectures"] == ["WhisperForConditionalGeneration"]
    assert "auto_map" not in config
    assert config["low_rank_config"] == [{"out_proj": RANK, "fc1": RANK}, {}]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert "<|notimestamps|>" in tokenizer["additional_special_tokens"]
    assert "extra_special_tokens" not in tokenizer, "transformers 4 fails on a list"


def test_inputs_and_outputs_have_the_names_of_optimum(folder):
    def names(file):
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        return [
            [one.name for one in part] for part in (session.get_inputs(), session.get_outputs())
        ]

    own = [f"0.decoder.{kind}" for kind in ("key", "value")]
    cross = [f"0.encoder.{kind}" for kind in ("key", "value")]
    assert names("encoder_model.onnx") == [["input_features"], ["last_hidden_state"]]
    assert names("decoder_model.onnx") == [
        ["input_ids", "encoder_hidden_states"],
        ["logits", *(f"present.{name}" for name in [*own, *cross])],
    ]
    assert names("decoder_with_past_model.onnx") == [
        ["input_ids", *(f"past_key_values.{name}" for name in [*own, *cross])],
        ["logits", *(f"present.{name}" for name in own)],
    ]


def test_a_low_rank_layer_is_two_products(folder):
    graph = onnx.load(folder / "encoder_model.onnx").graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    products = [
        (node.input[0], shapes[node.input[1]], node.output[0])
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in shapes
    ]
    for width in (256, 64):
        (second,) = [one for one in products if one[1] == (RANK, width)]
        assert ((64, RANK), second[0]) in [(shape, output) for _, shape, output in products]
    # Of the two blocks only the second has a dense fc1; the second has the only out_proj.
    assert list(shapes.values()).count((64, 256)) == 1
    assert [shape for _, shape, _ in products].count((64, 64)) == 3 + 4
    assert "Gemm" not in {node.op_type for node in graph.node}


def test_it_computes_what_torch_computes(original, folder, features):
    model, (ours, _) = original[0], load(str(folder))
    for part in (features, features[:1]):
        with torch.no_grad():
            expected = model.model.encoder(part).last_hidden_state
        torch.testing.assert_close(ours.model.encoder(part).last_hidden_state, expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_it_says_what_torch_says(original, folder, features, options):
    model, (ours, _) = original[0], load(str(folder))
    options |= {"return_dict_in_generate": True, "output_logits": True}
    for part in (features, features[:1]):
        expected, actual = (one.generate(part, **options) for one in (model, ours))
        assert len(expected.logits) > 5
        assert torch.equal(actual.sequences, expected.sequences)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(ours.detect_language(features), model.detect_language(features))


def test_audio_of_any_length_is_transcribed_as_with_torch(original, folder, tmp_path):
    import soundfile

    original[0].save_pretrained(tmp_path / "torch")
    soundfile.write(tmp_path / "a.wav", noise(2.5), RATE)
    said = load_transcriber(folder, long_form="windows")(tmp_path / "a.wav")
    assert said.text
    transcriber = load_transcriber(folder, long_form="windows")
    transcriber._module.model = original[0]
    assert said.text == transcriber(tmp_path / "a.wav").text


def test_it_counts_as_the_model_it_was_and_cannot_be_moved(original, folder):
    ours, _ = load(str(folder))
    assert encoder_parameters(ours.get_encoder()) == encoder_parameters(original[0].get_encoder())
    ours.to("cpu").half()
    assert (ours.device, ours.dtype) == (torch.device("cpu"), torch.float32)


def test_pivoted_layers_become_products(original, features, tmp_path):
    model = copy.deepcopy(original[0])
    pivot_layers(model)
    layer = model.model.encoder.layers[1]
    layer.fc2 = PivotedLinear(256, 64, RANK)
    done = export_onnx(model, original[1], tmp_path / "pivoted")
    assert max(done["differences"].values()) < 1e-5
    nodes = onnx.load(tmp_path / "pivoted" / "encoder_model.onnx").graph.node
    assert "Gather" not in [node.op_type for node in nodes]
    export_onnx(model, original[1], tmp_path / "int8", int8=True)
    nodes = onnx.load(tmp_path / "int8" / "encoder_model_quantized.onnx").graph.node
    # Of twelve layers three are in two parts.
    assert [node.op_type for node in nodes].count("MatMulInteger") == 12 + 3


def test_reduced_heads_go_along(original, tmp_path):
    """With a projection of full rank, one of low rank, and in eight bits dense values."""
    model = copy.deepcopy(original[0])
    block = model.model.encoder.layers[1]
    block.self_attn = ReducedAttention(64, 2, qk_dim=12, v_dim=20)
    block.self_attn.q_proj = PivotedLinear(64, 24, 8)
    block.self_attn.k_proj = PivotedLinear(64, 24, 24)
    block.self_attn.v_proj = PivotedLinear(64, 40, 40)
    block.self_attn.out_proj = PivotedLinear(40, 64, 16)
    for layer in (block.self_attn.k_proj, block.self_attn.v_proj):
        torch.nn.init.normal_(layer.bias)
    for int8, most in ((False, 1e-5), (True, 0.02)):
        done = export_onnx(model, original[1], tmp_path / f"int8={int8}", int8=int8)
        assert done["differences"]["encoder"] < most


def test_prompts_of_unequal_length_are_refused_not_misread(folder, features):
    ours, _ = load(str(folder))
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    with pytest.raises(ValueError, match="no padded prompts"):
        ours(features, decoder_input_ids=torch.ones(3, 2).long(), decoder_attention_mask=mask)


def test_eight_bits_are_in_the_linear_layers_of_the_encoder(original, quantized, features):
    names = {path.name for path in quantized.glob("*.onnx")}
    assert names == {
        *("encoder_model_quantized.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
    }
    nodes = onnx.load(quantized / "encoder_model_quantized.onnx").graph.node
    # Four layers dense and two in two parts, six dense.
    assert [node.op_type for node in nodes].count("MatMulInteger") == 4 + 2 * 2 + 6
    found = check_graphs(original[0], quantized)
    assert 1e-4 < found["encoder"] < 0.1
    assert load(str(quantized))[0].generate(features).shape[0] == 3


def test_a_rotation_evens_out_the_components_and_nothing_else():
    layer = LowRankLinear(64, 64, 32)
    with torch.no_grad():
        scale = torch.logspace(0, -3, 32)
        layer.weight1.mul_(scale)
        layer.weight2.div_(scale[:, None])
    shared, inputs = layer.weight1, torch.randn(500, 64)
    before, components = layer(inputs), (inputs @ shared).std(dim=0)
    assert components.max() > 500 * components.min()
    rotate_factors(layer)
    components = (inputs @ layer.weight1).std(dim=0)
    assert components.max() < 30 * components.min()
    torch.testing.assert_close(layer(inputs), before, rtol=1e-3, atol=1e-3 * before.std().item())
    assert layer.weight1 is not shared, "a copy may share the weights"


def test_graphs_of_another_model_are_found_out(original, folder):
    other = copy.deepcopy(original[0])
    with torch.no_grad():
        other.model.decoder.layer_norm.weight.mul_(2)
    with pytest.raises(ValueError, match=r"else than torch: first step .*, later step .*0\.001"):
        check_graphs(other, folder)


def test_weights_too_large_for_a_file_lie_beside_it(original, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)
    graph = next(iter(graphs.make_graphs(original[0])))
    graphs.write_graph(graph, tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["encoder_model.onnx"] < sizes["encoder_model.onnx_data"]
    onnxruntime.InferenceSession(tmp_path / graph.file, providers=["CPUExecutionProvider"])
    before, after = quantize_encoder(tmp_path)
    assert after < before
    assert [path.name for path in tmp_path.iterdir()] == ["encoder_model_quantized.onnx"]


def test_a_folder_of_graphs_is_not_compressed(folder, tmp_path, capsys):
    recipe = str(ROOT / "recipes" / "whisper_tiny_libri.yaml")
    assert fit(["--config", recipe, f"model.id={folder}", f"run.dir={tmp_path / 'run'}"]) == 2
    assert "holds ONNX graphs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_lacks_a_graph_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "decoder_model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="ONNX Runtime cannot use it"):
        load(str(tmp_path / "model"))
    (tmp_path / "model" / "decoder_model.onnx").unlink()
    with pytest.raises(ConfigError, match=r"has no decoder_model\.onnx"):
        load(str(tmp_path / "model"))
