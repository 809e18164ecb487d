"""Key maps from DetPro and ViLD checkpoints to ours.

Source of the key layouts: dyabel/detpro: mmdet/models/roi_heads/standard_roi_head.py (mmdet 2.x);
tensorflow/tpu: models/official/detection/projects/vild/modeling/vild_head.py (TF1 variables, box head only).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..encoders.text_embeddings import TextEmbeddings
from ..text.vocabulary import Vocabulary
from .converted import Converted

_HEAD = 'roi_head.bbox_head.'
_DETPRO_RULES = [
    (r'(backbone|neck|rpn_head|roi_head\.mask_head)\.(.+)', r'\1.\2'),
    (r'roi_head\.bbox_head\.shared_(convs|fcs)\.(.+)', _HEAD + r'trunk.\1.\2'),
    (r'roi_head\.bbox_head\.shared_(convs|fcs)_for_image\.(.+)', _HEAD + r'image_trunk.\1.\2'),
    (r'roi_head\.bbox_head\.fc_reg\.(.+)', _HEAD + r'fc_reg.\1'),
    (r'roi_head\.projection\.(.+)', _HEAD + r'classifier.project.\1'),
    (r'roi_head\.projection_for_image\.(.+)', _HEAD + r'image_classifier.project.\1'),
]
_DETPRO_BACKGROUND = ('roi_head.bg_embedding.weight', 'roi_head.bg_embedding.bias')


def convert_detpro(tensors: Mapping[str, Tensor]) -> Converted:
    """Convert a DetPro or ViLD* checkpoint (single-stage head, with or without the image branch).

    Also converts the initial weights of such training (SoCo: trunk without projection and background). The
    background vector is weight + bias of a linear layer on a constant 1; the sum is stored. The text
    embeddings are not in the file but in a prompt file.

    Raises:
        ValueError: a cascade checkpoint, or a file without this head.
    """
    if any(re.match(r'roi_head\.bbox_head\.\d+\.', key) for key in tensors):
        raise ValueError('cascade checkpoints (roi_head.bbox_head.0...) are not supported')
    missing = [key for key in _DETPRO_BACKGROUND if key not in tensors]
    is_start = any(key.startswith(f'{_HEAD}shared_') for key in tensors) and not any(
        key.startswith('roi_head.projection') for key in tensors
    )
    if missing and not is_start:
        raise ValueError(f'not a DetPro or ViLD checkpoint of mmdet 2.x: {missing[0]!r} is not in it')
    converted, stripped, unmatched = {}, [], []
    for key, tensor in tensors.items():
        target = _renamed(key)
        if target is not None:
            converted[target] = tensor
        elif key.startswith('roi_head.clip_model.'):
            stripped.append(key)
        elif key not in _DETPRO_BACKGROUND:
            unmatched.append(key)
    if not missing:
        weight, bias = (tensors[key] for key in _DETPRO_BACKGROUND)
        converted[_HEAD + 'classifier.background'] = weight[:, 0] + bias
    notes = (f'omitted {len(stripped)} tensors: the copy of CLIP',) if stripped else ()
    return Converted(converted, stripped, unmatched, notes)


def convert_detpro_prompts(prompts: Tensor, vocabulary: Vocabulary) -> TextEmbeddings:
    """Convert a DetPro prompt file to text embeddings.

    Args:
        prompts: [K, D] or [K, 1, D], in the order of the vocabulary, of any length; row K + 1, DetPro's
            background prompt, is omitted, because its detector does not use it.
        vocabulary: K classes.
    Raises:
        ValueError: another shape.
    """
    shape, count = tuple(prompts.shape), len(vocabulary)
    if prompts.dim() == 3 and shape[1] == 1:
        prompts = prompts[:, 0]
    if prompts.dim() != 2 or len(prompts) not in (count, count + 1):
        raise ValueError(f'expected prompts [{count}, D] or [{count}, 1, D], got {list(shape)}')
    vectors = torch.nn.functional.normalize(prompts[:count].float(), dim=-1)
    return TextEmbeddings(vectors, vocabulary, (), '')


def _renamed(key: str) -> str | None:
    for pattern, target in _DETPRO_RULES:
        if match := re.fullmatch(pattern, key):
            return match.expand(target)
    return None


_BATCH_NORM = {
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}


def convert_tf_box_head(
    variables: Mapping[str, Tensor], roi_feat_size: tuple[int, int], num_convs: int = 4, num_fcs: int = 2
) -> Converted:
    """Convert the variables of the official TensorFlow box head to those of ``ViLDBBoxHead``.

    Layouts: convolutions HWIO -> OIHW, fully connected (in, out) -> (out, in), the input of the first one
    from (h, w, c) to (c, h, w), boxes (dy, dx, dh, dw) -> (dx, dy, dw, dh). The bias of a convolution is
    subtracted from the mean of the following normalisation, which is equivalent. The class kernel is a matrix
    of text embeddings and omitted.

    Args:
        variables: name without the scope (``conv_0/kernel``, ``fc6/bias``, ...) -> value.
        roi_feat_size: (h, w) of the pooled features.
        num_convs, num_fcs: depth of the trunk.
    Raises:
        KeyError: a variable is missing.
    """
    left = dict(variables)
    tensors: dict[str, Tensor] = {}

    def dense(source: str, target: str) -> None:
        tensors[f'{target}.weight'] = left.pop(f'{source}/kernel').T.contiguous()
        tensors[f'{target}.bias'] = left.pop(f'{source}/bias')

    def trunk(prefix: str, target: str, first_norm: int) -> None:
        for i in range(num_convs):
            name, ours = f'{prefix}conv_{i}', f'{target}.convs.{i}'
            tensors[f'{ours}.conv.weight'] = left.pop(f'{name}/kernel').permute(3, 2, 0, 1).contiguous()
            norm(first_norm + i, f'{ours}.bn')
            tensors[f'{ours}.bn.running_mean'] = tensors[f'{ours}.bn.running_mean'] - left.pop(f'{name}/bias')
        for i in range(num_fcs):
            dense(f'{prefix}fc{6 + i}', f'{target}.fcs.{i}')
            norm(first_norm + num_convs + i, f'{target}.fc_norms.{i}')
        first = tensors[f'{target}.fcs.0.weight']
        height, width = roi_feat_size
        by_position = first.unflatten(1, (height, width, -1))
        tensors[f'{target}.fcs.0.weight'] = by_position.permute(0, 3, 1, 2).flatten(1).contiguous()

    def norm(index: int, target: str) -> None:
        name = f'batch_normalization_{index}' if index else 'batch_normalization'
        for theirs, ours in _BATCH_NORM.items():
            tensors[f'{target}.{ours}'] = left.pop(f'{name}/{theirs}')

    trunk('', 'trunk', 0)
    dense('project-to-clip', 'classifier.project')
    tensors['classifier.background'] = left.pop('background-class-predict/kernel')[:, 0]
    dense('box-predict', 'fc_reg')
    order = torch.tensor([1, 0, 3, 2])
    tensors['fc_reg.weight'] = tensors['fc_reg.weight'][order]
    tensors['fc_reg.bias'] = tensors['fc_reg.bias'][order]
    if 'distill-project-to-clip/kernel' in left:
        trunk('distill_', 'image_trunk', num_convs + num_fcs)
        dense('distill-project-to-clip', 'image_classifier.project')
    stripped = [name for name in ('class-predict/kernel',) if left.pop(name, None) is not None]
    return Converted(tensors, stripped, sorted(left))
