"""Trains a small tokenizer in Qwen's manner, and writes the text side of a checkpoint.

In: texts, a size; a chat template. Out: byte-level BPE with Qwen's splitting and its 26 added tokens, as the
files that transformers and the engine read. It knows no problems and no model.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from deepfast.model.hub import BUNDLED
from deepfast.types import UsageError

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = tuple(
    """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
    """.split()
)
PLAIN_TOKENS = tuple(
    """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>
    <|file_sep|> <tool_response> </tool_response> <think> </think>""".split()
)
CHAT_TEMPLATE, SENTENCES = BUNDLED / "chat_template.jinja", BUNDLED / "thinking.json"
FEWEST = 256 + len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "thinking.json",
    "vocab.json",
    "merges.txt",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens, the 26 added ones included.

    Every byte is a token and digits are never merged. Raises UsageError for a size below 282.
    """
    if vocab_size < FEWEST:
        raise UsageError(f"a vocabulary of {vocab_size} cannot hold the 256 bytes. Use at least {FEWEST}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS),
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in PLAIN_TOKENS])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path, max_length: int) -> None:
    """The text files of a checkpoint: tokenizer, chat template, sampling, what ends a thought."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    for file in (CHAT_TEMPLATE, SENTENCES):
        if file != (out / file.name).resolve():
            shutil.copyfile(file, out / file.name)
    added = {
        str(index): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE.read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    write_json(out / "generation_config.json", {"eos_token_id": [end, pad], "pad_token_id": pad, **sampling})
    write_json(out / "tokenizer_config.json", config)  # last: it says that the stage is done


def copy_text_files(start: Path, out: Path) -> None:
    """The files of a checkpoint that are not weights; a checkpoint from elsewhere may lack some."""
    for name in TEXT_FILES:
        if (start / name).exists():
            shutil.copyfile(start / name, out / name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As the files of a checkpoint are written."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
