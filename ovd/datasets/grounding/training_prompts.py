"""What GLIP learns from one sample: the prompt of the image, and the tokens that describe each of its boxes.

Everything that needs strings or a tokenizer happens here, where samples are loaded. Reading order:
TrainingPrompt, build_training_prompt (from a caption or a list of names), finish.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...encoders.tokens.prompt_builder import PromptBuilder
from ...encoders.tokens.prompt_features import token_map
from ...text.phrases import (
    SEPARATOR,
    Prompt,
    Span,
    caption_prompt,
    check_wordings,
    clean_name,
    token_positions,
)

IGNORED = -1  # label of characters that are left out of the token loss
NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class TrainingPrompt:
    """The tokenized prompt of an image; L tokens, C entities, G boxes.

    Attributes:
        prompt: text, entities and tokens.
        token_map: [C, L] bool, the tokens of each entity.
        counted: [L] bool, tokens that count in the token loss; False for phrases without boxes.
        describes_image: [L] bool, tokens of the image's own caption; none of a list of class names.
        class_ids: [L] int64, the class that a token of a list of names belongs to, else ``NO_CLASS``. It is a
            hash of the name, so equal in all prompts and on all processes.
        positive_map: [G, L] bool, the tokens that describe each box.
        tokenizer: fingerprint of the tokenizer.
    """

    prompt: Prompt
    token_map: np.ndarray
    counted: np.ndarray
    describes_image: np.ndarray
    class_ids: np.ndarray
    positive_map: np.ndarray
    tokenizer: str

    def __deepcopy__(self, memo: dict[int, Any]) -> 'TrainingPrompt':
        """Immutable; data samples copy their metainfo when they are moved."""
        return self


def build_training_prompt(
    builder: PromptBuilder, metainfo: Mapping[str, Any], labels: Sequence[int], final: str = ''
) -> tuple[TrainingPrompt, list[int]]:
    """Build the prompt of a sample that comes with its text.

    Args:
        metainfo: ``text``, a caption or a list of class names; of captions ``tokens_positive``,
            ``tokens_ignored`` and ``caption_ranges``, of lists ``wordings``, all optional. See ``GLIP``.
        labels: [G], of the boxes.
        final: see ``class_prompt``.
    Returns:
        The prompt, and the indices of the boxes that it describes: all, unless the caption is longer than the
        text encoder's limit. Then one window is drawn at random (torch's generator), and boxes of phrases in
        other windows are left out.
    Raises:
        ValueError: bad ranges or names; a box whose label the text does not have.
    """
    text = metainfo['text']
    if not isinstance(text, str):
        prompt = named_prompt(builder, text, metainfo.get('wordings'), final)
        return finish(builder, prompt, labels), list(range(len(labels)))
    spans = metainfo.get('tokens_positive') or {}
    prompt = draw_window(builder, text, spans, metainfo.get('tokens_ignored') or ())
    elsewhere = set(spans if isinstance(spans, Mapping) else range(len(spans))).difference(prompt.labels)
    kept = [index for index, label in enumerate(labels) if label not in elsewhere]
    ranges = metainfo.get('caption_ranges', [(0, len(text) + len(SEPARATOR))])
    return finish(builder, prompt, [labels[index] for index in kept], ranges or None), kept


def named_prompt(
    builder: PromptBuilder, names: Sequence[str], wordings: Mapping[str, Any] | None = None, final: str = ''
) -> Prompt:
    """The single prompt of a list of class names.

    Raises:
        ValueError: no names, or more than one prompt holds.
    """
    check_wordings(wordings or {}, names)
    return single(builder.name_prompts(names, None, final, wordings))


def single(prompts: Sequence[Prompt]) -> Prompt:
    """Return the only prompt; raise ValueError if there is none or more than one."""
    if len(prompts) != 1:
        raise ValueError(
            f'the class names of an image take {len(prompts)} prompts, training reads one: sample some '
            f"for each image with dict(type='ovd.SampleClassNames')"
        )
    return prompts[0]


def draw_window(
    builder: PromptBuilder, caption: str, spans: Any, ignored: Sequence[Sequence[int]] = ()
) -> Prompt:
    """A caption as one prompt, with the ranges that are ignored; a random window of it if it is too long."""
    phrases, without_boxes = (
        caption_prompt(caption, spans),
        caption_prompt(caption, [[span] for span in ignored]),
    )
    whole = Prompt(
        phrases.text,
        phrases.spans + without_boxes.spans,
        phrases.names + without_boxes.names,
        phrases.labels + (IGNORED,) * len(without_boxes),
    )
    windows = builder.caption_prompts(whole)
    useful = [window for window in windows if set(window.labels) - {IGNORED}] or windows
    window = useful[int(torch.randint(len(useful), ()))]
    return window if len(windows) == 1 else builder.tokenizer.tokenize(with_all_entities(window, whole))


def with_all_entities(window: Prompt, whole: Prompt) -> Prompt:
    """A window of a text with all entities that have characters there; those that it cuts are ignored.

    Windows overlap: the boxes of an entity are learned in one of them, but in no other may its words count as
    absent.
    """
    end = window.start + len(window.text)
    here = [
        entity
        for entity, ranges in enumerate(whole.spans)
        if any(first < end and last > window.start for first, last in ranges)
    ]
    part = whole.window(window.start, end, here)
    labels = []
    for entity, ranges, label in zip(here, part.spans, part.labels):
        is_cut = _length(ranges) < _length(whole.spans[entity])
        labels.append(IGNORED if is_cut and label not in window.labels else label)
    return replace(part, labels=tuple(labels))


def _length(ranges: Iterable[Span]) -> int:
    return sum(end - start for start, end in ranges)


def finish(
    builder: PromptBuilder,
    prompt: Prompt,
    labels: Sequence[int],
    caption_ranges: Sequence[Sequence[int]] | None = None,
) -> TrainingPrompt:
    """Add the maps to a tokenized prompt.

    Args:
        labels: [G], of the boxes.
        caption_ranges: characters [start, end) that describe the image, of the text that the prompt may be a
            window of; None for a list of class names.
    Raises:
        ValueError: a label that the prompt does not have.
    """
    entities = {label: entity for entity, label in enumerate(prompt.labels)}
    unknown = set(labels).difference(entities)
    if unknown:
        raise ValueError(
            f'a training box has label {min(unknown)}, the prompt has {sorted(entities)[:10]}: '
            f'{prompt.text[:80]!r}'
        )
    tokens = token_map(prompt).numpy()
    is_ignored = np.array([label == IGNORED for label in prompt.labels], dtype=bool)
    describes_image = np.zeros(len(prompt.token_ids), dtype=bool)
    if caption_ranges is None:
        ids = class_ids(prompt.names, tokens)
    else:
        ids = np.full(len(prompt.token_ids), NO_CLASS)
        ranges = [(start - prompt.start, end - prompt.start) for start, end in caption_ranges]
        describes_image[token_positions(ranges, prompt.offsets)] = True
    return TrainingPrompt(
        prompt,
        tokens,
        ~ignored_tokens(tokens, is_ignored),
        describes_image,
        ids,
        tokens[[entities[label] for label in labels]].reshape(-1, tokens.shape[1]),
        builder.tokenizer.fingerprint,
    )


def ignored_tokens(tokens: np.ndarray, is_ignored: np.ndarray) -> np.ndarray:
    """[L] bool, tokens of ignored entities that belong to no other; of [C, L] and [C] bool."""
    ignored: np.ndarray = tokens[is_ignored].any(0) & ~tokens[~is_ignored].any(0)
    return ignored


def class_ids(names: Sequence[str], tokens: np.ndarray) -> np.ndarray:
    """[L] int64, the class of each token, see ``TrainingPrompt``, of names with the tokens [C, L]."""
    ids = np.full(tokens.shape[1:], NO_CLASS)
    for name, is_own in zip(names, tokens):
        digest = hashlib.sha256(clean_name(name).casefold().encode()).digest()
        ids[is_own] = int.from_bytes(digest[:7], 'big')
    return ids
