"""Class names and captions as tokenized prompts that fit a text encoder. No weights are needed."""

from collections.abc import Sequence

from ...text.phrases import SEPARATOR, Prompt, Wordings, class_prompt, split_caption, split_names, word_name
from .token_encoder import PromptTokenizer


class PromptBuilder:
    """Makes prompts with their tokens.

    Args:
        tokenizer: of the text encoder.
    """

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self.tokenizer = tokenizer

    def name_prompts(
        self,
        names: Sequence[str],
        per_prompt: int | None = None,
        final: str = '',
        wordings: Wordings | None = None,
    ) -> list[Prompt]:
        """Split a list of class names into as many prompts as needed, see ``split_names``, ``class_prompt``.

        Raises:
            ValueError: a name without tokens, or longer than a prompt may be.
        """
        worded = [word_name(name, (wordings or {}).get(name))[0] for name in names]
        *alone, ending = self.tokenizer.count_tokens([*worded, final])
        ended = self.tokenizer.count_tokens([text + SEPARATOR for text in worded])
        # A sign at the end of a name may form one token with the separator.
        counts = [max(count, with_separator - 1) for count, with_separator in zip(alone, ended)]
        special = 2 + ending
        limit = self.tokenizer.max_tokens - special
        for name, count in zip(names, counts):
            if not 0 < count <= limit:
                raise ValueError(f'class name {name[:60]!r} has {count} tokens, expected 1 to {limit}')
        return [
            self.tokenizer.tokenize(class_prompt([names[index] for index in part], part, final, wordings))
            for part in split_names(counts, self.tokenizer.max_tokens, per_prompt, special)
        ]

    def caption_prompts(self, prompt: Prompt) -> list[Prompt]:
        """Tokenize a caption; split into windows if it is too long, see ``split_caption``.

        Raises:
            ValueError: a phrase without tokens, or longer than a prompt may be.
        """
        encoded = self.tokenizer.encode(prompt.text)
        windows = split_caption(prompt, encoded[1], self.tokenizer.max_tokens)
        if len(windows) == 1 and windows[0] is prompt:
            return [self.tokenizer.tokenize(prompt, encoded)]
        return [self.tokenizer.tokenize(window) for window in windows]
