"""Folders of tiny random checkpoints over windows of one second."""

import torch
from speech_files import make_processor
from tiny import give_opinions, tiny_config
from transformers import GenerationConfig, WhisperForConditionalGeneration

TIMESTAMPS = 51


def special_tokens(tokenizer):
    """What a configuration says of a tokenizer."""
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }


def save_checkpoint(folder, languages=("en", "de"), *, multilingual=False, timestamps=False):
    """Save one that always has something to say.

    Args:
        languages: Codes that it knows.
        multilingual: Whether it takes a language.
        timestamps: Whether it has tokens for the times in a window and says that it uses them.
    """
    processor = make_processor(languages, chunk_length=1)
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_vocab()}
    special = special_tokens(tokenizer)
    torch.manual_seed(0)
    vocab_size = len(tokenizer) + (TIMESTAMPS if timestamps else 0)
    config = tiny_config(vocab_size=vocab_size, **special)
    model = give_opinions(WhisperForConditionalGeneration(config))
    # Letters, so that texts are words; the end only where there is no more room.
    letters = [ids[letter] for letter in "abcdefghij"] + [ids["Ġ"]]
    unsaid = set(range(len(tokenizer))) - {*letters, ids["<|endoftext|>"]}
    options = {"lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in languages}}
    if multilingual:
        options["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    if timestamps:
        options["alignment_heads"] = [[0, 0]]
        options["max_initial_timestamp_index"] = 5
    model.generation_config = GenerationConfig(
        **special,
        max_length=24,
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=sorted(unsaid),
        begin_suppress_tokens=[ids["<|endoftext|>"], ids["Ġ"]],
        **options,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
