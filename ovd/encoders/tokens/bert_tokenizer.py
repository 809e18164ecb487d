"""The tokenizer of a BERT, read from a local folder or a hub repository; its weights are not needed."""

import importlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...files import sha256_json
from ...text.phrases import Span
from ..foreign.safe_tokenizer import folder_tokenizer
from ..loading import PathLike
from ..sources import looked_up_from, resolve_built_in
from .token_encoder import PromptTokenizer

HUB = 'hf-hub:'
CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
_TOKENIZERS = ('tokenizer.json', 'vocab.txt')


class BertTokenizer(PromptTokenizer):
    """WordPiece tokens with their characters.

    Args:
        folder: with ``config.json`` and ``tokenizer.json`` or ``vocab.txt``; the name of a built-in one
            ('bert_tiny_shapes'), or 'hf-hub:owner/name'.
        max_tokens: see ``PromptTokenizer``.
    Raises:
        FileNotFoundError: no such folder, or one of its files is missing.
        ImportError: the package transformers is not installed.
        ValueError: a tokenizer that does not know the characters of its tokens.
    """

    def __init__(self, folder: PathLike, max_tokens: int = 256) -> None:
        folder = find_folder(os.fspath(folder))
        self.fast = folder_tokenizer(folder)
        if not self.fast.is_fast:
            raise ValueError(f'the tokenizer in {folder} does not know the characters of its tokens')
        self.max_tokens = max_tokens
        self.pad_id = self.fast.pad_token_id or 0
        self.mask_id = self.fast.mask_token_id
        self.vocab_size = len(self.fast)

    @cached_property
    def fingerprint(self) -> str:
        return sha256_json([self.vocabulary(), self.max_tokens])[:16]

    def vocabulary(self) -> list[tuple[str, int]]:
        """Every token with its id, in alphabetical order."""
        return sorted(self.fast.get_vocab().items())

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        found = self.fast(list(texts), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in found['input_ids']]

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.fast(text, return_offsets_mapping=True, verbose=False)
        return found['input_ids'], [(start, end) for start, end in found['offset_mapping']]

    def encode_cut(self, text: str) -> list[int]:
        """Token ids of a text that is cut to ``max_tokens``, its end token kept."""
        ids: list[int] = self.fast(text, truncation=True, max_length=self.max_tokens)['input_ids']
        return ids


def find_folder(model: str, with_weights: bool = False) -> Path:
    """The local folder of a BERT, with the files that are needed; downloaded if the name is of the hub."""
    if model.startswith(HUB):
        folder = _download(model.removeprefix(HUB), with_weights)
    else:
        folder = Path(resolve_built_in(model))
    for names in ((CONFIG,), _TOKENIZERS):
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(
                f'the BERT folder {folder} has no {" or ".join(names)}{looked_up_from(folder)}; '
                f'a repository of the hub is named {HUB}owner/name'
            )
    return folder


def _download(repository: str, with_weights: bool) -> Path:
    """The hub's snapshot of configuration and tokenizer, and of the weights if they are wanted."""
    hub: Any = importlib.import_module('huggingface_hub')
    names = [CONFIG, 'tokenizer*', 'vocab.txt', 'special_tokens_map.json']
    try:
        folder = Path(hub.snapshot_download(repository, allow_patterns=names))
        for weights in WEIGHTS if with_weights else ():
            folder = Path(hub.snapshot_download(repository, allow_patterns=[*names, weights]))
            if (folder / weights).is_file():
                break
    except Exception as error:  # the hub client raises dozens of kinds
        raise FileNotFoundError(
            f'{HUB}{repository} cannot be downloaded: {type(error).__name__}; name a local folder instead'
        ) from None
    return folder
