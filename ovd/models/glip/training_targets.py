"""What a GLIP is taught by images: a sentence for each, and boxes with the tokens of what they show.

Reading order: Lesson; training_sentence (a caption as one sentence), named_boxes, truth_of, ignored_tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from ...encoders.prompt_features import PromptEncoder
from ...encoders.token_encoder import TokenFeatures
from ...text.phrases import Prompt, Span, caption_prompt
from .head import Truth

IGNORED = -1  # label of the characters that are left out of the token loss


class Lesson(NamedTuple):
    """What B images are trained with.

    Attributes:
        text: token features of the images' sentences, with gradients.
        prompts: the sentences.
        token_maps: per image [C, L] bool, the tokens of each entity of its sentence.
        counted: [B, L] bool, tokens that count in the token loss.
        truths: of each image.
    """

    text: TokenFeatures
    prompts: list[Prompt]
    token_maps: list[Tensor]
    counted: Tensor
    truths: list[Truth]


def training_sentence(sample: DetDataSample, encoder: PromptEncoder) -> Prompt:
    """The caption of an image, with what is ignored; of one that is too long, a window at random."""
    prompt = caption_prompt(sample.text, sample.get('tokens_positive', None) or {})
    ignored = caption_prompt(sample.text, [[span] for span in sample.get('tokens_ignored', None) or ()])
    whole = Prompt(
        prompt.text,
        prompt.spans + ignored.spans,
        prompt.names + ignored.names,
        prompt.labels + (IGNORED,) * len(ignored),
    )
    windows = encoder.caption_prompts(whole)
    useful = [window for window in windows if set(window.labels) - {IGNORED}] or windows
    return with_all_entities(useful[int(torch.randint(len(useful), ()))], whole)


def with_all_entities(window: Prompt, whole: Prompt) -> Prompt:
    """A window of a text with all entities that have characters there; those that it cuts are ignored.

    Windows overlap: an entity is asked for in one of them, but in no other may its words count as absent.
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


def named_boxes(sample: DetDataSample, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Places of an image's boxes, and the entity of each; those of other windows are left out.

    Raises:
        ValueError: a box with a label that the image's text does not have.
    """
    rows = {label: row for row, label in enumerate(prompt.labels)}
    labels = sample.gt_instances.labels.tolist()
    spans = sample.get('tokens_positive', None) or ()
    elsewhere = (set(spans) if isinstance(spans, Mapping) else set(range(len(spans)))) - set(rows)
    here = [index for index, label in enumerate(labels) if label not in elsewhere]
    unknown = [labels[index] for index in here if labels[index] not in rows]
    if unknown:
        raise ValueError(
            f'a training box has label {unknown[0]}, the sentence has {sorted(rows)[:10]}: '
            f'{prompt.text[:80]!r}'
        )
    return here, [rows[labels[index]] for index in here]


def truth_of(sample: DetDataSample, prompt: Prompt, token_map: Tensor) -> Truth:
    """Boxes of an image and the tokens of what they show, each box once."""
    here, entities = named_boxes(sample, prompt)
    boxes = sample.gt_instances.bboxes[here].to(torch.float32)
    tokens = token_map[torch.tensor(entities, dtype=torch.long, device=token_map.device)]
    return merged(Truth(boxes - boxes.new_tensor([0, 0, 1, 1]), tokens))


def merged(truth: Truth) -> Truth:
    """Each box once, with the tokens of all that it is called: a place is responsible for one box only."""
    boxes, owner = truth.boxes.unique(dim=0, return_inverse=True)
    if len(boxes) == len(truth.boxes):
        return truth
    tokens = truth.tokens.new_zeros(len(boxes), truth.tokens.shape[1], dtype=torch.long)
    return Truth(boxes, tokens.index_add_(0, owner, truth.tokens.long()) > 0)


def ignored_tokens(prompt: Prompt, token_map: Tensor) -> Tensor:
    """[L] bool, tokens that are marked as ignored and belong to no phrase with boxes."""
    marks = [label == IGNORED for label in prompt.labels]
    is_ignored = torch.tensor(marks, dtype=torch.bool, device=token_map.device)
    return token_map[is_ignored].any(0) & ~token_map[~is_ignored].any(0)
