"""Token encoders by their names in configurations, and what counts tokens without one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from .bert_tokens import BertText, count_tokens, load_tokenizer
from .clip_tokenizer import ClipTokenizer
from .clip_tokens import ClipTokens
from .loading import PathLike
from .sources import CONFIG_NAME, resolve_built_in
from .token_encoder import TokenEncoder

TOKEN_ENCODERS: dict[str, type[TokenEncoder]] = {'bert': BertText, 'clip': ClipTokens}


def build_token_encoder(options: Mapping[str, Any]) -> TokenEncoder:
    """The encoder that ``type`` names, by default 'bert'; the other options are its arguments."""
    options = dict(options)
    kind = options.pop('type', 'bert')
    if kind not in TOKEN_ENCODERS:
        raise ValueError(f'type of a token encoder must be one of {list(TOKEN_ENCODERS)}, got {kind!r}')
    return TOKEN_ENCODERS[kind](**options)


def load_token_counter(tokenizer: PathLike) -> Callable[[Sequence[str]], list[int]]:
    """What counts the tokens of texts, special ones left out.

    Args:
        tokenizer: folder or built-in name of a BERT or a CLIP, or 'clip' for the tokenizer that most CLIPs
            share.
    Raises:
        FileNotFoundError, ImportError, ValueError: see ``BertText``.
    """
    tokenizer = resolve_built_in(tokenizer)
    if tokenizer == 'clip' or (Path(tokenizer) / CONFIG_NAME).is_file():
        return ClipTokenizer(SimpleTokenizer()).count_tokens
    return partial(count_tokens, load_tokenizer(tokenizer))
