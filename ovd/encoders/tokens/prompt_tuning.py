"""Prompt tuning: learned shifts of the token features of some prompts, saved in a small file.

Source: Li et al., "Grounded Language-Image Pre-training", CVPR 2022, Appendix E, and the released code: zeros
at first, added to both outputs of the text encoder. There the rows belong to token positions of any text,
here to the prompts that they were trained with.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...checkpoints.loading import load_metadata, load_tensors
from ...checkpoints.writing import save_tensors
from ...text.phrases import Prompt
from ...text.vocabulary import Vocabulary
from ..loading import PathLike
from ..text_encoder import check_same_encoder
from .token_encoder import TokenFeatures

_FORMAT = 'ovd.prompt_offset'
_VERSION = '1'


class PromptTuning(nn.Module):
    """Adds a learned vector to each token of some prompts; other prompts pass unchanged.

    Args:
        texts: of the prompts.
        lengths: tokens of each, special ones included.
        channels: width W of the token features.
        vocabulary: of the prompts.
        encoder_fingerprint: of the encoder that the shifts were trained with; None during training. The rows
            are then a parameter, otherwise fixed and not part of checkpoints.
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
        """Shift the features [P, L, W] of P prompts.

        Raises:
            ValueError: in training, a prompt without shifts: it would train nothing.
        """
        parts = dict(zip(self.lengths, self.rows.split(list(self.lengths.values()))))
        shifts = torch.zeros_like(features.hidden)
        for row, prompt in enumerate(prompts):
            if prompt.text in parts:
                part = parts[prompt.text]
                shifts[row, : len(part)] = part.to(shifts)
            elif self.training and isinstance(self.rows, nn.Parameter):
                raise ValueError(
                    f'prompt tuning trains the prompt of the vocabulary only, got {prompt.text[:60]!r}: '
                    f'leave out captions and ovd.SampleClassNames'
                )
        return TokenFeatures(features.hidden + shifts, features.embedded + shifts, features.mask)

    def check_encoder(self, fingerprint: str) -> None:
        """Raise ValueError for shifts that were trained with another text encoder."""
        check_same_encoder(self.encoder_fingerprint, fingerprint, 'the shifts of the prompt')

    def save(self, path: PathLike, encoder_fingerprint: str) -> None:
        """Write shifts and vocabulary as one safetensors file, usually named ``*.prompt.safetensors``."""
        metadata = {
            'format': _FORMAT,
            'version': _VERSION,
            'lengths': json.dumps(self.lengths, ensure_ascii=False),
            'vocabulary': json.dumps(self.vocabulary.to_dict(), ensure_ascii=False),
            'encoder_fingerprint': encoder_fingerprint,
        }
        save_tensors(path, {'rows': self.rows}, metadata)

    @classmethod
    def load(cls, path: PathLike) -> 'PromptTuning':
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or a damaged one.
        """
        metadata = load_metadata(path)
        found = metadata.get('format'), metadata.get('version')
        if found != (_FORMAT, _VERSION):
            raise ValueError(
                f'{path} is no tuned prompt: format and version are {found}, expected {(_FORMAT, _VERSION)}; '
                'training with text.offset=True writes one'
            )
        try:
            lengths = json.loads(metadata['lengths'])
            rows = load_tensors(path)['rows'].to(torch.float32)
            vocabulary = Vocabulary.parse(json.loads(metadata['vocabulary']))
            fingerprint = metadata['encoder_fingerprint']
            tuning = cls(list(lengths), list(lengths.values()), rows.shape[1], vocabulary, fingerprint)
            if tuning.rows.shape != rows.shape:
                raise ValueError(f'{len(rows)} rows for prompts of {len(tuning.rows)} tokens')
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f'{path} is damaged: {error}') from None
        tuning.rows.copy_(rows)
        return tuning
