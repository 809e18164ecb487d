"""CLIP and SigLIP in the layout of huggingface/transformers, as open_clip's modules.

Source: huggingface/transformers: models/clip, models/siglip (configuration and names of the weights).
Reading order: read_config (architecture), convert (weights), SiglipImageTower.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

MODEL_TYPES = ('clip', 'siglip')
SIGLIP_TOWER = 'siglip'  # value of vision_cfg.tower, which open_clip itself does not know

# What the two configuration classes assume where a file leaves a value out.
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    'clip': {
        'text_config': {
            'vocab_size': 49408,
            'hidden_size': 512,
            'intermediate_size': 2048,
            'num_hidden_layers': 12,
            'num_attention_heads': 8,
            'max_position_embeddings': 77,
            'hidden_act': 'quick_gelu',
            'layer_norm_eps': 1e-5,
            'eos_token_id': 49407,
        },
        'vision_config': {
            'hidden_size': 768,
            'intermediate_size': 3072,
            'num_hidden_layers': 12,
            'num_attention_heads': 12,
            'image_size': 224,
            'patch_size': 32,
            'hidden_act': 'quick_gelu',
            'layer_norm_eps': 1e-5,
        },
    },
    'siglip': {
        'text_config': {
            'vocab_size': 32000,
            'hidden_size': 768,
            'intermediate_size': 3072,
            'num_hidden_layers': 12,
            'num_attention_heads': 12,
            'max_position_embeddings': 64,
            'hidden_act': 'gelu_pytorch_tanh',
            'layer_norm_eps': 1e-6,
        },
        'vision_config': {
            'hidden_size': 768,
            'intermediate_size': 3072,
            'num_hidden_layers': 12,
            'num_attention_heads': 12,
            'image_size': 224,
            'patch_size': 16,
            'hidden_act': 'gelu_pytorch_tanh',
            'layer_norm_eps': 1e-6,
        },
    },
}
_TANH = ('gelu_pytorch_tanh', 'gelu_new')
_ACTIVATIONS = ('quick_gelu', 'gelu', *_TANH)


def read_config(
    content: Mapping[str, Any], preprocessor: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing in open_clip's terms.

    Args:
        content: of ``config.json``.
        preprocessor: of ``preprocessor_config.json``, empty where there is none.
        name: for messages.
    Raises:
        ValueError: another model than CLIP or SigLIP, or one that open_clip's modules cannot be.
    """
    kind = content.get('model_type')
    if kind not in MODEL_TYPES:
        raise ValueError(f'{name} describes a model of type {kind!r}, expected one of {MODEL_TYPES}')
    text, vision = (_section(content, kind, part, name) for part in ('text_config', 'vision_config'))
    preprocess = {
        ours: list(preprocessor[theirs])
        for ours, theirs in (('mean', 'image_mean'), ('std', 'image_std'))
        if preprocessor.get(theirs)
    }
    if kind == 'clip':
        defaults = {'mean': list(OPENAI_DATASET_MEAN), 'std': list(OPENAI_DATASET_STD)}
        return _clip(content, text, vision, name), defaults | preprocess
    return _siglip(text, vision, name), {'mean': [0.5] * 3, 'std': [0.5] * 3} | preprocess


def _section(content: Mapping[str, Any], kind: str, part: str, name: str) -> dict[str, Any]:
    """One of the two towers' settings with the defaults filled in, each of its default's type."""
    given = content.get(part) or {}
    older = content.get(f'{part}_dict') or {}  # files of 2022 repeat the settings under this name
    if not isinstance(given, Mapping) or not isinstance(older, Mapping):
        raise ValueError(f'{name}: {part} is {given!r}, expected an object')
    defaults = _DEFAULTS[kind][part]
    found = {**given, **older}
    section = {key: found.get(key, default) for key, default in defaults.items()}
    for key, default in defaults.items():
        value = section[key]
        fits = isinstance(value, str) if isinstance(default, str) else isinstance(value, int | float)
        if not fits or isinstance(value, bool):
            raise ValueError(f'{name}: {part}.{key} is {value!r}, expected a {type(default).__name__}')
    if section['hidden_act'] not in _ACTIVATIONS:
        raise ValueError(f'{name}: {part}.hidden_act {section["hidden_act"]!r} is none of {_ACTIVATIONS}')
    if section['hidden_size'] % section['num_attention_heads']:
        raise ValueError(
            f'{name}: {part}.hidden_size {section["hidden_size"]} is no multiple of '
            f'num_attention_heads {section["num_attention_heads"]}'
        )
    return section | {
        'projection_size': found.get('projection_size'),
        'projection': found.get('projection_dim'),
    }


def _clip(
    content: Mapping[str, Any], text: dict[str, Any], vision: dict[str, Any], name: str
) -> dict[str, Any]:
    quick = {part['hidden_act'] == 'quick_gelu' for part in (text, vision)}
    if len(quick) > 1:
        raise ValueError(
            f'{name}: the towers have the activations {text["hidden_act"]!r} and {vision["hidden_act"]!r}, '
            f'open_clip has quick_gelu in both or in none'
        )
    text_cfg = _text_tower(text)
    # The end token of OpenAI's vocabulary has the highest id; older files say 2.
    if text['eos_token_id'] not in (2, text['vocab_size'] - 1):
        text_cfg |= {'pool_type': 'eos', 'eos_id': text['eos_token_id']}
    embed_dim = content.get('projection_dim') or text['projection'] or 512
    return {
        'embed_dim': embed_dim,
        'quick_gelu': quick.pop(),
        'vision_cfg': {
            'image_size': vision['image_size'],
            'layers': vision['num_hidden_layers'],
            'width': vision['hidden_size'],
            'head_width': vision['hidden_size'] // vision['num_attention_heads'],
            'patch_size': vision['patch_size'],
            **_ratio(vision),
            **_details(vision, eps=1e-5),
        },
        'text_cfg': text_cfg,
    }


def _siglip(text: dict[str, Any], vision: dict[str, Any], name: str) -> dict[str, Any]:
    embed_dim = text['projection_size'] or text['hidden_size']
    if embed_dim != vision['hidden_size']:
        raise ValueError(
            f'{name}: the text tower ends in width {embed_dim}, the image tower in {vision["hidden_size"]}'
        )
    if 'quick_gelu' in (text['hidden_act'], vision['hidden_act']):
        raise ValueError(f'{name}: a SigLIP with hidden_act quick_gelu is not supported')
    return {
        'embed_dim': embed_dim,
        'custom_text': True,
        'init_logit_bias': -10.0,
        'vision_cfg': {
            'tower': SIGLIP_TOWER,
            'image_size': vision['image_size'],
            'patch_size': vision['patch_size'],
            'layers': vision['num_hidden_layers'],
            'heads': vision['num_attention_heads'],
            'mlp_ratio': vision['intermediate_size'] / vision['hidden_size'],
            'tanh': vision['hidden_act'] in _TANH,
            'eps': vision['layer_norm_eps'],
        },
        'text_cfg': _text_tower(text) | {'no_causal_mask': True, 'pool_type': 'last', 'proj_bias': True},
    }


def _text_tower(text: dict[str, Any]) -> dict[str, Any]:
    return {
        'context_length': text['max_position_embeddings'],
        'vocab_size': text['vocab_size'],
        'width': text['hidden_size'],
        'heads': text['num_attention_heads'],
        'layers': text['num_hidden_layers'],
        **_ratio(text),
        **_details(text, eps=1e-5),
    }


def _ratio(section: dict[str, Any]) -> dict[str, Any]:
    ratio = section['intermediate_size'] / section['hidden_size']
    return {} if ratio == 4.0 else {'mlp_ratio': ratio}


def _details(section: dict[str, Any], eps: float) -> dict[str, Any]:
    """Options of the layers where they are not those that open_clip assumes."""
    details: dict[str, Any] = {}
    if section['layer_norm_eps'] != eps:
        details['norm_kwargs'] = {'eps': section['layer_norm_eps']}
    if section['hidden_act'] in _TANH:
        details['act_kwargs'] = {'approximate': 'tanh'}
    return details


def is_transformers_layout(tensors: Mapping[str, Tensor]) -> bool:
    """Whether named tensors are a whole CLIP or SigLIP as transformers writes it."""
    return any(key.startswith('vision_model.') for key in tensors) and any(
        key.startswith('text_model.') for key in tensors
    )


_LAYER = [
    (r'layer_norm1\.(.+)', r'ln_1.\1', r'norm1.\1'),
    (r'layer_norm2\.(.+)', r'ln_2.\1', r'norm2.\1'),
    (r'self_attn\.out_proj\.(.+)', r'attn.out_proj.\1', r'attn.proj.\1'),
    (r'mlp\.fc1\.(.+)', r'mlp.c_fc.\1', r'mlp.fc1.\1'),
    (r'mlp\.fc2\.(.+)', r'mlp.c_proj.\1', r'mlp.fc2.\1'),
]
_TEXT = [
    (r'embeddings\.token_embedding\.weight', 'token_embedding.weight'),
    (r'embeddings\.position_embedding\.weight', 'positional_embedding'),
    (r'final_layer_norm\.(.+)', r'ln_final.\1'),
    (r'head\.(weight|bias)', r'text_projection.\1'),
]
_CLIP_IMAGE = [
    (r'embeddings\.class_embedding', 'class_embedding'),
    (r'embeddings\.patch_embedding\.weight', 'conv1.weight'),
    (r'embeddings\.position_embedding\.weight', 'positional_embedding'),
    (r'pre_layrnorm\.(.+)', r'ln_pre.\1'),
    (r'post_layernorm\.(.+)', r'ln_post.\1'),
]
_SIGLIP_IMAGE = [
    (r'embeddings\.patch_embedding\.(.+)', r'trunk.patch_embed.proj.\1'),
    (r'embeddings\.position_embedding\.weight', 'trunk.pos_embed'),
    (r'post_layernorm\.(.+)', r'trunk.norm.\1'),
    (r'head\.probe', 'trunk.attn_pool.latent'),
    (r'head\.attention\.out_proj\.(.+)', r'trunk.attn_pool.proj.\1'),
    (r'head\.layernorm\.(.+)', r'trunk.attn_pool.norm.\1'),
    (r'head\.mlp\.(.+)', r'trunk.attn_pool.mlp.\1'),
]


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers under the names of open_clip's ``CLIP``, or of our SigLIP's.

    A key without a counterpart keeps its name, so that loading reports it.

    Raises:
        ValueError: query, key or value of an attention is missing.
    """
    siglip = any('vision_model.head.' in key for key in tensors)
    text = 'text.' if siglip else ''
    clean = {re.sub(r'^(text|vision)_model\.\1_model\.', r'\1_model.', key): key for key in tensors}
    converted: dict[str, Tensor] = {}
    for key, original in _with_joined_attention(clean, tensors).items():
        if key.endswith('position_ids'):
            continue
        if key in ('text_projection.weight', 'visual_projection.weight'):
            target = text + 'text_projection' if key.startswith('text') else 'visual.proj'
            converted[target] = original.T.contiguous()
        elif key.startswith('text_model.'):
            name = _renamed(key.removeprefix('text_model.'), _TEXT, 'transformer.resblocks', 1)
            converted[key if name is None else text + name] = original
        elif key.startswith('vision_model.'):
            inner = key.removeprefix('vision_model.')
            name = (
                _renamed(inner, _SIGLIP_IMAGE, 'trunk.blocks', 2)
                if siglip
                else _renamed(inner, _CLIP_IMAGE, 'transformer.resblocks', 1)
            )
            tensor = original[None] if name == 'trunk.pos_embed' else original
            converted[key if name is None else f'visual.{name}'] = tensor
        else:
            converted[key] = original
    if siglip:
        _split_pooling(converted)
    return converted


def _with_joined_attention(names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with query, key and value of each attention as one."""
    joined: dict[str, Tensor] = {}
    for key, original in names.items():
        match = re.fullmatch(r'(.+\.self_attn)\.([qkv])_proj\.(weight|bias)', key)
        if match is None:
            joined[key] = tensors[original]
        elif match[2] == 'q':
            parts = [names.get(f'{match[1]}.{part}_proj.{match[3]}') for part in 'qkv']
            if None in parts:
                raise ValueError(f'the attention {match[1]} is not complete: {key} has no key or value')
            joined[f'{match[1]}.in_proj_{match[3]}'] = torch.cat([tensors[part] for part in parts if part])
    return joined


def _renamed(key: str, rules: list[tuple[str, str]], blocks: str, column: int) -> str | None:
    """Our name of a key of one tower; ``column`` of the table of layers is the target's."""
    if match := re.fullmatch(r'encoder\.layers\.(\d+)\.(.+)', key):
        inner = match[2]
        attention = {1: r'attn.in_proj_\1', 2: r'attn.qkv.\1'}[column]
        for rule in (*_LAYER, (r'self_attn\.in_proj_(.+)', attention, attention)):
            if found := re.fullmatch(rule[0], inner):
                return f'{blocks}.{match[1]}.{found.expand(rule[column])}'
        return None
    for pattern, target in rules:
        if found := re.fullmatch(pattern, key):
            return found.expand(target)
    return None


def _split_pooling(converted: dict[str, Tensor]) -> None:
    """The projection of the pooling attention as timm has it: the query apart from key and value."""
    for part in ('weight', 'bias'):
        joined = converted.pop(f'vision_model.head.attention.in_proj_{part}', None)
        if joined is not None:
            width = len(joined) // 3
            converted[f'visual.trunk.attn_pool.q.{part}'] = joined[:width]
            converted[f'visual.trunk.attn_pool.kv.{part}'] = joined[width:]


class SiglipImageTower(nn.Module):
    """SigLIP's image tower: a ViT without class token, pooled by a learned query.

    Args:
        embed_dim: width W, which is also that of the joint space.
        image_size, patch_size: pixels.
        layers, heads, mlp_ratio: of the transformer.
        tanh: approximate GELU by its tanh form.
        eps: of the layer norms.
    """

    def __init__(
        self,
        embed_dim: int,
        image_size: int,
        patch_size: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        tanh: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.image_size = (image_size, image_size)
        self.trunk = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            global_pool='map',
            embed_dim=embed_dim,
            depth=layers,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            class_token=False,
            norm_layer=partial(nn.LayerNorm, eps=eps),
            act_layer=partial(nn.GELU, approximate='tanh' if tanh else 'none'),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S], normalised -> [N, W]."""
        pooled: Tensor = self.trunk(images)
        return pooled
