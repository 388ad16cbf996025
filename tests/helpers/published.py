"""A minimal Whisper of the published lite-whisper layout, independent of liteasr.

Written from the description of the format: ``model_type: lite-whisper``, ``low_rank_config``
with one dict an encoder layer, tensors ``weight1`` (in, k), ``weight2`` (k, out), ``bias``. It has
the published classes' traps: ``self.model`` is replaced after the parent's ``post_init()``,
``auto_map`` names only ``AutoModel``, and the folder has no tokenizer and no feature extractor.
"""

import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer


class PublishedConfig(WhisperConfig):
    model_type = "lite-whisper"

    def __init__(self, low_rank_config=None, **kwargs):
        super().__init__(**kwargs)
        self.low_rank_config = low_rank_config


class PublishedLinear(nn.Module):
    def __init__(self, inner, outer, rank):
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(inner, rank))
        self.weight2 = nn.Parameter(torch.empty(rank, outer))
        self.bias = nn.Parameter(torch.empty(outer))

    def forward(self, x):
        return torch.matmul(torch.matmul(x, self.weight1), self.weight2) + self.bias


class PublishedLayer(WhisperEncoderLayer):
    def __init__(self, config, ranks):
        super().__init__(config)
        width, inner = config.d_model, config.encoder_ffn_dim
        for name, rank in ranks.items():
            shapes = {"fc1": (width, inner), "fc2": (inner, width)}
            owner = self if name in shapes else self.self_attn
            setattr(owner, name, PublishedLinear(*shapes.get(name, (width, width)), rank))


class PublishedEncoder(WhisperEncoder):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([PublishedLayer(config, r) for r in config.low_rank_config])


class PublishedModel(WhisperModel):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = PublishedEncoder(config)


class PublishedWhisper(WhisperForConditionalGeneration):
    config_class = PublishedConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = PublishedModel(config)

    def _init_weights(self, module):
        if isinstance(module, PublishedLinear):
            return
        super()._init_weights(module)


def published_model(config, ranks):
    """A model with random weights whose output projection is tied by hand."""
    torch.manual_seed(3)
    options = {k: v for k, v in config.to_dict().items() if k != "model_type"}
    model = PublishedWhisper(PublishedConfig(low_rank_config=ranks, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    model.proj_out.weight = model.model.decoder.embed_tokens.weight
    model.config.auto_map = {
        "AutoConfig": "configuration_lite_whisper.LiteWhisperConfig",
        "AutoModel": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
    }
    return model.eval()


def write_published_folder(model, folder):
    """Weights and configuration only, as the published folders have."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().clone() for k, v in model.state_dict().items() if k != "proj_out.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": ["LiteWhisperForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
