"""Key map from LSeg's published checkpoints to ours.

Source of the key layout: isl-org/lang-seg: modules/models/lseg_net.py, lseg_net_zs.py (Lightning
checkpoints).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .converted import Converted

_PREFIX = 'net.'
_REQUIRED_KEY = 'scratch.head1.weight'

# Omitted on purpose: (pattern of keys, reason).
_UNUSED = [
    (r'clip_pretrained\..+', 'the copy of CLIP; text embeddings are computed with the published model'),
    (r'pretrained\.model\.(fc_)?norm\..+', 'the final norm of the ViT, which LSeg computes and never uses'),
    (r'pretrained\.model\.head(_dist)?\..+', 'the ImageNet classifier of the ViT'),
    (
        r'scratch\.refinenet4\.resConfUnit1\..+',
        'the first residual unit of the coarsest level, which is created and never called',
    ),
]

_RULES = [
    (r'pretrained\.model\.(.+)', r'backbone.vit.\1'),
    (r'pretrained\.act_postprocess(\d)\.0\.project\.0\.(.+)', r'backbone.readouts.#\1.project.\2'),
    (r'pretrained\.act_postprocess(\d)\.3\.(.+)', r'backbone.reassemble.#\1.project.\2'),
    (r'pretrained\.act_postprocess(\d)\.4\.(.+)', r'backbone.reassemble.#\1.resample.\2'),
    (r'pretrained\.layer1\.0\.(.+)', r'backbone.net.conv1.\1'),
    (r'pretrained\.layer1\.1\.(.+)', r'backbone.net.bn1.\1'),
    (r'pretrained\.layer1\.4\.(.+)', r'backbone.net.layer1.\1'),
    (r'pretrained\.(layer[234])\.(.+)', r'backbone.net.\1.\2'),
    (r'scratch\.layer(\d)_rn\.(.+)', r'neck.lateral.#\1.\2'),
    (r'scratch\.refinenet(\d)\.out_conv\.(.+)', r'neck.fusion.#\1.project.\2'),
    (r'scratch\.refinenet(\d)\.resConfUnit1\.conv(\d)\.(.+)', r'neck.fusion.#\1.refine_lateral.conv\2.\3'),
    (r'scratch\.refinenet(\d)\.resConfUnit1\.bn(\d)\.(.+)', r'neck.fusion.#\1.refine_lateral.norm\2.\3'),
    (r'scratch\.refinenet(\d)\.resConfUnit2\.conv(\d)\.(.+)', r'neck.fusion.#\1.refine.conv\2.\3'),
    (r'scratch\.refinenet(\d)\.resConfUnit2\.bn(\d)\.(.+)', r'neck.fusion.#\1.refine.norm\2.\3'),
    (r'scratch\.head1\.(.+)', r'head.project.\1'),
    (r'scratch\.head_block\.depthwise\.depthwise\.(.+)', r'head.regularization.conv.\1'),
]


def convert_lseg(tensors: Mapping[str, Tensor]) -> Converted:
    """Convert an LSeg checkpoint: ViT or ResNet, fixed labels or zero-shot.

    Labels, temperature, and kind, depth and activation of the regularisation block are not in the file but in
    the config.

    Args:
        tensors: the ``state_dict`` of a Lightning checkpoint, with or without the prefix ``net.``.
    Raises:
        ValueError: not an LSeg checkpoint.
    """
    prefix = _PREFIX if _PREFIX + _REQUIRED_KEY in tensors else ''
    if prefix + _REQUIRED_KEY not in tensors:
        raise ValueError(f'not an LSeg checkpoint: {_PREFIX + _REQUIRED_KEY!r} is not in it')
    converted: dict[str, Tensor] = {}
    stripped, unmatched = [], []
    counts = dict.fromkeys(reason for _, reason in _UNUSED)
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        reason = next((why for pattern, why in _UNUSED if re.fullmatch(pattern, name)), None)
        target = _renamed(name) if reason is None and key.startswith(prefix) else None
        if reason is not None:
            stripped.append(key)
            counts[reason] = (counts[reason] or 0) + 1
        elif target is not None:
            converted[target] = tensor
        else:
            unmatched.append(key)
    notes = [describe_lseg(converted)]
    notes += [f'omitted {count} tensors: {reason}' for reason, count in counts.items() if count]
    return Converted(converted, stripped, unmatched, tuple(notes))


def describe_lseg(converted: Mapping[str, Tensor]) -> str:
    """Describe the variant of converted tensors."""
    if 'backbone.vit.patch_embed.proj.weight' in converted:
        weight = converted['backbone.vit.patch_embed.proj.weight']
        depth = len({key.split('.')[3] for key in converted if key.startswith('backbone.vit.blocks.')})
        positions = converted['backbone.vit.pos_embed'].shape[1] - 1
        side = round(positions**0.5) * weight.shape[-1]
        trunk = f'ViT of width {weight.shape[0]}, {depth} blocks, patch {weight.shape[-1]}, image size {side}'
    else:
        depths = [
            len({key.split('.')[3] for key in converted if key.startswith(f'backbone.net.layer{stage}.')})
            for stage in (1, 2, 3, 4)
        ]
        trunk = f'ResNet of {depths} blocks'
    width, channels = converted['head.project.weight'].shape[:2]
    block = (
        'a regularization block (its kind, depth and activation are not in the file)'
        if 'head.regularization.conv.weight' in converted
        else 'no regularization block'
    )
    return f'{trunk}; decoder of width {channels}; joint space of width {width}; {block}'


def _renamed(key: str) -> str | None:
    for pattern, target in _RULES:
        if match := re.fullmatch(pattern, key):
            # '#N' is the index of a level, counted from 1 there and from 0 here.
            return re.sub(r'#(\d)', lambda level: str(int(level[1]) - 1), match.expand(target))
    return None
