"""GroupViT at toy width: a configuration that reads real words, and that of the stored reference model."""

from typing import Any

import torch
from mmseg.structures import SegDataSample

from ovd.models.groupvit.segmentor import GroupViT
from ovd.registry import MODELS

WORDS = ['cat', 'dog', 'tree']


def toy_config(**changes: Any) -> dict[str, Any]:
    """The ``model`` section of a small GroupViT; ``changes`` replace keys, dicts are merged."""
    config: dict[str, Any] = {
        'type': 'ovd.GroupViT',
        'image_encoder': {
            'type': 'ovd.GroupingTransformer',
            'image_size': 32,
            'patch_size': 8,
            'dims': (16, 16, 16),
            'depths': (2, 1, 1),
            'num_heads': (2, 2, 2),
            'num_group_tokens': (6, 3, 0),
            'num_output_groups': (6, 3),
        },
        'text_encoder': {'width': 16, 'heads': 2, 'layers': 2, 'context_length': 20},
        'embed_dim': 8,
        'hidden_dim': 24,
        'text': {'vocabulary': WORDS},
        'readout': {'type': 'ovd.ReferenceReadout'},
        'size_divisor': 1,
    }
    for key, value in changes.items():
        old = config.get(key)
        config[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return config


def toy_groupvit(**changes: Any) -> GroupViT:
    """A toy in evaluation whose tokens, mixes and assignments are large enough to tell groups apart."""
    torch.manual_seed(0)
    model = MODELS.build(toy_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ('group_tokens', 'mix.fc', 'merge.query', 'merge.key')):
                torch.nn.init.normal_(parameter)
    return model.eval()


def reference_config(**changes: Any) -> dict[str, Any]:
    """The reference model 'a' of the stored values."""
    config = toy_config(
        image_encoder={
            'patch_size': 4,
            'dims': (48, 48, 48),
            'depths': (2, 2, 1),
            'num_heads': (4, 4, 4),
            'num_group_tokens': (8, 4, 0),
            'num_output_groups': (8, 4),
        },
        text_encoder={'width': 64, 'heads': 1, 'layers': 2, 'context_length': 16, 'vocab_size': 64},
        embed_dim=16,
        hidden_dim=64,
        multi_label={},
    )
    return {**config, **changes}


def toy_batch(count: int = 4, prompts: int = 2, side: int = 32, seed: int = 0) -> dict[str, Any]:
    """A training batch: noisy colours, texts of random tokens; the last prompt of the last image a filler."""
    random = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        token_ids = torch.randint(1, 400, (1 + prompts, 20), generator=random)
        token_ids[:, 0] = 49406
        for row in token_ids:
            end = int(torch.randint(3, 12, (), generator=random))
            row[end] = 49407
            row[end + 1 :] = 0
        noun_ids = torch.randint(0, 3, (prompts,), generator=random)
        if index == count - 1 and prompts:
            token_ids[-1] = token_ids[0]
            noun_ids[-1] = -1
        sample = SegDataSample(metainfo={'ori_shape': (side, side), 'img_shape': (side, side)})
        sample.token_ids, sample.noun_ids, sample.noun_mask = token_ids, noun_ids, noun_ids >= 0
        samples.append(sample)
    colors = 3 * torch.randn(count, 3, 1, 1, generator=random)
    return {
        'inputs': colors + torch.randn(count, 3, side, side, generator=random),
        'data_samples': samples,
    }
