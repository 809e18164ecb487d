"""Texts for training: sampled class names, captions among captions of other images, and their prompts.

Reading order: SampleClassNames, PackNegativeCaptions, BuildPrompt.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from ...encoders.tokens.build_token_encoder import build_prompt_tokenizer, load_token_counter
from ...encoders.tokens.prompt_builder import PromptBuilder
from ...registry import TRANSFORMS
from ...text.nouns import NameMatcher
from ...text.phrases import class_prompt, clean_name
from ...text.vocabulary import Vocabulary
from ..sample_traits import SampleTraits
from .training_prompts import build_training_prompt


@TRANSFORMS.register_module()
class SampleClassNames(SampleTraits, BaseTransform):
    """Sample the class names of an image's prompt: those of its boxes, and negatives.

    Sets ``text`` and ``tokens_positive``, empties ``caption_ranges``, and turns the labels of boxes into
    indices of the sampled names. Boxes of classes that do not fit into the prompt are left out. Novel classes
    are never sampled.

    Args:
        vocabulary: of the labels, anything ``Vocabulary.parse`` takes.
        tokenizer: folder of the text encoder, whose tokens are counted, see ``load_token_counter``.
        max_names: number of names drawn from the vocabulary, before those of the image are removed.
        full_prob: probability of drawing exactly ``max_names``; otherwise 1 to ``max_names``, uniformly.
        max_tokens: limit of the prompt, special tokens included.
        shuffle: names in random order; otherwise in the order of the vocabulary.
        final: appended after the last name.

    Source: Li et al., CVPR 2022, Appendix (released code): 85 names, half of the time.
    """

    provides_class_names = True  # samples carry their class names
    sample_keys = ('text', 'tokens_positive', 'caption_ranges')

    def __init__(
        self,
        vocabulary: Any,
        tokenizer: str | os.PathLike[str],
        max_names: int = 85,
        full_prob: float = 0.5,
        max_tokens: int = 256,
        shuffle: bool = True,
        final: str = '',
    ) -> None:
        self.vocabulary = Vocabulary.parse(vocabulary)
        names = [clean_name(name) for name in self.vocabulary.names]
        self.count_tokens = load_token_counter(tokenizer)
        # Each name is followed by a separator, the last one by what ends the sentence.
        *counts, ending = self.count_tokens([*names, final])
        self._costs = [count + 1 for count in counts]
        self._base_labels = np.flatnonzero(~np.array(self.vocabulary.is_novel))
        self.budget = max_tokens - 2 - max(ending - 1, 0)
        longest = int(np.argmax(self._costs))
        if self._costs[longest] > self.budget:
            raise ValueError(f'class {names[longest]!r} does not fit a prompt of {max_tokens} tokens')
        self.max_names = max_names
        self.full_prob = full_prob
        self.shuffle = shuffle
        self.final = final

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        labels = np.asarray(results['gt_bboxes_labels'], dtype=np.int64)
        positives = np.random.permutation(np.unique(labels))  # noqa: NPY002  (seeded by the loader)
        chosen, left = self._fitting(positives, self.budget)
        chosen += self._fitting(self._negatives(positives), left)[0]
        order = np.random.permutation(chosen).tolist() if self.shuffle else sorted(chosen)  # noqa: NPY002
        prompt = class_prompt([self.vocabulary.names[label] for label in order], final=self.final)
        index_of = {label: index for index, label in enumerate(order)}
        kept = np.array([label in index_of for label in labels.tolist()], dtype=bool)
        keep_boxes(results, kept)
        results['gt_bboxes_labels'] = np.array(
            [index_of[label] for label in labels[kept].tolist()], dtype=np.int64
        )
        results['text'] = prompt.text
        results['caption_ranges'] = []
        results['tokens_positive'] = {
            label: [list(span) for span in spans] for label, spans in zip(prompt.labels, prompt.spans)
        }
        return results

    def _negatives(self, positives: np.ndarray) -> np.ndarray:
        """Labels of classes that the image does not have, in random order."""
        count = self.max_names
        if np.random.random() >= self.full_prob:  # noqa: NPY002
            count = int(np.random.randint(1, self.max_names + 1))  # noqa: NPY002
        drawn = np.random.permutation(self._base_labels)[:count]  # noqa: NPY002
        return drawn[~np.isin(drawn, positives)]

    def _fitting(self, labels: np.ndarray, budget: int) -> tuple[list[int], int]:
        """The labels that fit the budget, taken in order, and the tokens that are left."""
        chosen = []
        for label in labels.tolist():
            if self._costs[label] <= budget:
                chosen.append(label)
                budget -= self._costs[label]
        return chosen, budget

    def __repr__(self) -> str:
        return f'{type(self).__name__}({len(self.vocabulary)} classes, max_names={self.max_names})'


@TRANSFORMS.register_module()
class PackNegativeCaptions(SampleTraits, BaseTransform):
    """Join an image's caption with captions of other images as negatives.

    Changes ``text``, shifts ``tokens_positive`` and ``tokens_ignored`` with their caption, and sets
    ``caption_ranges`` to its characters. A caption that contains one of the image's own phrases is not used.

    Args:
        captions: ODVG lines, or a text file with one caption per line; read on first use.
        tokenizer: folder of the text encoder, whose tokens are counted, see ``load_token_counter``.
        max_negatives: most captions to add; fewer if they do not fit.
        plain_prob: probability of adding none.
        full_prob: probability of adding as many as possible; otherwise 0 to ``max_negatives``, uniformly.
        max_tokens: limit of the text, special tokens included.
        vocabulary: anything ``Vocabulary.parse`` takes; captions that name a class of the image's own caption
            are not used either: the image may well show what they describe.

    Source: Li et al., CVPR 2022, Appendix: 19 captions, with probabilities 0.4, 0.3 and 0.3.
    """

    sample_keys = ('text', 'tokens_positive', 'tokens_ignored', 'caption_ranges')

    def __init__(
        self,
        captions: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str],
        max_negatives: int = 19,
        plain_prob: float = 0.4,
        full_prob: float = 0.3,
        max_tokens: int = 256,
        vocabulary: Any = None,
    ) -> None:
        self.file = Path(captions)
        if not self.file.is_file():
            raise FileNotFoundError(f'caption file {self.file} does not exist')
        self.count_tokens = load_token_counter(tokenizer)
        self.max_negatives = max_negatives
        self.plain_prob = plain_prob
        self.full_prob = full_prob
        self.budget = max_tokens - 2
        self._matcher = None if vocabulary is None else NameMatcher(Vocabulary.parse(vocabulary))

    @cached_property
    def captions(self) -> list[str]:
        """All captions of the file, each once."""
        with self.file.open(encoding='utf-8') as stream:
            lines = [(number, line.strip()) for number, line in enumerate(stream, 1) if line.strip()]
        if self.file.suffix in ('.jsonl', '.json'):
            lines = [(number, _caption_of(line, f'{self.file}, line {number}')) for number, line in lines]
        if not lines:
            raise ValueError(f'caption file {self.file} is empty')
        return list(dict.fromkeys(caption for _, caption in lines))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        draw = np.random.random()  # noqa: NPY002  (seeded by the loader)
        if draw < self.plain_prob:
            return results
        wanted = self.max_negatives
        if draw >= self.plain_prob + self.full_prob:
            wanted = int(np.random.randint(0, self.max_negatives + 1))  # noqa: NPY002
        own = _ended(results['text'])
        others = self._others(own, self._phrases(results), wanted)
        index = int(np.random.randint(0, len(others) + 1))  # noqa: NPY002
        shift = sum(len(other) + 1 for other in others[:index])
        results['text'] = ' '.join([*others[:index], own, *others[index:]])
        results['caption_ranges'] = [[shift, shift + len(own)]]
        results['tokens_positive'] = {
            label: _shifted(spans, shift, len(own)) for label, spans in results['tokens_positive'].items()
        }
        if 'tokens_ignored' in results:
            results['tokens_ignored'] = _shifted(results['tokens_ignored'], shift, len(own))
        return results

    def _others(self, own: str, phrases: Sequence[str], wanted: int) -> list[str]:
        """Negative captions that fit the budget beside the image's own."""
        left = self.budget - self._count(own)
        classes = self._classes(own)
        others = []
        for index in np.random.randint(0, len(self.captions), wanted).tolist():  # noqa: NPY002
            other = _ended(self.captions[index])
            alike = other == own or any(phrase in other.lower() for phrase in phrases)
            if not alike and classes.isdisjoint(self._classes(other)):
                cost = self._count(other)
                if cost <= left:
                    others.append(other)
                    left -= cost
        return others

    def _classes(self, text: str) -> set[int | None]:
        """Classes that a text names."""
        return set() if self._matcher is None else {noun.label for noun in self._matcher.find(text)}

    def _count(self, text: str) -> int:
        return self.count_tokens([text])[0]

    @staticmethod
    def _phrases(results: dict[str, Any]) -> list[str]:
        """The image's own phrases, lower case."""
        ranges = [span for spans in results['tokens_positive'].values() for span in spans]
        ranges += results.get('tokens_ignored', [])
        return [results['text'][start:end].lower() for start, end in ranges]

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.file}, max_negatives={self.max_negatives})'


@TRANSFORMS.register_module()
class BuildPrompt(SampleTraits, BaseTransform):
    """Build the training prompt of a sample in the data loader, see ``build_training_prompt``.

    Reads ``text`` and what comes with it, sets ``prompt``, and leaves out boxes of phrases that a long
    caption's window does not hold. It is the last step before packing, since later steps must not change
    which boxes there are. Samples without ``text`` pass unchanged: they are trained with the vocabulary of
    the model.

    Args:
        encoder: ``text.encoder`` of the model, filled in by the training tool; only the tokenizer is loaded.
            Without it samples pass unchanged, and the model builds their prompts.
        final: appended after the last of a list of class names.
    """

    sample_keys = ('prompt',)

    def __init__(self, encoder: Mapping[str, Any] | None = None, final: str = '') -> None:
        self.builder = None if encoder is None else PromptBuilder(build_prompt_tokenizer(encoder))
        self.final = final

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if self.builder is None or results.get('text') is None:
            return results
        labels = np.asarray(results['gt_bboxes_labels'], dtype=np.int64)
        ignored = results.get('gt_ignore_flags', np.zeros(len(labels), dtype=bool))
        # Boxes that are ignored have no row in the positive map: packing puts them elsewhere.
        trained = np.flatnonzero(~ignored)
        results['prompt'], kept = build_training_prompt(
            self.builder, results, labels[trained].tolist(), self.final
        )
        if len(kept) < len(trained):
            keep_boxes(results, np.sort(np.concatenate([trained[kept], np.flatnonzero(ignored)])))
        return results

    def __repr__(self) -> str:
        tokenizer = None if self.builder is None else type(self.builder.tokenizer).__name__
        return f'{type(self).__name__}({tokenizer})'


def keep_boxes(results: dict[str, Any], kept: np.ndarray) -> None:
    """Keep some boxes, by index or mask, and what belongs to them."""
    for key in ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags', 'gt_masks'):
        if key in results:
            results[key] = results[key][kept]


def _caption_of(line: str, where: str) -> str:
    """The caption of an ODVG line."""
    try:
        return str(json.loads(line)['grounding']['caption']).strip()
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where}: expected an ODVG line with a caption in 'grounding'") from None


def _ended(caption: str) -> str:
    """A caption that ends with a full stop."""
    caption = caption.rstrip()
    return caption if caption.endswith('.') else caption + '.'


def _shifted(spans: Sequence[Sequence[int]], shift: int, limit: int) -> list[list[int]]:
    """Ranges of a caption that now begins at ``shift`` and was stripped to ``limit`` characters."""
    return [[start + shift, min(end, limit) + shift] for start, end in spans]
