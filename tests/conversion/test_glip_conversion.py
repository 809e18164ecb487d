"""Published GLIP layouts: random files of them convert without a key left over, and mean the same."""

from pathlib import Path

import pytest
import torch
from mmdet.models.backbones.swin import PatchMerging, WindowMSA
from mmdet.utils import register_all_modules
from torch import Tensor

from ovd.checkpoints.loading import load_into
from ovd.conversion.glip import convert_glip, convert_glipv2
from ovd.registry import MODELS
from tests.toys.glip import toy_config, toy_glip
from tests.toys.published import as_microsoft, glip_as_mmdet


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (out, into), f'{name}.bias': (out,)}


def conv(name: str, out: int, into: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (out, into, size, size), f'{name}.bias': (out,)}


def bert_layer(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for part in ('query', 'key', 'value'):
        shapes |= linear(f'{name}.attention.self.{part}', width, width)
    shapes |= linear(f'{name}.attention.output.dense', width, width)
    shapes |= norm(f'{name}.attention.output.LayerNorm', width)
    shapes |= linear(f'{name}.intermediate.dense', inner, width) | linear(
        f'{name}.output.dense', width, inner
    )
    return shapes | norm(f'{name}.output.LayerNorm', width)


def published_shapes(
    embed: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, blocks: int, deep: bool
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published file in mmdet's format, written from its description."""
    shapes = conv('backbone.patch_embed.projection', embed, 3, 4) | norm('backbone.patch_embed.norm', embed)
    for stage, (depth, head) in enumerate(zip(depths, heads)):
        width = embed * 2**stage
        for block in range(depth):
            name = f'backbone.stages.{stage}.blocks.{block}'
            shapes |= norm(f'{name}.norm1', width) | norm(f'{name}.norm2', width)
            shapes[f'{name}.attn.w_msa.relative_position_bias_table'] = ((2 * window - 1) ** 2, head)
            shapes[f'{name}.attn.w_msa.relative_position_index'] = (window**2, window**2)
            shapes |= linear(f'{name}.attn.w_msa.qkv', 3 * width, width)
            shapes |= linear(f'{name}.attn.w_msa.proj', width, width)
            shapes |= linear(f'{name}.ffn.layers.0.0', 4 * width, width)
            shapes |= linear(f'{name}.ffn.layers.1', width, 4 * width)
        if stage < 3:
            shapes |= norm(f'backbone.stages.{stage}.downsample.norm', 4 * width)
            shapes[f'backbone.stages.{stage}.downsample.reduction.weight'] = (2 * width, 4 * width)
        if stage > 0:
            shapes |= norm(f'backbone.norm{stage}', width)
            shapes |= conv(f'neck.lateral_convs.{stage - 1}.conv', 256, width, 1)
    for level in range(5):
        shapes |= conv(f'neck.fpn_convs.{level}.conv', 256, 256, 3)
        shapes[f'bbox_head.head.scales.{level}.scale'] = ()
    for block in range(blocks):
        fuse = f'bbox_head.head.dyhead_tower.{3 * block}.b_attn'
        if deep:
            shapes |= {f'{fuse}.gamma_v': (256,), f'{fuse}.gamma_l': (768,)}
            shapes |= norm(f'{fuse}.layer_norm_v', 256) | norm(f'{fuse}.layer_norm_l', 768)
            for side, width in (('v', 256), ('l', 768)):
                shapes |= linear(f'{fuse}.attn.{side}_proj', 2048, width)
                shapes |= linear(f'{fuse}.attn.values_{side}_proj', 2048, width)
                shapes |= linear(f'{fuse}.attn.out_{side}_proj', width, 2048)
            shapes |= bert_layer(f'bbox_head.head.dyhead_tower.{3 * block + 1}', 768, 3072)
        name = f'bbox_head.head.dyhead_tower.{3 * block + 2 if deep else block}'
        for branch in range(3):
            shapes |= conv(f'{name}.dyconvs.{branch}.conv', 256, 256, 3)
            shapes |= norm(f'{name}.dyconvs.{branch}.bn', 256)
        shapes |= conv(f'{name}.attnconv.1', 1, 256, 1) | conv(f'{name}.offset', 27, 256, 3)
        shapes |= linear(f'{name}.relu.fc.0', 64, 256) | linear(f'{name}.relu.fc.2', 1024, 64)
    head = 'bbox_head.head'
    shapes |= conv(f'{head}.bbox_pred', 4, 256, 1) | conv(f'{head}.centerness', 1, 256, 1)
    shapes |= linear(f'{head}.dot_product_projection_text', 256, 768)
    shapes |= {f'{head}.log_scale': (1,), f'{head}.bias_lang': (768,), f'{head}.bias0': (1,)}
    body = 'language_model.language_backbone.body.model'
    for part, rows in (('word', 30522), ('position', 512), ('token_type', 2)):
        shapes[f'{body}.embeddings.{part}_embeddings.weight'] = (rows, 768)
    shapes |= norm(f'{body}.embeddings.LayerNorm', 768)
    for layer in range(12):
        shapes |= bert_layer(f'{body}.encoder.layer.{layer}', 768, 3072)
    return shapes


TINY = {'embed': 96, 'depths': (2, 2, 6, 2), 'heads': (3, 6, 12, 24), 'window': 7, 'blocks': 6}
LARGE = {'embed': 192, 'depths': (2, 2, 18, 2), 'heads': (6, 12, 24, 48), 'window': 12, 'blocks': 8}


def empty(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of the right shape without memory."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def our_shapes(
    embed: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, blocks: int, deep: bool
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of our model of that size; only its backbone has memory."""
    from mmdet.models import FPN, SwinTransformer
    from transformers import BertConfig, BertModel

    from ovd.models.glip.head import GLIPHead

    parts: dict[str, torch.nn.Module] = {
        'backbone': SwinTransformer(
            embed_dims=embed, depths=depths, num_heads=heads, window_size=window, out_indices=(1, 2, 3)
        )
    }
    with torch.device('meta'):
        parts['neck'] = FPN([embed * 2, embed * 4, embed * 8], 256, 5, add_extra_convs='on_output')
        parts['bbox_head'] = GLIPHead(num_blocks=blocks, fusion={} if deep else None)
        parts['text.model'] = BertModel(BertConfig(), add_pooling_layer=False)
    return {
        f'{part}.{key}': tuple(value.shape)
        for part, module in parts.items()
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize(
    ('size', 'deep', 'entries'),
    [(TINY, False, 534), (TINY, True, 738), (LARGE, True, 1014)],
    ids=['A', 'T', 'L'],
)
def test_published_files_fit_our_models(size: dict, deep: bool, entries: int) -> None:
    shapes = published_shapes(**size, deep=deep)
    assert len(shapes) == entries
    converted = convert_glip(empty(shapes))
    assert not converted.unmatched
    assert not converted.stripped
    assert {key: tuple(value.shape) for key, value in converted.tensors.items()} == our_shapes(
        **size, deep=deep
    )
    kind = 'deep' if deep else 'shallow'
    assert converted.notes == (
        f'{kind} GLIP: {size["blocks"]} blocks of width 256; BERT of 12 layers, width 768',
    )


def test_the_authors_layout_converts_too() -> None:
    shapes = published_shapes(**TINY, deep=True)
    theirs = empty({as_microsoft(key): shape for key, shape in shapes.items()})
    extra = {
        'module.rpn.head.cls_logits.weight': (80, 256, 1, 1),
        'module.rpn.anchor_generator.cell_anchors.0': (1, 4),
        'module.language_backbone.body.model.pooler.dense.weight': (768, 768),
        'module.language_backbone.body.model.embeddings.position_ids': (1, 512),
        'module.rpn.head.mlm_head.dense.weight': (768, 768),
        'module.surprise': (1,),
    }
    converted = convert_glip(theirs | empty(extra))
    assert converted.unmatched == ['module.surprise']
    assert sorted(converted.stripped) == sorted(set(extra) - {'module.surprise'})
    expected = convert_glip(empty(shapes)).tensors
    assert {key: value.shape for key, value in converted.tensors.items()} == {
        key: value.shape for key, value in expected.items()
    }
    assert len(converted.notes) == 6


def test_the_authors_patch_merging_means_the_same() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 6, 3)  # height, width, channels last
    reduction, scale, shift = torch.randn(6, 12), torch.randn(12), torch.randn(12)
    corners = [maps[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    expected = torch.nn.functional.layer_norm(torch.cat(corners, -1), (12,), scale, shift) @ reduction.T
    prefix = 'backbone.stages.0.downsample'
    tensors = convert_glip(
        {
            'backbone.body.layers.0.downsample.reduction.weight': reduction,
            'backbone.body.layers.0.downsample.norm.weight': scale,
            'backbone.body.layers.0.downsample.norm.bias': shift,
            'rpn.head.dot_product_projection_text.weight': torch.zeros(2, 3),
        }
    ).tensors
    merging = PatchMerging(3, 6)
    merging.load_state_dict(
        {key.removeprefix(f'{prefix}.'): value for key, value in tensors.items() if key.startswith(prefix)}
    )
    found, size = merging(maps.flatten(1, 2), (4, 6))
    assert size == (2, 3)
    torch.testing.assert_close(found, expected.flatten(1, 2), atol=1e-5, rtol=1e-5)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        convert_glip(toy_glip(tmp_path / 'bert').state_dict())


def test_older_files_with_extra_numbers_convert() -> None:
    body = 'language_model.language_backbone.body.model'
    shapes = published_shapes(**TINY, deep=False) | {f'{body}.embeddings.position_ids': (1, 512)}
    converted = convert_glip(empty(shapes))
    assert converted.stripped == [f'{body}.embeddings.position_ids']
    assert not converted.unmatched


@pytest.mark.parametrize('size', [TINY, LARGE], ids=['T', 'L'])
def test_files_without_the_places_in_windows_are_completed(size: dict) -> None:
    shapes = published_shapes(**size, deep=False)
    missing = [key for key in shapes if key.endswith('relative_position_index')]
    found = convert_glip(empty({key: shape for key, shape in shapes.items() if key not in missing})).tensors
    window = size['window']
    expected = WindowMSA(size['embed'], 3, (window, window)).relative_position_index
    assert len(missing) == sum(size['depths'])
    for key in missing:
        assert torch.equal(found[key], expected)


@pytest.mark.parametrize(
    'place', ['module.rpn.tunable_linear.weight', 'module.rpn.head.tunable_linear.weight']
)
def test_a_tuned_prompt_converts_to_the_shifts_of_its_words(tmp_path: Path, place: str) -> None:
    """The first rows are those of the sentence's tokens; the file has 1,000 of them."""
    text = {'encoder': {'model': str(tmp_path / 'bert')}, 'vocabulary': ['star', 'ring'], 'offset': True}
    model = toy_glip(tmp_path / 'bert', text=text)
    length, width = model.text_offset.rows.shape
    rows = torch.zeros(1000, width)
    rows[:length] = torch.randn(length, width)
    theirs = {as_microsoft(key): value for key, value in glip_as_mmdet(model.state_dict()).items()}
    theirs.pop(next(key for key in theirs if 'text_offset' in key))
    converted = convert_glip(theirs | {place: rows})
    assert not converted.unmatched
    assert torch.equal(converted.tensors['text_offset.rows'], rows[:length])
    assert any(f'a tuned prompt of {length} tokens' in note for note in converted.notes)
    assert load_into(model, converted.tensors).is_complete
    assert torch.equal(model.text_offset.rows, rows[:length])

    untuned = convert_glip(theirs | {place: torch.zeros(1000, width)})
    assert 'text_offset.rows' not in untuned.tensors
    assert any('never tuned' in note for note in untuned.notes)


def test_the_contrast_between_images_converts_for_glipv2(tmp_path: Path) -> None:
    register_all_modules(init_default_scope=False)
    model = MODELS.build(toy_config(tmp_path / 'bert', type='ovd.GLIPv2', contrast={'embed_dim': 6}))
    ours = model.state_dict()
    names = {
        'contrast.project_regions.': 'rpn.loss_evaluator.shallow_contrastive_projection_image.',
        'contrast.project_words.': 'rpn.loss_evaluator.shallow_contrastive_projection_text.',
        'contrast.log_scale': 'rpn.loss_evaluator.shallow_log_scale',
    }
    theirs = {}
    for key, value in glip_as_mmdet(ours).items():
        name = as_microsoft(key)
        for old, new in names.items():
            name = f'module.{new}{key.removeprefix(old)}' if key.startswith(old) else name
        theirs[name] = value
    assert sum('shallow' in key for key in theirs) == 5
    converted = convert_glipv2(theirs)
    assert not converted.unmatched
    assert load_into(model, converted.tensors).is_complete
    for key, value in ours.items():
        assert torch.equal(converted.tensors[key], value), key
    plain = convert_glip(theirs)
    assert not plain.unmatched
    assert len(plain.stripped) == 5
    assert any('omitted 5 tensors' in note for note in plain.notes)
