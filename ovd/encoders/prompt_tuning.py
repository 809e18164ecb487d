"""Prompt tuning: learned shifts of the token features of some sentences, in a small file of their own.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022, Appendix E, and the released code: zeros
at first, added to both outputs of the text encoder. There the rows belong to places in whatever text is read;
here to the sentences that they were trained with.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checkpoints.loading import load_metadata, load_tensors
from ..checkpoints.writing import save_tensors
from ..text.phrases import Prompt
from ..text.vocabulary import Vocabulary
from .loading import PathLike
from .text_encoder import check_same_encoder
from .token_encoder import TokenFeatures

_FORMAT = 'ovd.prompt_offset'
_VERSION = '1'


class PromptOffset(nn.Module):
    """Adds a vector of its own to every token of some sentences; other texts pass unchanged.

    Args:
        texts: the sentences.
        lengths: tokens of each, special ones included.
        channels: width W of the token features.
        vocabulary: whose sentences these are.
        encoder_fingerprint: of the encoder that the shifts were trained with; None while they are trained.
            The rows are a parameter then, and otherwise fixed and no part of checkpoints.
    Attributes:
        rows: [sum of lengths, W], zero at first.
    """

    rows: Tensor

    def __init__(
        self,
        texts: Sequence[str],
        lengths: Sequence[int],
        channels: int,
        vocabulary: Vocabulary,
        encoder_fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        self.lengths = dict(zip(texts, lengths, strict=True))
        self.vocabulary = vocabulary
        self.encoder_fingerprint = encoder_fingerprint
        rows = torch.zeros(sum(lengths), channels)
        if encoder_fingerprint is None:
            self.rows = nn.Parameter(rows)
        else:
            self.register_buffer('rows', rows, persistent=False)

    def forward(self, features: TokenFeatures, prompts: Sequence[Prompt]) -> TokenFeatures:
        """Features of P prompts, [P, L, W] -> the same, shifted.

        Raises:
            ValueError: in training, a text without shifts, which would learn nothing.
        """
        parts = dict(zip(self.lengths, self.rows.split(list(self.lengths.values()))))
        shifts = torch.zeros_like(features.hidden)
        for row, prompt in enumerate(prompts):
            if prompt.text in parts:
                part = parts[prompt.text]
                shifts[row, : len(part)] = part.to(shifts)
            elif self.training and isinstance(self.rows, nn.Parameter):
                raise ValueError(
                    f'prompt tuning trains the sentence of the vocabulary as it is, an image came with '
                    f'{prompt.text[:60]!r}: leave out captions and what samples class names'
                )
        return TokenFeatures(features.hidden + shifts, features.embedded + shifts, features.mask)

    def check_encoder(self, fingerprint: str) -> None:
        """Refuse (ValueError) shifts that were trained with another text encoder."""
        check_same_encoder(self.encoder_fingerprint, fingerprint, 'the shifts of the prompt')

    def save(self, path: PathLike, encoder_fingerprint: str) -> None:
        """Write one safetensors file with the words, by custom named ``*.prompt.safetensors``."""
        metadata = {
            'format': _FORMAT,
            'version': _VERSION,
            'lengths': json.dumps(self.lengths, ensure_ascii=False),
            'vocabulary': json.dumps(self.vocabulary.to_dict(), ensure_ascii=False),
            'encoder_fingerprint': encoder_fingerprint,
        }
        save_tensors(path, {'rows': self.rows}, metadata)

    @classmethod
    def load(cls, path: PathLike) -> 'PromptOffset':
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or a damaged one.
        """
        metadata = load_metadata(path)
        if metadata.get('format') != _FORMAT:
            raise ValueError(f'{path} holds no tuned prompt; training with text.offset=True writes one')
        if metadata.get('version') != _VERSION:
            raise ValueError(f'{path} has format version {metadata.get("version")!r}, expected {_VERSION!r}')
        try:
            lengths = json.loads(metadata['lengths'])
            rows = load_tensors(path)['rows'].to(torch.float32)
            vocabulary = Vocabulary.parse(json.loads(metadata['vocabulary']))
            fingerprint = metadata['encoder_fingerprint']
            offset = cls(list(lengths), list(lengths.values()), rows.shape[1], vocabulary, fingerprint)
            if offset.rows.shape != rows.shape:
                raise ValueError(f'{len(rows)} rows for sentences of {len(offset.rows)} tokens')
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f'{path} is damaged: {error}') from None
        offset.rows.copy_(rows)
        return offset
