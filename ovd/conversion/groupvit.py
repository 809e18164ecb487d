"""Convert GroupViT weights between the layouts of the authors, of transformers, and ours.

Key names: NVlabs/GroupViT (a file's ``model`` entry) and huggingface/transformers (GroupViTModel); the map
between the two is public in the latter's conversion script. Reading order: convert_groupvit, export_groupvit,
transformers_config, then the tables of keys, which are used in both directions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..options import check_option
from .converted import Converted

LAYOUTS = ('nvlabs', 'transformers')


def convert_groupvit(tensors: Mapping[str, Tensor]) -> Converted:
    """Convert tensors of either layout to ours; a common prefix ``module.`` is removed.

    Raises:
        ValueError: another layout.
    """
    if all(key.startswith('module.') for key in tensors):
        tensors = {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
    stripped = [key for key in tensors if key.endswith('position_ids')]
    tensors = {key: tensor for key, tensor in tensors.items() if key not in stripped}
    unmatched: list[str] = []
    if any(key.startswith('vision_model.') for key in tensors):
        tensors, unmatched = _renamed(tensors, [(theirs, nvlabs) for nvlabs, theirs in _TRANSFORMERS])
        tensors = _joined(tensors)
    elif not any(key.startswith('img_encoder.') for key in tensors):
        raise ValueError(
            'not a GroupViT checkpoint: no key begins with img_encoder. (NVlabs) or vision_model. '
            f'(transformers); the first is {next(iter(tensors), None)!r}'
        )
    ours, left = _renamed(tensors, [(nvlabs, ours) for ours, nvlabs in (*_NVLABS, *_WIDE, *_NARROW)])
    return Converted({key: _without_kernel(key, ours[key]) for key in ours}, stripped, unmatched + left)


def export_groupvit(tensors: Mapping[str, Tensor], layout: str) -> Converted:
    """Convert our tensors to the layout of the authors or of transformers.

    Returns:
        tensors, with the keys that the layout does not have in ``stripped``.
    Raises:
        ValueError: an unknown layout, or one that does not support these weights.
    """
    check_option('layout', layout, LAYOUTS)
    wide = {
        match[0]
        for key in tensors
        if (match := re.match(r'image_encoder\.stages\.\d+\.projector\.widen', key))
    }
    wide = {name.removesuffix('widen') for name in wide}
    is_wide = {key for key in tensors if any(key.startswith(name) for name in wide)}
    theirs, unmatched = _renamed(
        {key: t for key, t in tensors.items() if key not in is_wide}, [*_NVLABS, *_NARROW]
    )
    theirs |= _renamed({key: tensors[key] for key in is_wide}, _WIDE)[0]
    lost = [key for key in unmatched if key.startswith(('image_', 'text_encoder.'))]
    if lost:
        raise ValueError(
            f'the layout of {layout} does not have {len(lost)} of {len(tensors)} tensors, such as {lost[0]}: '
            'it supports ovd.GroupingTransformer with a text encoder only'
        )
    if layout == 'nvlabs':
        return Converted({key: _with_kernel(key, theirs[key]) for key in theirs}, [], unmatched)
    if wide:
        raise ValueError('transformers does not support GroupViT stages of different widths')
    stripped = [key for key in ('multi_label_logit_scale',) if theirs.pop(key, None) is not None]
    renamed, left = _renamed(_split(theirs), _TRANSFORMERS)
    return Converted(renamed, stripped, unmatched + left)


def transformers_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Content of ``config.json`` for exported weights.

    Args:
        model: the ``model`` section of a config, with all settings of the encoders.
    Raises:
        ValueError: transformers does not support this model.
    """
    image, text = dict(model['image_encoder']), dict(model['text_encoder'])
    tokens, outputs = list(image['num_group_tokens']), list(image['num_output_groups'])
    grouping, width = image.get('grouping') or {}, image['dims'][0]
    mlp_ratio = image.get('mlp_ratio', 4.0)
    unsupported = {
        f'several dims {tuple(image["dims"])}': len(set(image['dims'])) > 1,
        f'several num_heads {tuple(image["num_heads"])}': len(set(image['num_heads'])) > 1,
        f'num_group_tokens {tokens} that differ from num_output_groups {outputs}': tokens[:-1] != outputs,
        'a grouping.cross_ratio that differs from mlp_ratio': grouping.get('cross_ratio', 4.0) != mlp_ratio,
        'fourier positions': image.get('positions', 'simple') != 'simple',
        'grouping.residual=False': not grouping.get('residual', True),
    }
    if found := [what for what, is_found in unsupported.items() if is_found]:
        raise ValueError(f'transformers does not support a GroupViT with {" and ".join(found)}')
    return {
        'model_type': 'groupvit',
        'architectures': ['GroupViTModel'],
        'projection_dim': model.get('embed_dim', 256),
        'projection_intermediate_dim': model.get('hidden_dim', 4096),
        'vision_config': {
            'hidden_size': width,
            'intermediate_size': int(mlp_ratio * width),
            'depths': list(image['depths']),
            'num_hidden_layers': sum(image['depths']),
            'num_group_tokens': tokens,
            'num_output_groups': [*outputs, outputs[-1]],
            'num_attention_heads': image['num_heads'][0],
            'image_size': image.get('image_size', 224),
            'patch_size': image.get('patch_size', 16),
            'hidden_act': 'gelu',
            'layer_norm_eps': 1e-5,
            'assign_eps': grouping.get('eps', 1.0),
            'assign_mlp_ratio': [grouping.get('token_ratio', 0.5), grouping.get('channel_ratio', 4.0)],
        },
        'text_config': {
            'hidden_size': text['width'],
            'intermediate_size': int(text.get('mlp_ratio', 4.0) * text['width']),
            'num_hidden_layers': text['layers'],
            'num_attention_heads': text['heads'],
            'max_position_embeddings': text.get('context_length', 77),
            'vocab_size': text.get('vocab_size', 49408),
            'hidden_act': 'quick_gelu',
            'layer_norm_eps': 1e-5,
            'bos_token_id': text.get('vocab_size', 49408) - 2,
            'eos_token_id': text.get('vocab_size', 49408) - 1,
            'pad_token_id': 0,
        },
    }


Rows = Iterable[tuple[str, str]]

_TEXT_PARTS = ('token_embedding.{leaf}', 'positional_embedding', 'transformer.{rest}', 'ln_final.{leaf}')

# Our keys and NVlabs'. {i} and {b} are numbers, {leaf} is the last part of a key, {rest} any parts.
_NVLABS = [
    ('logit_scale', 'logit_scale'),
    ('multi_label_logit_scale', 'multi_label_logit_scale'),
    *((f'text_encoder.{part}', f'text_encoder.{part}') for part in _TEXT_PARTS),
    ('image_encoder.positions', 'img_encoder.pos_embed'),
    ('image_encoder.patch_embed.{leaf}', 'img_encoder.patch_embed.proj.{leaf}'),
    ('image_encoder.norm_patches.{leaf}', 'img_encoder.patch_embed.norm.{leaf}'),
    ('image_encoder.norm.{leaf}', 'img_encoder.norm.{leaf}'),
    *(
        (f'image_encoder.stages.{{i}}.{ours}', f'img_encoder.layers.{{i}}.{theirs}')
        for ours, theirs in (
            ('group_tokens', 'group_token'),
            ('blocks.{b}.qkv.{leaf}', 'blocks.{b}.attn.qkv.{leaf}'),
            ('blocks.{b}.proj.{leaf}', 'blocks.{b}.attn.proj.{leaf}'),
            ('blocks.{b}.{rest}', 'blocks.{b}.{rest}'),
            ('grouping.norm_tokens.{leaf}', 'downsample.norm_tokens.{leaf}'),
            ('grouping.norm_segments.{leaf}', 'downsample.norm_x.{leaf}'),
            ('grouping.mix.{rest}', 'downsample.mlp_inter.{rest}'),
            ('grouping.norm_mixed.{leaf}', 'downsample.norm_post_tokens.{leaf}'),
            ('grouping.cross.query.{leaf}', 'downsample.pre_assign_attn.attn.q_proj.{leaf}'),
            ('grouping.cross.key.{leaf}', 'downsample.pre_assign_attn.attn.k_proj.{leaf}'),
            ('grouping.cross.value.{leaf}', 'downsample.pre_assign_attn.attn.v_proj.{leaf}'),
            ('grouping.cross.proj.{leaf}', 'downsample.pre_assign_attn.attn.proj.{leaf}'),
            ('grouping.cross.norm_mlp.{leaf}', 'downsample.pre_assign_attn.norm2.{leaf}'),
            ('grouping.cross.mlp.{rest}', 'downsample.pre_assign_attn.mlp.{rest}'),
            ('grouping.cross.norm.{leaf}', 'downsample.pre_assign_attn.norm_post.{leaf}'),
            ('grouping.merge.query.{leaf}', 'downsample.assign.q_proj.{leaf}'),
            ('grouping.merge.key.{leaf}', 'downsample.assign.k_proj.{leaf}'),
            ('grouping.merge.value.{leaf}', 'downsample.assign.v_proj.{leaf}'),
            ('grouping.merge.proj.{leaf}', 'downsample.assign.proj.{leaf}'),
            ('grouping.norm_merged.{leaf}', 'downsample.norm_new_x.{leaf}'),
            ('grouping.mlp.{rest}', 'downsample.mlp_channels.{rest}'),
            ('grouping.reduction.{rest}', 'downsample.reduction.{rest}'),
        )
    ),
    *(
        (f'{ours}_projection.{part}.{{leaf}}', f'{theirs}_projector.{name}.{{leaf}}')
        for ours, theirs in (('image', 'img'), ('text_encoder.text', 'text'))
        for part, name in (('fc1', 'linear_hidden.0'), ('norm', 'linear_hidden.1'), ('fc2', 'linear_out'))
    ),
]
_PROJECTOR = ('image_encoder.stages.{i}.projector.', 'img_encoder.layers.{i}.group_projector.')
# The projector between stages of equal width, and between different widths.
_NARROW = [
    (_PROJECTOR[0] + 'norm.{leaf}', _PROJECTOR[1] + '0.{leaf}'),
    (_PROJECTOR[0] + 'mix.{rest}', _PROJECTOR[1] + '1.{rest}'),
]
_WIDE = [
    (_PROJECTOR[0] + 'norm.{leaf}', _PROJECTOR[1] + '0.0.{leaf}'),
    (_PROJECTOR[0] + 'mix.{rest}', _PROJECTOR[1] + '0.1.{rest}'),
    (_PROJECTOR[0] + 'widen.0.{leaf}', _PROJECTOR[1] + '1.{leaf}'),
    (_PROJECTOR[0] + 'widen.1.{leaf}', _PROJECTOR[1] + '2.{leaf}'),
]
# NVlabs' keys, after splitting the joint projections of attention into three, and transformers'.
_TRANSFORMERS = [
    ('logit_scale', 'logit_scale'),
    ('img_encoder.pos_embed', 'vision_model.embeddings.position_embeddings'),
    ('img_encoder.patch_embed.proj.{leaf}', 'vision_model.embeddings.patch_embeddings.projection.{leaf}'),
    ('img_encoder.patch_embed.norm.{leaf}', 'vision_model.embeddings.layernorm.{leaf}'),
    ('img_encoder.norm.{leaf}', 'vision_model.layernorm.{leaf}'),
    *(
        (f'img_encoder.layers.{{i}}.{theirs}', f'vision_model.encoder.stages.{{i}}.{name}')
        for theirs, name in (
            ('blocks.{b}.norm1.{leaf}', 'layers.{b}.layer_norm1.{leaf}'),
            ('blocks.{b}.norm2.{leaf}', 'layers.{b}.layer_norm2.{leaf}'),
            ('blocks.{b}.attn.proj.{leaf}', 'layers.{b}.self_attn.out_proj.{leaf}'),
            ('blocks.{b}.attn.{rest}', 'layers.{b}.self_attn.{rest}'),
            ('blocks.{b}.{rest}', 'layers.{b}.{rest}'),
            (
                'downsample.pre_assign_attn.attn.proj.{leaf}',
                'downsample.pre_assign_attn.attn.out_proj.{leaf}',
            ),
            ('{rest}', '{rest}'),
        )
    ),
    ('text_encoder.token_embedding.{leaf}', 'text_model.embeddings.token_embedding.{leaf}'),
    ('text_encoder.positional_embedding', 'text_model.embeddings.position_embedding.weight'),
    ('text_encoder.ln_final.{leaf}', 'text_model.final_layer_norm.{leaf}'),
    *(
        (
            f'text_encoder.transformer.resblocks.{{b}}.{theirs}.{{leaf}}',
            f'text_model.encoder.layers.{{b}}.{name}.{{leaf}}',
        )
        for theirs, name in (
            ('ln_1', 'layer_norm1'),
            ('ln_2', 'layer_norm2'),
            ('mlp.c_fc', 'mlp.fc1'),
            ('mlp.c_proj', 'mlp.fc2'),
            ('attn.out_proj', 'self_attn.out_proj'),
            ('attn.q_proj', 'self_attn.q_proj'),
            ('attn.k_proj', 'self_attn.k_proj'),
            ('attn.v_proj', 'self_attn.v_proj'),
        )
    ),
    *(
        (f'{theirs}_projector.{part}.{{leaf}}', f'{name}_projection.{number}.{{leaf}}')
        for theirs, name in (('img', 'visual'), ('text', 'text'))
        for part, number in (('linear_hidden.0', 0), ('linear_hidden.1', 1), ('linear_out', 3))
    ),
]
_FIELDS = {'i': r'(?P<i>\d+)', 'b': r'(?P<b>\d+)', 'leaf': r'(?P<leaf>[^.]+)', 'rest': r'(?P<rest>.+)'}
_ATTENTION = r'(img_encoder\.layers\.\d+\.blocks\.\d+|text_encoder\.transformer\.resblocks\.\d+)\.attn\.'


def _renamed(tensors: Mapping[str, Tensor], rows: Rows) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors from the left to the right column; return them and the unmatched keys."""
    patterns = [(re.compile(_pattern(source)), target) for source, target in rows]
    renamed, unmatched = {}, []
    for key, tensor in tensors.items():
        for pattern, target in patterns:
            if match := pattern.fullmatch(key):
                renamed[target.format(**match.groupdict())] = tensor
                break
        else:
            unmatched.append(key)
    return renamed, unmatched


def _pattern(template: str) -> str:
    return re.escape(template).replace(r'\{', '{').replace(r'\}', '}').format(**_FIELDS)


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joint query, key and value projections of NVlabs' self-attention."""
    result = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(_ATTENTION + r'(?:qkv\.|in_proj_)(weight|bias)', key)
        parts = zip('qkv', tensor.chunk(3)) if match else ()
        result.update(
            {f'{match[1]}.attn.{name}_proj.{match[2]}': part for name, part in parts}
            if match
            else {key: tensor}
        )
    return result


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of ``_split``."""
    result = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(_ATTENTION + r'([qkv])_proj\.(weight|bias)', key)
        if match is None:
            result[key] = tensor
            continue
        names = [f'{match[1]}.attn.{name}_proj.{match[3]}' for name in 'qkv']
        if any(name not in tensors for name in names):
            raise ValueError(f'attention {match[1]} lacks query, key or value')
        joint = 'qkv.' if key.startswith('img_') else 'in_proj_'
        result[f'{match[1]}.attn.{joint}{match[3]}'] = torch.cat([tensors[name] for name in names])
    return result


def _without_kernel(key: str, tensor: Tensor) -> Tensor:
    """Convert a 1 x 1 convolution of a projection head to a linear layer."""
    return tensor.squeeze(-1) if re.fullmatch(r'\S+_projection\.fc\d\.weight', key) else tensor


def _with_kernel(key: str, tensor: Tensor) -> Tensor:
    return (
        tensor[..., None]
        if re.fullmatch(r'\w+_projector\.linear\S+\.weight', key) and tensor.dim() == 2
        else tensor
    )
