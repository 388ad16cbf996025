"""A Whisper small enough for any test."""

import torch
from torch import nn
from transformers import WhisperConfig


def tiny_config(**changes):
    """Two layers of width 64 over windows of 50 encoder frames."""
    options = {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 80,
        "max_source_positions": 50,
        "max_target_positions": 32,
        "vocab_size": 120,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 1,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    return WhisperConfig(**{**options, **changes})


def give_opinions(model):
    """Make a random decoder listen to the encoder and prefer some tokens to others."""
    generator = torch.Generator().manual_seed(5)
    weight = model.proj_out.weight
    random = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    model.proj_out.weight = nn.Parameter(0.4 * random.to(weight))
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(10)
            layer.encoder_attn.v_proj.weight.mul_(10)
    return model
