"""The head of ViLD against outputs of the official TensorFlow code and of DetPro."""

from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import ConfigDict
from torch import Tensor

from ovd.conversion.vild import convert_detpro, convert_tf_box_head
from ovd.layers.cosine_classifier import l2_normalize, remove_classes
from ovd.models.vild.bbox_head import ViLDBBoxHead, select_detections
from ovd.models.vild.box_coder import InclusiveBoxCoder
from ovd.models.vild.distillation import distillation_loss
from ovd.models.vild.score_ensemble import geometric_mean, standardized_logits, text_weights
from tests.helpers import shared_path

SCOPE = 'frcnn_layer_0/fast_rcnn_head/'
TF_MODES = {'vanilla': 'vild', 'double_branch': 'vild_ensemble'}
TF_CODER = {'type': 'ovd.InclusiveBoxCoder', 'target_stds': (0.1, 0.1, 0.2, 0.2)}


def golden(name: str) -> dict[str, Tensor]:
    with np.load(shared_path(f'goldens/vild/{name}.npz')) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file}


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def nchw(tensor: Tensor) -> Tensor:
    """TF features [B, R, h, w, C] -> [B * R, C, h, w]."""
    return tensor.flatten(0, 1).permute(0, 3, 1, 2).contiguous()


def tf_head(data: dict[str, Tensor], branch: str, **options: Any) -> ViLDBBoxHead:
    norm = {'eps': 1e-4, 'momentum': 0.003}
    head = ViLDBBoxHead(
        mode=TF_MODES[branch],
        in_channels=16,
        trunk={
            'conv_channels': 16,
            'fc_channels': 64,
            'norm_cfg': dict(type='BN', **norm),
            'fc_norm_cfg': dict(type='BN1d', **norm),
        },
        bbox_coder=TF_CODER,
        **options,
    )
    converted = convert_tf_box_head(below(data, f'{branch}/w/{SCOPE}'), (7, 7))
    assert converted.stripped == ['class-predict/kernel']
    assert converted.unmatched == []
    missing, unexpected = head.load_state_dict(converted.tensors, strict=False)
    assert unexpected == []
    assert all(key.endswith('num_batches_tracked') for key in missing)
    head.set_text(data['text_embeddings'], ~data['is_base'])
    return head


def background_last(logits: Tensor) -> Tensor:
    return torch.cat([logits[..., 1:], logits[..., :1]], dim=-1).flatten(0, 1)


@pytest.mark.parametrize('branch', TF_MODES)
def test_tf_training_logits_and_student_embeddings(branch: str) -> None:
    data = golden('tf_head_a')
    head = tf_head(data, branch).train()
    features, student = head.embed_pair(
        nchw(data['roi_feats_sup']), nchw(data['roi_feats_distill']), joint_batch=True
    )
    logits, deltas = head.predict_regions(features)
    assert logits is not None
    expected = background_last(data[f'{branch}/train_cls_logits'])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(student, data[f'{branch}/train_distill_emb'].flatten(0, 1), atol=1e-5, rtol=0)
    boxes = data[f'{branch}/train_box'].flatten(0, 1)[:, [1, 0, 3, 2]]
    torch.testing.assert_close(deltas, boxes, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('branch', TF_MODES)
@pytest.mark.parametrize(('mask', 'novel_logits'), [(0, None), (1, 'zeroed')])
def test_tf_class_loss_with_and_without_the_zeroing_of_novel_logits(
    branch: str, mask: int, novel_logits: str | None
) -> None:
    data = golden('tf_head_a')
    head = tf_head(data, branch, **({'novel_logits': novel_logits} if novel_logits else {}))
    if novel_logits is None:
        head.is_novel.zero_()
    logits = background_last(data[f'{branch}/train_cls_logits'])
    labels = (data['labels'].flatten().long() - 1) % 66  # 0 is background there, K = 65 here
    count = len(labels)
    zeros = torch.zeros(count, 4)
    losses = head.loss(logits, zeros, torch.zeros(count, 5), labels, torch.ones(count), zeros, zeros)
    assert losses['loss_cls'].item() == pytest.approx(data[f'{branch}/loss_text_mask{mask}'].item(), abs=1e-5)


@pytest.mark.parametrize('branch', TF_MODES)
def test_tf_distillation_loss(branch: str) -> None:
    data = golden('tf_head_a')
    student = data[f'{branch}/train_distill_emb'].flatten(0, 1)
    valid = data['distill_boxes_yxyx'].flatten(0, 1).amax(dim=1) > 0
    assert valid.sum() == 8
    loss = 0.5 * distillation_loss(student, data['teacher_emb'].flatten(0, 1), valid)
    assert loss.item() == pytest.approx(data[f'{branch}/loss_distill_weighted_w0.5'].item(), abs=1e-5)


@pytest.mark.parametrize('branch', TF_MODES)
def test_tf_inference(branch: str) -> None:
    data = golden('tf_head_a')
    head = tf_head(data, branch).eval()
    features = nchw(data['roi_feats_sup'])
    with torch.no_grad():
        logits, deltas = head(features)
        probs, _ = head.score(features)
    torch.testing.assert_close(logits, background_last(data[f'{branch}/test_cls_logits']), atol=1e-4, rtol=0)
    torch.testing.assert_close(probs, data[f'{branch}/post/raw_scores'].flatten(0, 1), atol=1e-5, rtol=1e-4)
    boxes = data[f'{branch}/test_box'].flatten(0, 1)[:, [1, 0, 3, 2]]
    torch.testing.assert_close(deltas, boxes, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('branch', TF_MODES)
def test_tf_boxes_and_suppression(branch: str) -> None:
    data = golden('tf_head_a')
    head = tf_head(data, branch)
    config = ConfigDict(score_thr=0.0, nms={'type': 'nms', 'iou_threshold': 0.5}, max_per_img=20)
    for index in range(2):
        height, width = data['image_hw'][index, 0].tolist()
        proposals = data['proposals_yxyx'][index][:, [1, 0, 3, 2]]
        rois = torch.cat([torch.zeros(len(proposals), 1), proposals], dim=1)
        deltas = 0.3 * data[f'{branch}/test_box'][index][:, [1, 0, 3, 2]]
        decoded = head.bbox_coder.decode(proposals, deltas, max_shape=(height, width))
        expected = data[f'{branch}/post/raw_boxes'][index, :, 0][:, [1, 0, 3, 2]]
        torch.testing.assert_close(decoded, expected, atol=1e-3, rtol=0)

        scores = data[f'{branch}/post/raw_scores'][index]
        found = head._predict_by_feat_single(
            rois, scores, deltas, {'img_shape': (height, width)}, rcnn_test_cfg=config
        )
        count = int(data[f'{branch}/post/num_detections'][index])
        assert len(found) == count
        torch.testing.assert_close(
            found.scores, data[f'{branch}/post/detection_scores'][index][:count], atol=1e-6, rtol=0
        )
        labels = data[f'{branch}/post/detection_classes'][index][:count].long() - 1
        assert found.labels.tolist() == labels.tolist()
        boxes = data[f'{branch}/post/detection_boxes'][index][:count][:, [1, 0, 3, 2]]
        torch.testing.assert_close(found.bboxes, boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize('flip', [0, 1])
def test_tf_box_targets(flip: int) -> None:
    data = golden('aug_boxes_a')
    anchors = data[f'flip{flip}/boxes_out'] + torch.tensor([0.0, 0.0, 5.0, 5.0])
    coder = InclusiveBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    truth = data[f'flip{flip}/enc_gt'][:, [1, 0, 3, 2]]
    targets = coder.encode(anchors[:, [1, 0, 3, 2]], truth)
    expected = data[f'flip{flip}/enc_target'][:, [1, 0, 3, 2]]
    torch.testing.assert_close(targets, expected, atol=1e-3, rtol=0)
    decoded = coder.decode(anchors[:, [1, 0, 3, 2]], targets)
    torch.testing.assert_close(decoded, truth, atol=1e-3, rtol=0)


def test_tf_region_features() -> None:
    """The TensorFlow crop is RoIAlign with one sample per bin and no half-pixel shift, over levels 2 to 6."""
    data = golden('roi_crop_a')
    boxes = data['boxes_yxyx'][0][:, [1, 0, 3, 2]]
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    features = tuple(data[f'feat_p{level}'].permute(0, 3, 1, 2).contiguous() for level in range(2, 7))
    for size in (7, 14):
        extractor = SingleRoIExtractor(
            roi_layer={'type': 'RoIAlign', 'output_size': size, 'sampling_ratio': 1, 'aligned': False},
            out_channels=2,
            featmap_strides=[4, 8, 16, 32, 64],
        )
        assert (extractor.map_roi_levels(rois, 5) + 2).tolist() == data['level'].tolist()
        pooled = extractor(features, rois).permute(0, 2, 3, 1)
        torch.testing.assert_close(pooled, data[f'out{size}'][0], atol=2e-4, rtol=0)


def detpro_head(data: dict[str, Tensor], branch: str, **options: Any) -> ViLDBBoxHead:
    head = ViLDBBoxHead(
        mode='vild' if branch == 'single' else 'vild_ensemble',
        in_channels=16,
        trunk={'conv_channels': 16, 'fc_channels': 64, 'num_fcs': 1, 'norm_cfg': {'type': 'BN'}},
        test_temperature=0.007,
        clip_logits='standardized',
        **options,
    )
    state = {f'roi_head.{key}': value for key, value in below(data, f'{branch}/w/').items()}
    state['roi_head.clip_model.visual.proj'] = torch.zeros(1)
    state['optimizer_left_over'] = torch.zeros(1)
    converted = convert_detpro(state)
    assert converted.stripped == ['roi_head.clip_model.visual.proj']
    assert converted.unmatched == ['optimizer_left_over']
    ours = below(converted.tensors, 'roi_head.bbox_head.')
    assert len(ours) == len(converted.tensors)
    missing, unexpected = head.load_state_dict(ours, strict=False)
    assert unexpected == []
    assert all(key.endswith('num_batches_tracked') for key in missing)
    return head


def novel_mask(ids: Tensor, count: int = 80) -> Tensor:
    return torch.zeros(count, dtype=torch.bool).index_fill(0, ids, True)


@pytest.mark.parametrize('branch', ['single', 'ens'])
def test_detpro_losses(branch: str) -> None:
    data = golden('detpro_head_a')
    head = detpro_head(data, branch).train()
    head.set_text(data['text_embeddings_80'], novel_mask(data['train_masked_ids']))
    features, student = head.embed_pair(data['roi_feats_sup'], data['roi_feats_distill'], joint_batch=False)
    logits, deltas = head.predict_regions(features)
    count = len(logits)
    zeros = torch.zeros(count, 4)
    losses = head.loss(logits, deltas, torch.zeros(count, 5), data['labels'], torch.ones(count), zeros, zeros)
    assert losses['loss_cls'].item() == pytest.approx(data[f'{branch}/text_cls_loss'].item(), abs=1e-5)
    distillation = 0.5 * distillation_loss(student, data['teacher_emb_unit'])
    assert distillation.item() == pytest.approx(data[f'{branch}/kd_loss'].item(), abs=1e-5)


DETPRO_SCORES = [
    (branch, coco, lam, clip)
    for branch in ('single', 'ens')
    for coco in (0, 1)
    for lam in ('cls', '0.6')
    for clip in (0, 1)
    if (branch == 'ens' or (lam, clip) == ('cls', 0)) and not (coco and clip)
]


@pytest.mark.parametrize(('branch', 'coco', 'lam', 'clip'), DETPRO_SCORES)
def test_detpro_scores(branch: str, coco: int, lam: str, clip: int) -> None:
    """The 15 unused classes that DetPro removes in a ``coco`` run are simply not asked for here."""
    data = golden('detpro_head_a')
    head = detpro_head(data, branch).eval()
    asked = torch.arange(80)
    if coco:
        asked = asked[~novel_mask(data['test_masked_ids'])]
    novel = novel_mask(data['train_masked_ids'])[asked] & (lam == 'cls')
    head.set_text(data['text_embeddings_80'][asked], novel)
    crops = data['clip_region_emb_unit'] if clip else None
    with torch.no_grad():
        probs, deltas = head.score(data['roi_feats_sup'], crops)
    expected = data[f'{branch}/test_scores_coco{coco}_lam{lam}_clip{clip}']
    torch.testing.assert_close(probs, expected[:, asked], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deltas, data[f'{branch}/test_bbox_pred'], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('lam', ['cls', '0.6'])
def test_detpro_scores_where_clip_is_scaled_by_classes_that_are_removed_afterwards(lam: str) -> None:
    """DetPro takes the deviation over all 80 classes, then removes 15: spelled out from the formulas."""
    data = golden('detpro_head_a')
    head = detpro_head(data, 'ens').eval()
    removed, novel = novel_mask(data['test_masked_ids']), novel_mask(data['train_masked_ids'])
    head.set_text(data['text_embeddings_80'], novel)
    with torch.no_grad():
        logits, _ = head(data['roi_feats_sup'])
    assert logits is not None
    text_probs = remove_classes(logits, removed).softmax(dim=-1)[:, :80]
    cosines = data['clip_region_emb_unit'] @ l2_normalize(data['text_embeddings_80']).T
    clip_probs = remove_classes(standardized_logits(cosines), removed).softmax(dim=-1)
    weight = text_weights(novel & (lam == 'cls'))
    probs = geometric_mean(text_probs, clip_probs, weight)
    expected = data[f'ens/test_scores_coco1_lam{lam}_clip1'][:, :80]
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=1e-4)


def test_weights_of_a_vocabulary_without_a_split_are_the_transfer_exponent() -> None:
    assert text_weights(torch.zeros(3, dtype=torch.bool)).tolist() == pytest.approx([0.6] * 3)


def test_conversion_refuses_other_checkpoints() -> None:
    with pytest.raises(ValueError, match='bg_embedding'):
        convert_detpro({'backbone.conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='cascade'):
        convert_detpro({'roi_head.bbox_head.0.fc_reg.weight': torch.zeros(1)})
    with pytest.raises(KeyError, match='conv_0/kernel'):
        convert_tf_box_head({}, (7, 7))


def test_select_detections_equals_suppressing_everything() -> None:
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 80
    boxes = torch.cat([corners, corners + 8 + torch.rand(300, 2) * 30], dim=1)
    scores = torch.rand(300, 40) ** 4
    nms = {'type': 'nms', 'iou_threshold': 0.5}
    every = select_detections(boxes, scores, 0.0, nms, -1)
    best = select_detections(boxes, scores, 0.0, nms, 25)
    assert len(every) > 1000
    assert torch.equal(best.bboxes, every.bboxes[:25])
    assert torch.equal(best.labels, every.labels[:25])
    assert torch.equal(best.scores, every.scores[:25])
