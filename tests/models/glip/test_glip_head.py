"""GLIP's head against the stored outputs, losses, gradients and detections of the reference."""

import pytest
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ovd.encoders.tokens.token_encoder import TokenFeatures
from ovd.models.glip.head import GLIPHead, HeadOutputs, ImageTargets, _suppressed, centerness_targets
from tests.toys.reference.golden_glip import DYHEAD, FUSE, TEXT_LAYER, golden, levels

TEST_CFG = {
    'score_thr': 0.05,
    'nms_pre': 1000,
    'max_per_prompt': 100,
    'nms': {'type': 'nms', 'iou_threshold': 0.6},
    'ranking': 'probability',
    'aggregation': 'mean',
}


def toy_head(**options: object) -> GLIPHead:
    """The head of the stored tensors."""
    settings = {
        'channels': 32,
        'text_channels': 24,
        'num_blocks': 2,
        'fusion': {'embed_dims': 32, 'num_heads': 4},
        'text_layer': {'num_heads': 4, 'hidden_channels': 48},
        'dyhead': {'upsample': 'nearest'},
    }
    return GLIPHead(**(settings | options))  # type: ignore[arg-type]


def our_key(key: str, deep: bool = True) -> str:
    """Our name of a parameter of the reference's head."""
    key = key.removeprefix('head.')
    for old, new in {
        'dot_product_projection_text': 'project_text',
        'bias_lang': 'bias_text',
        'bias0': 'bias',
        'bbox_pred': 'boxes',
    }.items():
        if key.split('.')[0] == old:
            return key.replace(old, new)
    if not key.startswith('dyhead_tower.'):
        return key
    _, index, rest = key.split('.', 2)
    part, kind = (int(index) // 3, int(index) % 3) if deep else (int(index), 2)
    names, name = ((FUSE, 'fuse'), (TEXT_LAYER, 'text'), (DYHEAD, 'dyhead'))[kind]
    rest = rest.removeprefix('b_attn.')
    for old, new in names.items():
        if rest.startswith(old):
            return f'blocks.{part}.{name}.{new}{rest.removeprefix(old)}'
    raise KeyError(key)


def stored_head() -> tuple[GLIPHead, dict[str, Tensor]]:
    stored = golden('vlfusion_head_a')
    head = toy_head()
    head.load_state_dict(
        {our_key(key.removeprefix('sd.')): value for key, value in stored.items() if key.startswith('sd.')}
    )
    return head.eval(), stored


def stored_text(stored: dict[str, Tensor], length: int = 32) -> TokenFeatures:
    parts = (stored['in.hidden'], stored['in.embedded'], stored['in.masks'].bool())
    return TokenFeatures(*(part[:, :length] for part in parts))


def flat(maps: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


def test_outputs_are_the_stored_ones() -> None:
    head, stored = stored_head()
    with torch.no_grad():
        outputs = head(levels(stored, 'in.vf'), stored_text(stored))
        tokens = stored_text(stored).hidden
        maps = levels(stored, 'in.vf')
        for index, block in enumerate(head.blocks):
            maps, tokens = block(maps, tokens, stored['in.masks'].bool())
            torch.testing.assert_close(
                tokens, stored[f'mid.tower{3 * index + 2}.hidden'], atol=5e-6, rtol=1e-5
            )
            for ours, theirs in zip(maps, levels(stored, f'mid.tower{3 * index + 2}.vf')):
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    logits = torch.cat(levels(stored, 'out.cls'), dim=1)
    torch.testing.assert_close(outputs.logits, logits, atol=5e-6, rtol=1e-6)
    torch.testing.assert_close(outputs.deltas, flat(levels(stored, 'out.box')), atol=5e-6, rtol=0)
    torch.testing.assert_close(outputs.centerness, flat(levels(stored, 'out.ctr'))[..., 0], atol=5e-6, rtol=0)


def test_trimming_the_padding_changes_nothing() -> None:
    head, stored = stored_head()
    maps = [level[1:] for level in levels(stored, 'in.vf')]
    text = stored_text(stored)
    row = TokenFeatures(*(part[1:] for part in text))
    short = TokenFeatures(*(part[1:, :19] for part in text))
    assert text.mask[1].sum() == 19
    with torch.no_grad():
        long_out, short_out = head(maps, row), head(maps, short)
    torch.testing.assert_close(long_out.logits[:, :, :19], short_out.logits, atol=5e-6, rtol=1e-6)
    torch.testing.assert_close(long_out.deltas, short_out.deltas, atol=5e-6, rtol=0)


def test_losses_and_gradients_are_the_stored_ones() -> None:
    head, stored = stored_head()
    target = golden('atss_loss_a')
    outputs = head(levels(stored, 'in.vf'), stored_text(stored))
    targets = [
        ImageTargets(target[f'in.gt_bboxes{image}'], target[f'in.positive_maps{image}'].bool())
        for image in (0, 1)
    ]
    losses = head.loss(outputs, stored['in.masks'].bool(), targets)
    for name in ('cls', 'bbox', 'centerness'):
        torch.testing.assert_close(
            losses[f'loss_{name}'], target[f'out.loss_{name}'].reshape(()), atol=1e-5, rtol=1e-5
        )
    sum(losses.values()).backward()
    parameters = dict(head.named_parameters())
    compared = 0
    for key, expected in target.items():
        if key.startswith('grad.'):
            gradient = parameters[our_key(key.removeprefix('grad.'))].grad
            largest = float(expected.abs().max())
            torch.testing.assert_close(gradient, expected, atol=2e-4 * largest, rtol=1e-4, msg=key)
            compared += 1
    assert compared > 3


def test_assigned_boxes_are_the_stored_ones() -> None:
    head, stored = stored_head()
    target = golden('atss_loss_a')
    sizes = [(level.shape[2], level.shape[3]) for level in levels(stored, 'in.vf')]
    anchors = torch.cat(head.anchors.grid_priors(sizes, device='cpu')) - torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(anchors, target['mid.anchors_minus1'].reshape(-1, 4)[: len(anchors)])
    total = 0
    for image in (0, 1):
        boxes, maps = target[f'in.gt_bboxes{image}'], target[f'in.positive_maps{image}']
        owner = head.assign(anchors, sizes, boxes)
        rows = torch.where((owner >= 0)[:, None], maps[owner.clamp(min=0)], 0.0)
        assert torch.equal(rows.bool(), target['mid.token_targets'][image].bool())
        total += int((owner >= 0).sum())
    assert total == int(target['mid.num_pos'])


@pytest.mark.parametrize('rescale', [False, True])
def test_detections_are_the_stored_ones(rescale: bool) -> None:
    head, stored = stored_head()
    target = golden('predict_a')
    with torch.no_grad():
        outputs = head(levels(stored, 'in.vf'), stored_text(stored))
    token_map = torch.zeros(4, 32, dtype=torch.bool)
    for row, tokens in enumerate([[1, 2], [3], [5, 6, 7], [9, 10, 11, 12]]):
        token_map[row, tokens] = True
    metainfo = {'img_shape': (128, 160), 'scale_factor': (0.5, 0.5)}
    found = head.predict(outputs, [token_map] * 2, [range(4)] * 2, [metainfo] * 2, TEST_CFG, rescale=rescale)
    prefix = 'out.rescale' if rescale else 'out.net'
    names = sorted(key for key in target if key.startswith(prefix))
    assert names
    for image, instances in enumerate(found):
        expected = {
            kind: next(target[key] for key in names if kind in key and key.endswith(str(image)))
            for kind in ('bboxes', 'scores', 'labels')
        }
        assert torch.equal(instances.labels, expected['labels'].long())
        torch.testing.assert_close(instances.scores, expected['scores'], atol=5e-6, rtol=0)
        torch.testing.assert_close(instances.bboxes, expected['bboxes'], atol=2e-4, rtol=0)


def test_anchors_coder_and_overlaps_are_the_stored_ones() -> None:
    head = toy_head()
    sizes = [(3, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
    for ours, theirs in zip(
        head.anchors.grid_priors(sizes, device='cpu'), levels(golden('anchors'), 'out.level')
    ):
        torch.testing.assert_close(ours, theirs)
    stored = golden('box_coder_iou')
    anchors, deltas = stored['in.anchors'], stored['in.deltas']
    torch.testing.assert_close(head.coder.decode(anchors, deltas), stored['out.decode'])
    clipped = head.coder.decode(anchors, deltas, max_shape=(180, 220))
    torch.testing.assert_close(clipped, stored['out.decode_clip_h180_w220'])
    encoded = head.coder.encode(anchors, anchors.flip(0))
    torch.testing.assert_close(encoded, stored['out.encode_anchors_to_flipped'])
    overlaps = head.assigner.iou_calculator(anchors, stored['in.other'])
    torch.testing.assert_close(overlaps, stored['out.iou_plus1'])


def toy_inputs(batch: int = 2) -> tuple[list[Tensor], TokenFeatures]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    maps = [torch.randn(batch, 32, *size, generator=generator) for size in sizes]
    hidden = torch.randn(batch, 7, 24, generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 5])[:batch, None]
    return maps, TokenFeatures(hidden, hidden * mask[..., None], mask)


@pytest.mark.parametrize('fusion', [None, {'embed_dims': 32, 'num_heads': 4}], ids=['shallow', 'deep'])
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('checkpointed', [False, True])
def test_every_weight_is_trained(fusion: dict[str, int] | None, autocast: bool, checkpointed: bool) -> None:
    torch.manual_seed(0)
    head = toy_head(fusion=fusion, checkpointed=checkpointed).train()
    maps, text = toy_inputs()
    text.hidden.requires_grad_()
    tokens = torch.zeros(1, 7, dtype=torch.bool)
    tokens[0, 2:4] = True
    targets = [
        ImageTargets(torch.tensor([[8.0, 8.0, 50.0, 40.0]]), tokens),
        ImageTargets(torch.zeros(0, 4), torch.zeros(0, 7, dtype=torch.bool)),
    ]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        outputs = head(maps, text)
        losses = head.loss(outputs, text.mask, targets)
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (text.hidden.grad is not None) == (fusion is not None)


def test_images_without_boxes_train() -> None:
    head = toy_head()
    maps, text = toy_inputs()
    nothing = ImageTargets(torch.zeros(0, 4), torch.zeros(0, 7, dtype=torch.bool))
    losses = head.loss(head(maps, text), text.mask, [nothing, nothing])
    assert losses['loss_bbox'] == losses['loss_centerness'] == 0
    assert losses['loss_cls'] > 0
    sum(losses.values()).backward()


def test_padding_tokens_do_not_count_in_the_loss() -> None:
    head = toy_head().eval()
    maps, text = toy_inputs()
    outputs = head(maps, text)
    nothing = ImageTargets(torch.zeros(0, 4), torch.zeros(0, 7, dtype=torch.bool))
    changed = outputs._replace(logits=outputs.logits.where(text.mask[:, None], torch.tensor(9.0)))
    for ours, other in zip(
        head.loss(outputs, text.mask, [nothing] * 2).values(),
        head.loss(changed, text.mask, [nothing] * 2).values(),
    ):
        assert torch.equal(ours, other)


def test_centerness_by_hand() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [4.0, 3.0, 8.0, 11.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([1.0, (1 / 3 * 2 / 6) ** 0.5, 0.0])
    torch.testing.assert_close(centerness_targets(anchors, boxes), expected)


def plain_outputs() -> HeadOutputs:
    """Two anchors of one level stand out: one more probable, one more central."""
    logits = torch.full((1, 6, 2), -9.0)
    logits[0, 1, 0], logits[0, 4, 0] = 3.0, 1.0
    centerness = torch.full((1, 6), -5.0)
    centerness[0, 4] = 5.0
    return HeadOutputs(logits, torch.zeros(1, 6, 4), centerness, [(2, 3)])


def test_both_rankings() -> None:
    head = GLIPHead(32, 24, num_blocks=0, strides=(8,))
    token_map = torch.tensor([[True, False]])
    metainfo = {'img_shape': (16, 24), 'scale_factor': (1.0, 1.0)}
    for ranking, logits in (('probability', (3.0, -5.0)), ('centerness', (1.0, 5.0))):
        cfg = {**TEST_CFG, 'nms_pre': 1, 'ranking': ranking}
        (found,) = head.predict(plain_outputs(), [token_map], [(7,)], [metainfo], cfg)
        assert found.labels.tolist() == [7]
        torch.testing.assert_close(found.scores[0], torch.tensor(logits).sigmoid().prod().sqrt())


@pytest.mark.parametrize('label', [0, 1202])
def test_suppression_does_not_depend_on_the_place_of_a_name(label: int) -> None:
    """An overlap of .6006, which is .6 where boxes are moved apart by 1,202 classes in float32."""
    boxes = torch.tensor([[500, 400, 540.06, 500], [500, 400, 524.06, 500], [0, 0, 1333, 800]])
    labels = torch.tensor([label, label, 600])
    found = InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.8, 0.7]), labels=labels)
    settings = {'nms': {'type': 'nms', 'iou_threshold': 0.6004}, 'max_per_prompt': None}
    assert _suppressed(found, {}, settings, rescale=False).labels.tolist() == [label, 600]


def test_the_pyramid_must_fit() -> None:
    with pytest.raises(ValueError, match='shorter'):
        toy_head().align([torch.zeros(1, 32, 2, 2)], torch.zeros(1, 3, 24))
    with pytest.raises(ValueError, match="loss_weights takes 'cls', 'bbox' and 'centerness'"):
        toy_head(loss_weights={'box': 1.0})
