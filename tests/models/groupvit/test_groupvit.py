"""GroupViT without reference values: what can be worked out by hand, and what must hold for any weights."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.checkpoints.loading import load_into
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.encoders.text_encoder import TextEncoder
from ovd.layers.cosine_classifier import l2_normalize
from ovd.models.groupvit.encoder import Block, resize_positions, sine_positions
from ovd.models.groupvit.group_batch import GroupBatch
from ovd.models.groupvit.grouping import (
    Assignment,
    CosineMerge,
    GroupingBlock,
    GroupingOutput,
    GroupProjector,
    Merge,
    gumbel_noise,
    soft_assignment,
    straight_through,
)
from ovd.models.groupvit.projection_head import JointBatchNorm
from ovd.models.groupvit.segmentor import GroupViT
from ovd.registry import MODELS
from ovd.text.vocabulary import Vocabulary
from tests.helpers import ROOT
from tests.toys.groupvit import WORDS, toy_batch, toy_config, toy_groupvit

# Shifts of all logits of a softmax alike, and constants that the next layer or batch norm takes away.
WITHOUT_GRADIENT = ('merge.query.bias', 'cross.key.bias', 'mix.fc2.bias', 'projection.fc1.bias')
MORE_STAGES = {
    'dims': (16, 24, 24, 32),
    'depths': (1, 1, 1, 1),
    'num_heads': (2, 3, 2, 4),
    'num_group_tokens': (7, 5, 4, 0),
    'num_output_groups': (14, 12, 9),
}


# --- grouping -------------------------------------------------------------------------------------------


def identity(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.eye(len(layer.weight)))
        layer.bias.zero_()


def test_merge_averages_members_over_one_more_than_their_number() -> None:
    merge = Merge(2, eps=1.0, assignment=Assignment()).eval()
    for layer in (merge.query, merge.key, merge.value, merge.proj):
        identity(layer)
    groups = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]])
    segments = torch.tensor([[[2.0, 1.0], [3.0, 0.0], [0.0, 4.0]]])
    merged, soft, hard = merge(groups, segments)
    assert hard[0].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    expected = torch.tensor([[5 / 3, 1 / 3], [0.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(merged[0], expected)
    logits = groups @ segments.transpose(1, 2) / math.sqrt(2)
    torch.testing.assert_close(soft, logits.softmax(dim=1))


def test_cosine_merge_averages_values_by_centred_angles() -> None:
    merge = CosineMerge(2, scale=3.0, center=JointBatchNorm(2, affine=False))
    for layer in (merge.query, merge.key):
        identity(layer)
    for norm in ('norm_groups', 'norm_keys'):
        setattr(merge, norm, nn.Identity())
    merge.assignment = Assignment(gumbel=False)
    groups = torch.tensor([[[2.0, 0.0], [-1.0, 0.0]]])
    keys = torch.tensor(
        [[[9.0, 1.0], [11.0, 1.0], [13.0, 1.0], [15.0, 1.0]]]
    )  # all of the first group's side
    values = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    means, soft, hard = merge(groups, keys, values)
    assert hard[0].tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(means[0], torch.tensor([[12 / 3], [3 / 3]]))
    torch.testing.assert_close(soft[0, 0], torch.sigmoid(torch.tensor([-6.0, -6.0, 6.0, 6.0])))
    means.sum().backward()
    assert merge.log_scale.grad is not None
    plain = CosineMerge(2, scale=80.0, max_scale=50.0).eval()
    assert plain(groups, keys, values)[0].shape == (1, 2, 1)
    assert plain.max_log_scale == pytest.approx(math.log(50))


def test_straight_through_is_one_hot_with_the_gradient_of_the_softmax() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]], requires_grad=True)
    hard = straight_through(soft_assignment(logits))
    assert hard.tolist() == [[0, 1], [1, 0]]
    hard[0].sum().backward()
    p = logits.detach().softmax(0)
    slope = p[0] * p[1]
    torch.testing.assert_close(logits.grad, torch.stack([slope, -slope]))


def test_noise_only_in_training_and_only_where_it_is_wanted() -> None:
    logits = torch.randn(2, 4, 50) / 10
    for assignment, is_noisy in (
        (Assignment(), True),
        (Assignment(gumbel=False), False),
        (Assignment(hard=False), False),
    ):
        used, soft = assignment(logits)
        again, _ = assignment(logits)
        assert torch.equal(used, again) is not is_noisy
        torch.testing.assert_close(soft, logits.softmax(dim=1))
        used, _ = assignment.eval()(logits)
        expected = logits.softmax(1)
        if assignment.hard:
            expected = F.one_hot(logits.argmax(1), 4).transpose(1, 2).float()
        torch.testing.assert_close(used, expected)


def test_temperature_shapes_the_gradient_of_a_noisy_choice() -> None:
    sharp, smooth = Assignment(tau=0.1), Assignment(tau=10.0)
    slopes = []
    for assignment in (sharp, smooth):
        assignment.noise = torch.zeros_like  # type: ignore[method-assign]
        logits = torch.tensor([[0.3], [0.0]], requires_grad=True)
        used, _ = assignment(logits)
        used[0].sum().backward()
        slopes.append(logits.grad[0].item())
        p = torch.sigmoid(torch.tensor(0.3 / assignment.tau)).item()
        assert slopes[-1] == pytest.approx(p * (1 - p) / assignment.tau)


def test_gumbel_noise_is_finite_float32_with_the_right_mean() -> None:
    noise = gumbel_noise(torch.empty(200_000, dtype=torch.bfloat16))
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


def plain_grouping(block: GroupingBlock, x: Tensor, g: Tensor) -> Tensor:
    """The grouping block step by step, one image and one head at a time; hard assignment, no noise."""
    x, g = block.norm_segments(x), block.norm_tokens(g)
    q = block.mix.fc2(F.gelu(block.mix.fc1(g.T))).T
    q = block.norm_mixed(q)
    cross, width = block.cross, x.shape[-1] // block.cross.num_heads
    query, key, value = cross.query(q), cross.key(x), cross.value(x)
    seen = []
    for head in range(cross.num_heads):
        part = slice(head * width, (head + 1) * width)
        attention = (query[:, part] @ key[:, part].T / width**0.5).softmax(dim=1)
        seen.append(attention @ value[:, part])
    q = q + cross.proj(torch.cat(seen, dim=1))
    q = cross.norm(q + cross.mlp.fc2(F.gelu(cross.mlp.fc1(cross.norm_mlp(q)))))
    logits = block.merge.query(q) @ block.merge.key(x).T / x.shape[-1] ** 0.5
    soft = logits.softmax(dim=0)
    hard = F.one_hot(soft.argmax(dim=0), len(q)).T + soft - soft.detach()
    values = block.merge.value(x)
    means = torch.stack([(row[:, None] * values).sum(0) / (row.sum() + 1) for row in hard])
    n = block.merge.proj(means) + q
    short = n if isinstance(block.reduction, nn.Identity) else block.reduction[1](block.reduction[0](n))
    return short + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm_merged(n))))


@pytest.mark.parametrize('out_dim', [12, 20], ids=['one width', 'growing width'])
def test_grouping_block_equals_a_plain_one(out_dim: int) -> None:
    block = GroupingBlock(12, 7, 5, 3, out_dim=out_dim).eval()
    segments, tokens = torch.randn(2, 9, 12), torch.randn(2, 7, 12)
    ours = block(segments, tokens).segments
    theirs = torch.stack([plain_grouping(block, x, g) for x, g in zip(segments, tokens)])
    assert ours.shape == (2, 5, out_dim)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(x.square().sum(), list(block.parameters())) for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_transformer_block_equals_that_of_torch() -> None:
    ours = Block(12, 3, 2.0)
    theirs = nn.TransformerEncoderLayer(12, 3, 24, 0.0, 'gelu', batch_first=True, norm_first=True)
    names = {
        'norm1': ours.norm1,
        'norm2': ours.norm2,
        'linear1': ours.mlp.fc1,
        'linear2': ours.mlp.fc2,
        'self_attn.out_proj': ours.proj,
    }
    state = {
        f'{name}.{key}': value for name, part in names.items() for key, value in part.state_dict().items()
    }
    state |= {'self_attn.in_proj_weight': ours.qkv.weight, 'self_attn.in_proj_bias': ours.qkv.bias}
    theirs.load_state_dict(state)
    x = torch.randn(2, 9, 12)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_projector_between_widths_is_a_token_mix_then_a_linear_layer() -> None:
    projector = GroupProjector(12, 7, 4, 20)
    tokens = torch.randn(2, 7, 12)
    mixed = projector.mix.fc2(F.gelu(projector.mix.fc1(projector.norm(tokens).transpose(1, 2)))).transpose(
        1, 2
    )
    expected = F.linear(projector.widen[0](mixed), projector.widen[1].weight)
    assert expected.shape == (2, 4, 20)
    torch.testing.assert_close(projector(tokens), expected)


def test_block_without_residual_keeps_only_the_members() -> None:
    """An empty group of such a block does not depend on its token."""
    block = GroupingBlock(8, 4, 3, 2, residual=False).eval()
    block.merge.assignment = Assignment()
    segments = torch.randn(1, 5, 8)
    first, other = (block(segments, torch.randn(1, 4, 8)) for _ in range(2))
    for result in (first, other):
        empty = result.hard.sum(-1)[0] == 0
        if empty.any():
            bare = block.mlp(block.norm_merged(block.merge.proj.bias[None]))
            torch.testing.assert_close(
                result.segments[0, empty], (bare + block.merge.proj.bias).expand(int(empty.sum()), -1)
            )


# --- image encoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'stages',
    [
        {},
        MORE_STAGES,
        {
            'dims': (16, 16),
            'depths': (2, 2),
            'num_heads': (2, 2),
            'num_group_tokens': (12, 0),
            'num_output_groups': (5,),
        },
    ],
    ids=['two groupings', 'three groupings of several widths', 'one grouping'],
)
def test_shapes_of_any_number_of_stages(stages: dict[str, Any]) -> None:
    model = toy_groupvit(image_encoder=stages)
    output = model.encode_image(torch.randn(2, 3, 40, 27))
    groups = stages.get('num_output_groups', (6, 3))
    segments = (5 * 3, *groups)
    assert output.grid == (5, 3)
    assert output.features.shape == (2, groups[-1], stages.get('dims', (16, 16, 16))[-1])
    torch.testing.assert_close(output.pooled, output.features.mean(1))
    assert [tuple(maps.shape) for maps in output.soft] == [
        (2, after, before) for before, after in zip(segments, groups)
    ]
    for soft, hard in zip(output.soft, output.hard):
        torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]))
        assert torch.equal(hard, F.one_hot(soft.argmax(1), soft.shape[1]).transpose(1, 2).float())


def test_images_do_not_depend_on_their_neighbours() -> None:
    model = toy_groupvit()
    images, order = torch.randn(4, 3, 32, 32), torch.tensor([2, 0, 3, 1])
    together, permuted = model.encode_image(images), model.encode_image(images[order])
    torch.testing.assert_close(permuted.features, together.features[order], atol=1e-5, rtol=1e-4)
    alone = model.encode_image(images[2:3])
    torch.testing.assert_close(alone.pooled, together.pooled[2:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.soft[1], together.soft[1][2:3], atol=1e-5, rtol=1e-4)


def test_a_border_without_a_whole_patch_is_not_looked_at() -> None:
    model = toy_groupvit()
    images = torch.randn(1, 3, 37, 45)
    changed = images.clone()
    changed[:, :, 32:] = 9
    changed[:, :, :, 40:] = -9
    assert torch.equal(model.encode_image(images).features, model.encode_image(changed).features)


def test_sine_positions_count_down_the_columns() -> None:
    table = sine_positions((3, 3), 8)[0]
    quarter = torch.tensor([1.0, 10000.0**-0.5])
    assert table.shape == (9, 8)
    # Token 1 is the patch in row 0, column 1; the table gives it row 1, column 0.
    expected = torch.cat([torch.zeros(2), torch.ones(2), quarter.sin(), quarter.cos()])
    torch.testing.assert_close(table[1], expected)
    torch.testing.assert_close(table[3], torch.cat([expected[4:], expected[:4]]))
    model = toy_groupvit(image_encoder={'positions': 'fourier'})
    assert not model.image_encoder.positions.requires_grad
    torch.testing.assert_close(model.state_dict()['image_encoder.positions'], sine_positions((4, 4), 16))


def test_positions_of_another_grid_are_resized_on_loading() -> None:
    small, large = toy_groupvit(), toy_groupvit(image_encoder={'image_size': (48, 24)})
    table = small.image_encoder.positions.detach()
    expected = F.interpolate(table[0].T.reshape(1, 16, 4, 4), size=(6, 3), mode='bicubic')
    report = load_into(large, small.state_dict())
    assert report.is_complete
    torch.testing.assert_close(large.image_encoder.positions[0], expected[0].flatten(1).T)
    images = torch.randn(1, 3, 48, 24)
    torch.testing.assert_close(small.encode_image(images).pooled, large.encode_image(images).pooled)
    with pytest.raises(ValueError, match='18'):
        small.load_state_dict(large.state_dict())
    assert resize_positions(table, (4, 4), (4, 4)) is table


def test_stochastic_depth_grows_over_the_blocks_and_sleeps_in_evaluation() -> None:
    model = toy_groupvit(image_encoder={'drop_path': 0.3})
    rates = [block.drop_path.drop_prob for stage in model.image_encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode_image(images).pooled, model.encode_image(images).pooled)
    torch.testing.assert_close(model.encode_image(images).pooled, toy_groupvit().encode_image(images).pooled)


def test_initial_values() -> None:
    model = MODELS.build(toy_config(multi_label={}))
    first, second, _ = model.image_encoder.stages
    assert first.group_tokens.std().item() == pytest.approx(0.02, rel=0.3)
    assert not second.group_tokens.any()
    assert model.image_encoder.positions.std().item() == pytest.approx(0.02, rel=0.3)
    assert first.blocks[0].qkv.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not first.blocks[0].qkv.bias.any()
    for scale in (model.logit_scale, model.multi_label_logit_scale):
        assert scale.item() == pytest.approx(2.6593, abs=1e-4)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'depths': (1, 1)}, 'dims has 3, depths has 2'),
        ({'num_output_groups': (6, 3, 3)}, 'num_output_groups has 3'),
        ({'num_group_tokens': (6, 3, 3)}, r'\(6, 3, 3\)'),
        ({'positions': 'none'}, 'positions'),
    ],
)
def test_stages_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(toy_config(image_encoder=changes))


def test_size_of_the_released_model() -> None:
    with torch.device('meta'):
        model = MODELS.build(
            {
                'type': 'ovd.GroupViT',
                'image_encoder': {'type': 'ovd.GroupingTransformer'},
                'text_encoder': {},
                'multi_label': {},
            }
        )
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    expected = {
        'image_encoder': 28.84,
        'text_encoder': 22.15 + 2.11,
        'image_projection': 2.63,
    }
    for name, millions in expected.items():
        assert counts[name] == pytest.approx(millions, abs=0.006)


# --- training -------------------------------------------------------------------------------------------


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in losses.items() if 'loss' in name]).sum()


@pytest.mark.parametrize('stages', [{}, MORE_STAGES], ids=['two groupings', 'three groupings'])
def test_every_parameter_is_trained(stages: dict[str, Any]) -> None:
    model = toy_groupvit(multi_label={}, image_encoder=stages).train()
    total(model.loss(**toy_batch())).backward()
    largest = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
    for name, gradient in largest.items():
        if name.endswith(WITHOUT_GRADIENT):
            assert gradient < 0.01 * largest[name.replace('bias', 'weight')], name
        else:
            assert gradient > 1e-7, name


def test_options_of_the_multi_label_loss_are_wired() -> None:
    batch = toy_batch()
    losses = {}
    for name, options in {
        'reference': {},
        'masked': {'fillers': 'ignored'},
        'shared': {'same_noun': 'positive'},
        'paper': {'formula': 'log_of_sum'},
        'half': {'weight': 0.5},
    }.items():
        torch.manual_seed(1)
        losses[name] = toy_groupvit(multi_label=options).train().loss(**batch)
        losses[name] = losses[name]['loss_multi_label'].item()
    assert losses['half'] == pytest.approx(losses['reference'] / 2)
    assert len(set(losses.values())) == len(losses)
    assert toy_groupvit(multi_label={}).loss(**batch)['nouns'].item() == 7 / 4  # one prompt is a filler
    shared = toy_groupvit(multi_label={'share_scale': True})
    assert shared.multi_label_logit_scale is None
    assert 'loss_multi_label' in shared.loss(**batch)
    with pytest.raises(ValueError, match='multi_label'):
        toy_groupvit(multi_label={}).loss(**toy_batch(prompts=0))


def test_texts_that_the_text_encoder_cannot_read_are_refused() -> None:
    short = toy_groupvit(text_encoder={'context_length': 12})
    with pytest.raises(ValueError, match='context_length=12'):
        short.loss(**toy_batch())
    small = MODELS.build(toy_config(text_encoder={'vocab_size': 100}))
    with pytest.raises(IndexError, match='out of range'):
        small.loss(**toy_batch())


def test_captions_alone() -> None:
    """Without the multi-label loss the prompts are not even read."""
    losses = [toy_groupvit().loss(**toy_batch(prompts=prompts)) for prompts in (0, 2)]
    assert set(losses[0]) == {'loss_caption', 'scale'} | {
        f'{name}_{i}' for name in ('group_entropy', 'empty_groups') for i in range(2)
    }
    batch = toy_batch()
    for sample in batch['data_samples']:
        sample.token_ids[1:] = 5
    torch.testing.assert_close(toy_groupvit().loss(**batch)['loss_caption'], losses[1]['loss_caption'])


def test_equal_texts_are_encoded_once_and_no_longer_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_groupvit()
    token_ids = torch.cat([sample.token_ids for sample in toy_batch()['data_samples']])
    seen: list[torch.Size] = []
    plain = model.text_encoder(token_ids)
    model.text_encoder.transformer.register_forward_pre_hook(lambda module, x: seen.append(x[0].shape))
    torch.testing.assert_close(model.encode_text(token_ids), plain, atol=1e-5, rtol=1e-4)
    assert seen[0][0] == len(token_ids) - 1  # the filler repeats its caption
    assert seen[0][1] == int(token_ids.argmax(1).max()) + 1 < 20


def test_scales_stay_below_their_bound() -> None:
    model = toy_groupvit(multi_label={}, max_logit_scale=50.0).train()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
        model.multi_label_logit_scale.fill_(9.0)
    losses = model.loss(**toy_batch())
    assert losses['scale'].item() == pytest.approx(50.0, rel=1e-5)
    assert model.multi_label_logit_scale.exp().item() == pytest.approx(50.0, rel=1e-5)


def test_monitors_by_hand() -> None:
    model = toy_groupvit()
    even, collapsed = torch.eye(4)[None], torch.zeros(1, 4, 4)
    collapsed[:, 1] = 1
    empty = torch.zeros(0)
    figures = model.monitors(GroupingOutput(empty, empty, (), (even, collapsed), (2, 2)))
    assert figures['group_entropy_0'].item() == pytest.approx(1.0)
    assert figures['empty_groups_0'].item() == 0
    assert figures['group_entropy_1'].item() == 0
    assert figures['empty_groups_1'].item() == 0.75


def test_bfloat16_keeps_assignments_and_losses_in_float32() -> None:
    model = toy_groupvit(multi_label={}).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        batch = toy_batch()
        output = model.encode_image(batch['inputs'])
        losses = model.loss(**batch)
    assert {maps.dtype for maps in (*output.soft, *output.hard)} == {torch.float32}
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        exact = model.encode_image(batch['inputs'])
        with torch.autocast('cpu', dtype=torch.bfloat16):
            rounded = model.encode_image(batch['inputs'])
    torch.testing.assert_close(rounded.soft[0], exact.soft[0], atol=0.1, rtol=0)


def test_checkpointing_changes_memory_not_gradients() -> None:
    gradients = []
    for with_checkpoint in (False, True):
        model = toy_groupvit(
            image_encoder={'with_checkpoint': with_checkpoint, 'drop_path': 0.3},
            text_encoder={'with_checkpoint': with_checkpoint},
        ).train()
        torch.manual_seed(5)
        total(model.loss(**toy_batch())).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


# --- words ----------------------------------------------------------------------------------------------


def test_class_vectors_average_the_prompts_as_they_are() -> None:
    templates = ['a photo of a {}.', 'many {}']
    model = toy_groupvit(text={'vocabulary': WORDS, 'templates': templates})
    prompts = [template.format(word) for word in WORDS for template in templates]
    raw = model.own_text.encode(prompts).unflatten(0, (3, 2))
    torch.testing.assert_close(model.text_embeddings.embeddings, l2_normalize(raw.mean(1)))
    each = toy_groupvit(text={'vocabulary': WORDS, 'templates': templates, 'normalize_each': True})
    torch.testing.assert_close(each.text_embeddings.embeddings, l2_normalize(l2_normalize(raw).mean(1)))
    assert not torch.allclose(each.text_embeddings.embeddings, model.text_embeddings.embeddings)


def test_words_follow_the_weights() -> None:
    model, other = toy_groupvit(), toy_groupvit()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    model.set_vocabulary(['pony', 'boat'], 'the {}')
    before = model.text_embeddings
    assert model.text_embeddings is before
    load_into(model, other.state_dict())
    after = model.text_embeddings
    assert after.encoder_fingerprint != before.encoder_fingerprint
    assert after.vocabulary.names == ('pony', 'boat')
    assert after.templates == ('the {}',)
    other.set_vocabulary(['pony', 'boat'], 'the {}')
    torch.testing.assert_close(after.embeddings, other.text_embeddings.embeddings)
    torch.testing.assert_close(model.readout.text_embeddings, after.embeddings)
    # Behind torch's back, as averaged weights are swapped in.
    model.text_encoder.text_projection.fc2.bias.data.add_(1.0)
    model.eval()
    assert not torch.allclose(model.text_embeddings.embeddings, after.embeddings)


def test_a_copy_has_words_of_its_own() -> None:
    """Averaging of weights copies the whole model."""
    model = toy_groupvit()
    before = model.text_embeddings
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.3)
    assert copied.own_text.fingerprint != model.own_text.fingerprint == before.encoder_fingerprint
    assert not torch.allclose(copied.text_embeddings.embeddings, before.embeddings)
    assert model.text_embeddings is before
    large = toy_groupvit(image_encoder={'image_size': 48})
    copied.load_state_dict(large.state_dict())
    assert copied.image_encoder.positions.shape == (1, 16, 16)


def test_class_vectors_of_other_weights_are_refused(tmp_path: Path) -> None:
    model, other = toy_groupvit(), toy_groupvit(text_encoder={'heads': 4})
    file = tmp_path / 'words.vocab.safetensors'
    model.text_embeddings.save(file)
    model.set_vocabulary(TextEmbeddings.load(file))
    from_file = toy_groupvit(text={'embeddings': str(file), 'vocabulary': None})
    assert from_file.text_embeddings.vocabulary.names == tuple(WORDS)
    with pytest.raises(ValueError, match='made with encoder'):
        other.set_vocabulary(TextEmbeddings.load(file))
    stale = toy_groupvit(text={'embeddings': str(file), 'vocabulary': None}, text_encoder={'heads': 4})
    with pytest.raises(ValueError, match='made with encoder'):
        _ = stale.text_embeddings
    with pytest.raises(ValueError, match='encoder'):
        toy_groupvit(text={'vocabulary': WORDS, 'encoder': 'x'})


def test_encoding_words_leaves_the_training_state_alone() -> None:
    model = toy_groupvit().train()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    in_training = model.own_text.encode(['a cat', 'a dog'])
    assert model.text_encoder.training
    assert model.text_encoder.text_projection.norm.training
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name])
    torch.testing.assert_close(in_training, model.eval().own_text.encode(['a cat', 'a dog']))
    features, mask = model.own_text.encode_tokens(['a cat', 'a small dog'])
    assert features.shape == (2, 5, 16)
    assert mask.sum(1).tolist() == [4, 5]


def test_a_model_without_words_takes_them_later() -> None:
    model = toy_groupvit(text=None)
    with pytest.raises(ValueError, match='no vocabulary'):
        _ = model.text_embeddings
    model.set_vocabulary(['boat'])
    assert model.vocabulary.names == ('boat',)
    small = MODELS.build(toy_config(text_encoder={'vocab_size': 100}))
    with pytest.raises(ValueError, match='100'):
        _ = small.text_embeddings


# --- predictions ----------------------------------------------------------------------------------------


def samples(*shapes: tuple[int, int]) -> list[SegDataSample]:
    return [SegDataSample(metainfo={'ori_shape': shape, 'img_shape': (32, 40)}) for shape in shapes]


@torch.no_grad()
def test_labels_and_groups_of_the_original_size() -> None:
    model = toy_groupvit(test_cfg={'keep_groups': True}, size_divisor=None)
    assert model.size_divisor == 8
    inputs = torch.randn(2, 3, 30, 40)
    results = model.predict(inputs, samples((30, 40), (15, 20)))
    for result, size in zip(results, ((30, 40), (15, 20))):
        assert result.pred_sem_seg.data.shape == (1, *size)
        assert isinstance(result.pred_groups, PixelData)
        assert result.pred_groups.data.dtype == torch.int64
        assert 0 <= int(result.pred_groups.data.min()) <= int(result.pred_groups.data.max()) < 3
    mirrored = samples((30, 40))
    mirrored[0].set_metainfo({'flip': True, 'flip_direction': 'horizontal'})
    (seen,) = model.predict(inputs[:1], mirrored)
    assert torch.equal(seen.pred_groups.data.flip(2), results[0].pred_groups.data)
    labels, groups = (results[0].get(name).data for name in ('pred_sem_seg', 'pred_groups'))
    for group in groups.unique():  # all pixels of a group have its label
        assert len(labels[groups == group].unique()) == 1


@torch.no_grad()
def test_permuting_the_words_permutes_the_labels() -> None:
    model = toy_groupvit()
    inputs = torch.randn(1, 3, 32, 40)
    labels = model.predict(inputs, samples((32, 40)))[0].pred_sem_seg.data
    model.set_vocabulary(WORDS[::-1])
    swapped = model.predict(inputs, samples((32, 40)))[0].pred_sem_seg.data
    assert torch.equal(swapped, 2 - labels)


@torch.no_grad()
def test_whole_image_context_is_made_at_the_side_that_the_readout_wants() -> None:
    model = toy_groupvit(readout={'type': 'ovd.SoftReadout', 'presence_side': 24})
    _ = model.text_embeddings
    seen: list[tuple[int, ...]] = []
    model.image_encoder.register_forward_pre_hook(lambda module, x: seen.append(tuple(x[0].shape)))
    prior = model.image_context(torch.randn(2, 3, 32, 60))
    assert seen == [(2, 3, 24, 48)]
    assert prior is not None
    torch.testing.assert_close(prior.sum(1), torch.ones(2))
    assert toy_groupvit().image_context(torch.randn(2, 3, 32, 60)) is None


@torch.no_grad()
def telling_words(model: GroupViT, images: list[Tensor]) -> TextEmbeddings:
    """Large weights, and seven classes that the groups of these images differ in."""
    for weight in model.image_encoder.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=2 * weight.shape[1] ** -0.5)
    groups = torch.cat([model.group_predictions(image).group_embeddings.flatten(0, 1) for image in images])
    rows = l2_normalize(groups - groups.mean(0))[:7]
    return TextEmbeddings(rows, Vocabulary([f'thing {index}' for index in range(7)]), (), '')


def chosen(text: TextEmbeddings, rows: Tensor) -> TextEmbeddings:
    names = [text.vocabulary.names[row] for row in rows]
    return TextEmbeddings(text.embeddings[rows], Vocabulary(names), (), '')


@pytest.mark.parametrize(
    'mode', [{}, {'mode': 'slide', 'crop_size': 24, 'stride': 16}], ids=['whole', 'slide']
)
@pytest.mark.parametrize('kind', ['ReferenceReadout', 'SoftReadout'])
@torch.no_grad()
def test_neighbours_padding_and_the_order_of_words_change_no_label(kind: str, mode: dict[str, Any]) -> None:
    background = 0.2 if kind == 'ReferenceReadout' else {'threshold': 0.2}
    readout = {'type': f'ovd.{kind}', 'background': background}
    model = toy_groupvit(readout=readout, test_cfg=mode)
    images = [torch.randn(1, 3, height, width) for height, width in ((32, 40), (32, 40), (27, 48))]
    text = telling_words(model, images)
    model.set_vocabulary(text)
    sizes = [tuple(image.shape[2:]) for image in images]
    alone = [model.predict(image, samples(size))[0].pred_sem_seg.data for image, size in zip(images, sizes)]
    assert len(torch.cat([labels.flatten() for labels in alone]).unique()) > 1

    batch = torch.cat(
        [F.pad(image, (0, 48 - size[1], 0, 32 - size[0])) for image, size in zip(images, sizes)]
    )
    together = samples(*sizes)
    for sample, (height, width) in zip(together, sizes):
        sample.set_metainfo({'img_padding_size': (0, 48 - width, 0, 32 - height)})
    for result, labels in zip(model.predict(batch, together), alone):
        assert torch.equal(result.pred_sem_seg.data, labels)

    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    model.set_vocabulary(chosen(text, order))
    places = torch.cat([order.argsort(), torch.tensor([len(text)])])  # background stays the last
    for image, size, labels in zip(images, sizes, alone):
        assert torch.equal(model.predict(image, samples(size))[0].pred_sem_seg.data, places[labels])


@torch.no_grad()
def test_a_further_word_takes_pixels_and_moves_none_between_the_others() -> None:
    model = toy_groupvit(readout={'type': 'ovd.ReferenceReadout', 'class_topk': 9})
    inputs = torch.randn(1, 3, 32, 40)
    text = telling_words(model, [inputs, torch.randn(2, 3, 32, 40)])
    model.set_vocabulary(chosen(text, torch.arange(3)))
    before = model.predict(inputs, samples((32, 40)))[0].pred_sem_seg.data
    taken = 0
    for word in range(3, 7):
        model.set_vocabulary(chosen(text, torch.tensor([0, 1, 2, word])))
        after = model.predict(inputs, samples((32, 40)))[0].pred_sem_seg.data
        assert torch.equal(after[after < 3], before[after < 3])
        taken += int((after == 3).sum())
    assert taken


@torch.no_grad()
def test_a_long_strip_is_judged_in_one_small_picture() -> None:
    model = toy_groupvit(readout={'type': 'ovd.SoftReadout', 'presence_side': 24})
    seen: list[tuple[int, ...]] = []
    model.image_encoder.register_forward_pre_hook(lambda module, x: seen.append(tuple(x[0].shape[2:])))
    for size in ((8, 1600), (1600, 8), (30, 90)):
        model.image_context(torch.randn(1, 3, *size))
    assert seen == [(8, 192), (192, 8), (24, 72)]


@torch.no_grad()
def test_samples_with_captions_get_embeddings_instead() -> None:
    model = toy_groupvit()
    batch = toy_batch()
    results = model.predict(**batch)
    output = model.encode_image(batch['inputs'])
    captions = torch.stack([sample.token_ids[0] for sample in batch['data_samples']])
    for i, result in enumerate(results):
        torch.testing.assert_close(
            result.image_embeddings, l2_normalize(model.project_image(output.pooled))[i]
        )
        torch.testing.assert_close(result.text_embeddings, l2_normalize(model.encode_text(captions))[i])
        assert 'pred_sem_seg' not in result


# --- parts that can be exchanged --------------------------------------------------------------------------


@MODELS.register_module()
class ToyPooling(nn.Module):
    """The first group stands for the image."""

    def forward(self, batch: GroupBatch) -> Tensor:
        return batch.group_embeddings[:, 0]


@MODELS.register_module()
class ToyObjective(nn.Module):
    """Groups should be unlike the background, and the captions unlike each other."""

    def forward(self, batch: GroupBatch) -> dict[str, Tensor]:
        assert batch.background is not None
        assert batch.text_embeddings is not None
        assert batch.text_embeddings.shape == (len(batch.samples), 3, 8)
        return {'loss_toy': (batch.group_embeddings @ batch.background).mean() * batch.scale}


def test_pooling_objectives_and_projection_are_parts() -> None:
    model = toy_groupvit(
        multi_label={},
        image_projection={'type': 'ovd.NormProjection', 'hidden_dim': 12},
        background=True,
        pooling={'type': 'ovd.ToyPooling'},
        objectives=[{'type': 'ovd.ToyObjective'}],
        caption_weight=0.5,
    ).train()
    batch = toy_batch()
    losses = model.loss(**batch)
    assert {'loss_caption', 'loss_multi_label', 'loss_toy'} <= set(losses)
    total(losses).backward()
    assert model.background.grad is not None
    assert model.background.grad.any()
    predictions = model.eval().group_predictions(batch['inputs'])
    torch.testing.assert_close(predictions.image_embeddings, predictions.group_embeddings[:, 0])
    torch.testing.assert_close(predictions.background, l2_normalize(model.background))
    alone = model.group_predictions(batch['inputs'][1:2])
    torch.testing.assert_close(alone.group_embeddings, predictions.group_embeddings[1:2], atol=1e-5, rtol=0)


def test_a_readout_that_wants_a_background_vector_is_told_at_once() -> None:
    readout = {'type': 'ovd.SoftReadout', 'background': {'learned': True}}
    assert toy_groupvit(readout=readout, background=True).with_background
    with pytest.raises(ValueError, match='background=True'):
        toy_groupvit(readout=readout)


def test_text_tower_of_a_clip() -> None:
    """Words have the vectors that the CLIP gives them; frozen, they stay."""
    folder = ROOT / 'ovd' / 'assets' / 'clip_tiny_shapes'
    options = {'text': {'vocabulary': WORDS, 'normalize_each': True}}
    config = toy_config(**options) | {'text_encoder': {'clip': str(folder), 'frozen': True}}
    model = MODELS.build(config).train()
    expected = TextEmbeddings.build(WORDS, 'a photo of a {}.', TextEncoder(folder))
    torch.testing.assert_close(model.text_embeddings.embeddings, expected.embeddings)
    assert model.embed_dim == expected.embed_dim
    assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    length = len(model.text_encoder.positional_embedding)
    batch = toy_batch(prompts=0)
    for sample in batch['data_samples']:
        sample.token_ids = F.pad(sample.token_ids, (0, length - 20))
    total(model.loss(**batch)).backward()
    assert model.image_projection.fc2.weight.grad.any()
    tuned = MODELS.build(config | {'text_encoder': {'clip': str(folder)}})
    assert all(parameter.requires_grad for parameter in tuned.text_encoder.parameters())
