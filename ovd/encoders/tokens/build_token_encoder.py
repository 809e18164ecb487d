"""Token encoders by their names in configurations, and their tokenizers without the weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from ..loading import PathLike
from ..sources import CONFIG_NAME, resolve_built_in
from .bert_tokenizer import BertTokenizer
from .bert_tokens import BertText
from .clip_tokenizer import ClipTokenizer
from .clip_tokens import ClipTokens, clip_prompt_tokenizer
from .token_encoder import PromptTokenizer, TokenEncoder

TOKEN_ENCODERS: dict[str, type[TokenEncoder]] = {'bert': BertText, 'clip': ClipTokens}


def build_token_encoder(options: Mapping[str, Any]) -> TokenEncoder:
    """The encoder named by ``type``, by default 'bert'; the other options are its arguments."""
    kind, options = _kind(options)
    return TOKEN_ENCODERS[kind](**options)


def build_prompt_tokenizer(options: Mapping[str, Any]) -> PromptTokenizer:
    """The tokenizer of the encoder that ``build_token_encoder`` makes of the same options."""
    kind, options = _kind(options)
    if kind == 'clip':
        return clip_prompt_tokenizer(**options)
    return BertTokenizer(options['model'], options.get('max_tokens', 256))


def load_token_counter(tokenizer: PathLike) -> Callable[[Sequence[str]], list[int]]:
    """A function that counts the tokens of texts, special ones left out.

    Args:
        tokenizer: folder or built-in name of a BERT or a CLIP, or 'clip' for the tokenizer that most CLIPs
            share.
    Raises:
        FileNotFoundError, ImportError, ValueError: see ``BertTokenizer``.
    """
    tokenizer = resolve_built_in(tokenizer)
    if tokenizer == 'clip' or (Path(tokenizer) / CONFIG_NAME).is_file():
        return ClipTokenizer(SimpleTokenizer()).count_tokens
    return BertTokenizer(tokenizer).count_tokens


def _kind(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    options = dict(options)
    kind = options.pop('type', 'bert')
    if kind not in TOKEN_ENCODERS:
        raise ValueError(f'type of a token encoder must be one of {list(TOKEN_ENCODERS)}, got {kind!r}')
    return kind, options
