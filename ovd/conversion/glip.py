"""Key maps from GLIP's published checkpoints, in mmdet's or the authors' format, to ours.

Source of the key layouts: open-mmlab/mmdetection: configs/glip (converted files); microsoft/GLIP:
maskrcnn_benchmark/modeling.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .converted import Converted

_TOWER = 'bbox_head.head.dyhead_tower.'
_PROMPT = 'text_offset.rows'
_LANGUAGE = r'bbox_head\.head\.mlm_head\.'

# Omitted on purpose: (pattern of keys in mmdet's format, reason).
_UNUSED = [
    (r'text\.model\.embeddings\.position_ids', 'position indices stored by older versions of BERT'),
    (r'text\.model\.pooler\..+', "BERT's pooling layer, which GLIP never uses"),
    (_LANGUAGE + r'.+', 'the head of masked language modelling, which detection never uses'),
    (
        r'bbox_head\.(\w+\.)?shallow_(contrastive_projection_\w+\..+|log_scale)',
        "the projections that contrast regions with words of other images, which GLIPv2's training uses",
    ),
    (r'bbox_head\.head\.cls_logits\..+', 'a frozen convolution that the authors create and never use'),
    (r'(bbox_head|rpn)\.(anchor_generator|resizer)\..+', 'anchors and settings, which are recomputed'),
    (r'resizer\..+', 'settings, which are recomputed'),
]

_PARTS = [
    (r'language_model\.language_backbone\.body\.model\.(.+)', r'text.model.\1'),
    (r'bbox_head\.head\.(centerness|scales\.\d+|log_scale)(.*)', r'bbox_head.\1\2'),
    (r'bbox_head\.head\.bbox_pred\.(.+)', r'bbox_head.boxes.\1'),
    (r'bbox_head\.head\.dot_product_projection_text\.(.+)', r'bbox_head.project_text.\1'),
    (r'bbox_head\.head\.bias_lang', r'bbox_head.bias_text'),
    (r'bbox_head\.head\.bias0', r'bbox_head.bias'),
    (r'bbox_head\.(?:head\.)?tunable_linear\.weight', _PROMPT),
    (r'(backbone|neck)\.(.+)', r'\1.\2'),
]

# Parts of GLIPv2: the contrast between images, and the head of masked language modelling in the layout of
# transformers, which stores its bias under two names.
_V2_PARTS = [
    (
        r'bbox_head\.(?:\w+\.)?shallow_contrastive_projection_image\.(.+)',
        r'contrast.project_regions.\1',
    ),
    (r'bbox_head\.(?:\w+\.)?shallow_contrastive_projection_text\.(.+)', r'contrast.project_words.\1'),
    (r'bbox_head\.(?:\w+\.)?shallow_log_scale', r'contrast.log_scale'),
    (_LANGUAGE + r'(?:predictions\.)?transform\.dense\.(.+)', r'language.dense.\1'),
    (_LANGUAGE + r'(?:predictions\.)?transform\.LayerNorm\.(.+)', r'language.norm.\1'),
    (_LANGUAGE + r'(?:predictions\.)?decoder\.(.+)', r'language.decoder.\1'),
    (_LANGUAGE + r'(?:predictions\.)?bias', r'language.decoder.bias'),
]

# Names within an element of the tower.
_ELEMENTS = [
    (r'b_attn\.attn\.v_proj\.(.+)', r'fuse.attention.query.\1'),
    (r'b_attn\.attn\.l_proj\.(.+)', r'fuse.attention.key.\1'),
    (r'b_attn\.attn\.values_v_proj\.(.+)', r'fuse.attention.image_value.\1'),
    (r'b_attn\.attn\.values_l_proj\.(.+)', r'fuse.attention.text_value.\1'),
    (r'b_attn\.attn\.out_v_proj\.(.+)', r'fuse.attention.image_out.\1'),
    (r'b_attn\.attn\.out_l_proj\.(.+)', r'fuse.attention.text_out.\1'),
    (r'b_attn\.layer_norm_v\.(.+)', r'fuse.norm_image.\1'),
    (r'b_attn\.layer_norm_l\.(.+)', r'fuse.norm_text.\1'),
    (r'b_attn\.gamma_v', r'fuse.scale_image'),
    (r'b_attn\.gamma_l', r'fuse.scale_text'),
    (r'attention\.self\.(query|key|value)\.(.+)', r'text.\1.\2'),
    (r'attention\.output\.dense\.(.+)', r'text.attention_out.\1'),
    (r'attention\.output\.LayerNorm\.(.+)', r'text.norm_attention.\1'),
    (r'intermediate\.dense\.(.+)', r'text.expand.\1'),
    (r'output\.dense\.(.+)', r'text.contract.\1'),
    (r'output\.LayerNorm\.(.+)', r'text.norm_out.\1'),
    (r'dyconvs\.0\.conv\.(.+)', r'dyhead.from_coarser.conv.\1'),
    (r'dyconvs\.1\.conv\.(.+)', r'dyhead.from_same.conv.\1'),
    (r'dyconvs\.2\.conv\.(.+)', r'dyhead.from_finer.conv.\1'),
    (r'dyconvs\.0\.bn\.(.+)', r'dyhead.from_coarser.norm.\1'),
    (r'dyconvs\.1\.bn\.(.+)', r'dyhead.from_same.norm.\1'),
    (r'dyconvs\.2\.bn\.(.+)', r'dyhead.from_finer.norm.\1'),
    (r'attnconv\.1\.(.+)', r'dyhead.weigh.\1'),
    (r'relu\.fc\.0\.(.+)', r'dyhead.bend.reduce.\1'),
    (r'relu\.fc\.2\.(.+)', r'dyhead.bend.expand.\1'),
    (r'offset\.(.+)', r'dyhead.shifts.\1'),
]

# The authors' names -> mmdet's names; '#N' is a number counted from 2 there and from 0 here.
_BLOCK = r'backbone\.body\.layers\.(\d+\.blocks\.\d+)'
_MICROSOFT = [
    (r'backbone\.body\.patch_embed\.proj\.(.+)', r'backbone.patch_embed.projection.\1'),
    (_BLOCK + r'\.mlp\.fc1\.(.+)', r'backbone.stages.\1.ffn.layers.0.0.\2'),
    (_BLOCK + r'\.mlp\.fc2\.(.+)', r'backbone.stages.\1.ffn.layers.1.\2'),
    (_BLOCK + r'\.attn\.(.+)', r'backbone.stages.\1.attn.w_msa.\2'),
    (r'backbone\.body\.layers\.(.+)', r'backbone.stages.\1'),
    (r'backbone\.body\.(.+)', r'backbone.\1'),
    (r'backbone\.fpn\.fpn_inner(\d)\.(.+)', r'neck.lateral_convs.#\1.conv.\2'),
    (r'backbone\.fpn\.fpn_layer(\d)\.(.+)', r'neck.fpn_convs.#\1.conv.\2'),
    (r'backbone\.fpn\.top_blocks\.p6\.(.+)', r'neck.fpn_convs.3.conv.\1'),
    (r'backbone\.fpn\.top_blocks\.p7\.(.+)', r'neck.fpn_convs.4.conv.\1'),
    (r'rpn\.(.+)', r'bbox_head.\1'),
    (r'language_backbone\.(.+)', r'language_model.language_backbone.\1'),
]
_MICROSOFT_PREFIX = 'rpn.head.'


def convert_glip(tensors: Mapping[str, Tensor], version: int = 1) -> Converted:
    """Convert a GLIP checkpoint, shallow (A) or deep (B, C, T, L), in mmdet's format or the authors'.

    The numbers of attention heads are not in the file but in the config. A tuned prompt, one row for each
    token of the sentence that it was tuned with, becomes the ``text_offset`` of a model with
    ``text.offset=True`` and the words of that sentence.

    Args:
        version: 2 keeps what only GLIPv2's training uses: the head of masked language modelling and the
            contrast between images, for ``GLIPv2`` with ``language`` and ``contrast``.
    Raises:
        ValueError: not a GLIP checkpoint.
    """
    clean = {key.removeprefix('module.'): key for key in tensors}
    is_microsoft = any(key.startswith(_MICROSOFT_PREFIX) for key in clean)
    if not is_microsoft and not any(key.startswith(_TOWER) for key in clean):
        raise ValueError(f'not a GLIP checkpoint: no key begins with {_TOWER!r} or {_MICROSOFT_PREFIX!r}')
    is_deep = any('.b_attn.' in key for key in clean)
    converted: dict[str, Tensor] = {}
    stripped, unmatched = [], []
    counts = dict.fromkeys((reason for _, reason in _UNUSED), 0)
    for key, original in clean.items():
        name = _as_mmdet(key) if is_microsoft else key
        target = _first_match(_V2_PARTS, name) if version == 2 else None
        target = target or _renamed(name, is_deep)
        reason = next((why for pattern, why in _UNUSED if re.fullmatch(pattern, target or name)), None)
        if reason is not None:
            stripped.append(original)
            counts[reason] += 1
        elif target is None:
            unmatched.append(original)
        elif is_microsoft:
            converted[target] = _reordered(target, tensors[original])
        else:
            converted[target] = tensors[original]
    converted |= _window_indices(converted)
    notes = [describe_glip(converted)]
    if _PROMPT in converted:
        notes.append(_trim_prompt(converted))
    notes += [f'omitted {count} tensors: {reason}' for reason, count in counts.items() if count]
    return Converted(converted, stripped, unmatched, tuple(notes))


def convert_glipv2(tensors: Mapping[str, Tensor]) -> Converted:
    """Convert a GLIP checkpoint with the parts that only GLIPv2's training uses."""
    return convert_glip(tensors, version=2)


def _trim_prompt(converted: dict[str, Tensor]) -> str:
    """Keep the tuned rows of a prompt; return a line for the user.

    The file holds a row for every token that a sentence could have; those that no sentence had are zero.
    """
    rows = converted.pop(_PROMPT)
    tuned = rows.flatten(1).any(1).nonzero()
    if not len(tuned):
        return 'omitted 1 tensor: a prompt that was never tuned'
    converted[_PROMPT] = rows[: int(tuned.max()) + 1].contiguous()
    return f'a tuned prompt of {len(converted[_PROMPT])} tokens, for text.offset=True and its own words'


def describe_glip(converted: Mapping[str, Tensor]) -> str:
    """Describe the variant of converted tensors."""
    blocks = len({key.split('.')[2] for key in converted if key.startswith('bbox_head.blocks.')})
    kind = 'deep' if 'bbox_head.blocks.0.fuse.scale_text' in converted else 'shallow'
    width = converted['bbox_head.project_text.weight'].shape
    layers = len({key.split('.')[4] for key in converted if key.startswith('text.model.encoder.layer.')})
    return f'{kind} GLIP: {blocks} blocks of width {width[0]}; BERT of {layers} layers, width {width[1]}'


def _renamed(key: str, is_deep: bool) -> str | None:
    """Convert a key of mmdet's format to ours; None if unknown."""
    if key.startswith(_TOWER):
        index, _, rest = key.removeprefix(_TOWER).partition('.')
        # Elements of a deep tower: fusion, text layer, DyHead block, fusion, ...
        block = int(index) // 3 if is_deep else int(index)
        inner = _first_match(_ELEMENTS, rest)
        return None if inner is None else f'bbox_head.blocks.{block}.{inner}'
    return _first_match(_PARTS, key)


def _as_mmdet(key: str) -> str:
    """Convert a key of the authors' format to mmdet's."""
    renamed = _first_match(_MICROSOFT, key) or key
    renamed = re.sub(r'#(\d)', lambda level: str(int(level[1]) - 2), renamed)
    renamed = re.sub(r'\.DyConv\.(\d)\.', r'.dyconvs.\1.', renamed)
    return renamed.replace('.AttnConv.', '.attnconv.')


def _reordered(key: str, tensor: Tensor) -> Tensor:
    """Reorder Swin's patch merging weights: the authors store them by neighbour, column-wise."""
    if not re.fullmatch(r'backbone\.stages\.\d+\.downsample\.(reduction\.weight|norm\.(weight|bias))', key):
        return tensor
    neighbours = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return neighbours.transpose(-1, -2).flatten(-2).contiguous()


def _window_indices(converted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Relative position indices of Swin's windows, for files without them."""
    found = {}
    for key, table in converted.items():
        target = key.removesuffix('bias_table') + 'index'
        if key.endswith('.relative_position_bias_table') and target not in converted:
            side = (math.isqrt(len(table)) + 1) // 2
            steps = torch.arange(side)
            positions = (steps[:, None] * (2 * side - 1) + steps).flatten()
            found[target] = positions[:, None] - positions + positions[-1]
    return found


def _first_match(rules: list[tuple[str, str]], key: str) -> str | None:
    for pattern, target in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(target)
    return None
