"""Tokenizers chosen by a file: only known options, no code of the file's folder, no fetching unasked."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

# Options of a configuration's tokenizer_kwargs that reach a tokenizer; all others are refused.
_SIMPLE_OPTIONS = frozenset({'clean', 'reduction_mask', 'additional_special_tokens', 'context_length'})
_HUB_OPTIONS = frozenset({'clean', 'strip_sep_token', 'language', 'context_length'})
_MODES = (None, '', 'clips')
_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'spiece.model')
# Value of text_cfg.hf_tokenizer_name: the tokenizer that lies in the folder of the CLIP.
OWN_TOKENIZER = 'own'
# Fields of JSON files beside a tokenizer or a model that name code to be run; of the second kind only where
# they name a repository, whose compiled kernels would be fetched.
_CODE_FIELDS = ('auto_map', 'custom_pipelines', 'trust_remote_code', 'custom_generate')
_KERNEL_FIELDS = ('attn_implementation', 'experts_implementation', 'use_kernels', 'kernel_config')
_CLIP_TOKENS = 49408


def clip_tokenizer(
    text_cfg: Mapping[str, Any], context_length: int, folder: Path | None, may_fetch: bool, name: str
) -> Callable[[list[str]], Tensor]:
    """The tokenizer of a CLIP's configuration: texts -> token_ids [T, context_length].

    Args:
        text_cfg: of the architecture.
        folder: of the CLIP, where it is one; its own files go before what the configuration names.
        may_fetch: whether the user named something remote, whose tokenizer may be fetched with it.
        name: of the CLIP, for messages.
    Raises:
        ValueError: an option that is not on the list.
        FileNotFoundError: a tokenizer that would have to be fetched; the message says what to bring.
        ImportError: transformers is not installed.
    """
    source = text_cfg.get('hf_tokenizer_name')
    options = _checked_options(text_cfg, _HUB_OPTIONS if source else _SIMPLE_OPTIONS, name)
    options['context_length'] = context_length
    if not source:
        return SimpleTokenizer(**options)
    mode = text_cfg.get('tokenizer_mode')
    if mode not in _MODES:
        raise ValueError(f'{name}: text_cfg.tokenizer_mode {mode!r} is none of {_MODES}')
    if folder is not None and any((folder / file).is_file() for file in _TOKENIZER_FILES):
        source, may_fetch = str(folder), False
    elif not may_fetch:
        source = str(_cached_tokenizer(str(source), folder, name))
    if not may_fetch:
        refuse_code(Path(source))
    try:
        return HFTokenizer(
            source,
            tokenizer_mode=mode,
            local_files_only=not may_fetch,
            trust_remote_code=False,
            **options,
        )
    except ImportError as error:
        raise ImportError(
            f'the tokenizer {source!r} needs packages that are not installed: pip install transformers '
            f'sentencepiece ({" ".join(str(error).split())[:120]})'
        ) from None
    except (OSError, ValueError, KeyError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise FileNotFoundError(f'cannot load the tokenizer {source!r}: {reason}') from None


def folder_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of transformers in a local folder.

    Raises:
        ValueError: files that cannot be read, or that ask for code.
        ImportError: transformers is not installed.
    """
    refuse_code(folder)
    try:
        return transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f'cannot read the tokenizer in {folder}: {error}') from None


def has_clip_tokens(folder: Path | None, vocab_size: int) -> bool:
    """Whether the tokenizer in a folder, if any, is the one that OpenAI's CLIP and most others share."""
    path = None if folder is None else folder / 'vocab.json'
    if vocab_size != _CLIP_TOKENS:
        return False
    if path is None or not path.is_file():
        return True
    tokens = read_json(path)
    shared = SimpleTokenizer().encoder
    return {key: value for key, value in tokens.items() if value < _CLIP_TOKENS - 2} == {
        key: value for key, value in shared.items() if value < _CLIP_TOKENS - 2
    }


def transformers() -> Any:
    """The package of that name."""
    try:
        return importlib.import_module('transformers')
    except ImportError:
        raise ImportError('a tokenizer or BERT needs transformers: pip install transformers') from None


def refuse_code(folder: Path) -> None:
    """Refuse (ValueError) a folder whose JSON files name code of their own; the message names the field."""
    for path in (folder / name for name in ('config.json', 'tokenizer_config.json')):
        stack = [read_json(path)] if path.is_file() else []
        while stack:
            content = stack.pop()
            stack += [value for value in content.values() if isinstance(value, dict)]
            for field, value in content.items():
                name = field.strip('_').removesuffix('_internal')
                is_code = name in _CODE_FIELDS and value
                if is_code or (
                    name in _KERNEL_FIELDS and (not isinstance(value, str) or '/' in value) and value
                ):
                    raise ValueError(
                        f'{path}: {field} {value!r} names code that the folder brings or that would be '
                        f'fetched; such code is never run, remove the field'
                    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError names the file."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no valid JSON: {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, expected an object')
    return content


def cached_folder(repository: str, file: str) -> Path | None:
    """Where the hub's cache has a repository with that file, without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, file)
    except ValueError:  # no name that a repository could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def _checked_options(text_cfg: Mapping[str, Any], known: frozenset[str], name: str) -> dict[str, Any]:
    options = text_cfg.get('tokenizer_kwargs') or {}
    if not isinstance(options, Mapping):
        raise ValueError(f'{name}: text_cfg.tokenizer_kwargs is {options!r}, expected an object')
    for key, value in options.items():
        if key not in known:
            raise ValueError(
                f'{name}: text_cfg.tokenizer_kwargs.{key} is not allowed, expected some of {sorted(known)}'
            )
        plain = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | bool | None) for item in plain):
            raise ValueError(f'{name}: text_cfg.tokenizer_kwargs.{key} is {value!r}, expected a plain value')
    return dict(options)


def _cached_tokenizer(source: str, folder: Path | None, name: str) -> Path:
    """The cached copy of a tokenizer on the hub."""
    for file in _TOKENIZER_FILES:
        found = cached_folder(source, file)
        if found is not None:
            return found
    where = 'a folder of this CLIP' if folder is None else str(folder)
    raise FileNotFoundError(
        f'{name}: text_cfg.hf_tokenizer_name {source!r} would have to be fetched: put tokenizer.json, '
        f'tokenizer_config.json and special_tokens_map.json of {source} into {where}'
    )
