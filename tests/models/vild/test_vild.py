"""The ViLD detector as a whole: variants, leakage, vocabularies, regions, CLIP inside, checkpoints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from ovd.models.vild.bbox_head import ViLDBBoxHead, select_detections
from ovd.models.vild.detector import ViLD, gather_regions
from ovd.models.vild.online_encoder import rgb_images
from ovd.registry import MODELS
from ovd.training.runner import ToolRunner
from tests.toys.vild import DIM, NAMES, batch, detector, model_config, words

init_default_scope('mmdet')

MODES = ('vild_text', 'vild_image', 'vild', 'vild_ensemble')


def losses_of(model: ViLD, data: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    model.train()
    return model(**model.data_preprocessor(data, True), mode='loss')


def predictions_of(model: ViLD, data: dict[str, Any]) -> list[InstanceData]:
    model.eval()
    with torch.no_grad():
        samples = model(**model.data_preprocessor(data, False), mode='predict')
    return [sample.pred_instances for sample in samples]


@pytest.mark.parametrize('mask', [True, False])
@pytest.mark.parametrize('mode', MODES)
def test_every_variant_trains_all_its_parameters_and_predicts(mode: str, mask: bool) -> None:
    model = detector(mode, mask)
    losses = losses_of(model, batch())
    assert ('loss_cls' in losses) == (mode != 'vild_image')
    assert ('loss_distill' in losses) == (mode != 'vild_text')
    assert ('loss_mask' in losses) == mask
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []
    found = predictions_of(model, batch())
    assert all(len(instances) == 10 for instances in found)
    assert all(instances.scores.diff().le(0).all() for instances in found)
    assert all(set(instances.labels.tolist()) <= set(range(len(NAMES))) for instances in found)
    assert all(('masks' in instances) == mask for instances in found)


def test_an_unknown_mode_and_a_mask_head_with_classes_are_refused() -> None:
    with pytest.raises(ValueError, match='vild2'):
        detector('vild2')
    config = model_config()
    config.roi_head.mask_head.class_agnostic = False
    with pytest.raises(ValueError, match='class_agnostic'):
        MODELS.build(config)


def test_boxes_of_novel_classes_are_refused_as_leakage() -> None:
    data = batch()
    data['data_samples'][1].gt_instances.labels[0] = NAMES.index('fish')
    with pytest.raises(ValueError, match="'fish'"):
        losses_of(detector(), data)
    data['data_samples'][1].gt_instances.labels[0] = 4
    with pytest.raises(IndexError):
        losses_of(detector(), data)


def test_a_split_that_the_model_does_not_know_is_refused_in_training() -> None:
    model = detector()
    model.check_training_classes({'classes': NAMES, 'base_classes': ('cat', 'dog')})
    model.check_training_classes({'classes': NAMES})
    with pytest.raises(ValueError, match="'dog'"):
        model.check_training_classes({'classes': NAMES, 'base_classes': ('cat',)})
    with pytest.raises(ValueError, match="'fish'"):
        model.check_training_classes({'classes': NAMES, 'base_classes': ('cat', 'dog', 'fish')})


def test_the_tools_ask_about_the_split_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SimpleNamespace(metainfo={'classes': NAMES, 'base_classes': ('cat',)})
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
    for name in ('build_train_loop', 'build_test_loop'):
        monkeypatch.setattr(Runner, name, lambda self, config: loop)
    runner = object.__new__(ToolRunner)
    runner.model = detector()
    assert runner.build_test_loop({}) is loop
    with pytest.raises(ValueError, match="'dog'"):
        runner.build_train_loop({})


def test_novel_words_have_no_influence_on_training() -> None:
    """Removed means removed: other novel words, or none at all, give the same class loss."""
    model = detector()
    reference = losses_of(model, batch())['loss_cls']
    model.set_vocabulary(words(('cat', 'dog', 'whale', 'owl', 'ant'), ('whale', 'owl', 'ant')))
    other = losses_of(model, batch())['loss_cls']
    torch.testing.assert_close(other, reference)
    model.set_vocabulary(words(('cat', 'dog'), ()))
    torch.testing.assert_close(losses_of(model, batch())['loss_cls'], reference)


def test_missing_regions_and_regions_of_another_clip_are_refused() -> None:
    data = batch()
    del data['data_samples'][0].region_instances
    with pytest.raises(ValueError, match='LoadRegionEmbeddings'):
        losses_of(detector(), data)
    assert 'loss_distill' not in losses_of(detector('vild_text'), data)
    model = detector()
    model.set_vocabulary(words(source='tower'))
    losses_of(model, batch())
    other = detector()
    other.set_vocabulary(words(source='elsewhere'))
    with pytest.raises(ValueError, match=r'tower.*elsewhere'):
        losses_of(other, batch())
    with pytest.raises(ValueError, match=r'third.*tower'):
        model.set_vocabulary(words(source='third'))


@pytest.mark.parametrize('mode', ['vild', 'vild_ensemble'])
def test_pictures_without_objects_or_regions_still_train(mode: str) -> None:
    data = batch()
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
        sample.region_instances.valid[:] = False
    model = detector(mode)
    losses = losses_of(model, data)
    assert losses['loss_distill'].item() == 0
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_distillation_is_the_l1_of_the_formula_and_reaches_the_backbone() -> None:
    model = detector('vild_ensemble')
    data = batch()
    loss = losses_of(model, data)['loss_distill']
    prepared = model.data_preprocessor(batch(), True)
    features = model.extract_feat(prepared['inputs'])
    regions = [sample.region_instances for sample in prepared['data_samples']]
    total, count = torch.zeros(()), 0
    head = model.roi_head.bbox_head
    for index, instances in enumerate(regions):
        for box, teacher, valid in zip(instances.bboxes, instances.embeddings.float(), instances.valid):
            if valid:
                roi = torch.cat([torch.tensor([float(index)]), box])[None]
                pooled = model.roi_head.bbox_roi_extractor(features[:1], roi)
                student = head.image_classifier.project(head.image_trunk(pooled))[0]
                total = total + (student / student.norm() - teacher / teacher.norm()).abs().sum()
                count += 1
    assert count == 5
    torch.testing.assert_close(loss, 0.5 * total / count)
    loss.backward()
    assert model.backbone.conv1.weight.grad.any()


def test_asking_in_another_order_only_renumbers_the_answers() -> None:
    model = detector('vild_ensemble')
    first = predictions_of(model, batch())
    order = ('fish', 'cat', 'bird', 'dog')
    model.set_vocabulary(words(order))
    second = predictions_of(model, batch())
    for one, other in zip(first, second):
        torch.testing.assert_close(other.scores, one.scores)
        torch.testing.assert_close(other.bboxes, one.bboxes)
        assert [order[i] for i in other.labels.tolist()] == [NAMES[i] for i in one.labels.tolist()]


@pytest.mark.parametrize('mode', MODES)
def test_any_number_of_words(mode: str) -> None:
    model = detector(mode)
    for names in (('cat',), tuple(f'thing {i}' for i in range(300))):
        model.set_vocabulary(words(names, ()))
        assert len(model.vocabulary) == len(names)
        assert all(len(instances) > 0 for instances in predictions_of(model, batch()))


def test_a_checkpoint_holds_no_words(tmp_path: Path) -> None:
    model = detector()
    keys = list(model.state_dict())
    assert not [key for key in keys if 'text' in key or 'novel' in key]
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    other = detector()
    other.set_vocabulary(words(('owl',), ()))
    other.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True))
    assert other.vocabulary.names == ('owl',)


def test_words_are_neither_trained_nor_decayed() -> None:
    model = detector()
    before = model.roi_head.bbox_head.text_embeddings.clone()
    wrapper = build_optim_wrapper(model, {'optimizer': {'type': 'SGD', 'lr': 0.1, 'weight_decay': 0.5}})
    trained = {id(value) for group in wrapper.param_groups for value in group['params']}
    assert id(model.roi_head.bbox_head.text_embeddings) not in trained
    assert id(model.roi_head.bbox_head.classifier.background) in trained
    total, _ = model.parse_losses(losses_of(model, batch()))
    wrapper.update_params(total)
    assert torch.equal(model.roi_head.bbox_head.text_embeddings, before)


def test_words_of_another_width_or_none_at_all() -> None:
    model = MODELS.build(model_config())
    with pytest.raises(ValueError, match='vocabulary'):
        predictions_of(model, batch())
    vectors = words()
    with pytest.raises(ValueError, match=f'5.*{DIM}'):
        model.roi_head.bbox_head.set_text(vectors.embeddings[:, :5], torch.zeros(4, dtype=torch.bool))


def test_objectness_multiplies_scores() -> None:
    model = detector(mask=False)
    features = model.extract_feat(model.data_preprocessor(batch(1), False)['inputs'])
    metas = [{'img_shape': (64, 64), 'scale_factor': (1.0, 1.0)}]

    def scores(power: float) -> Tensor:
        model.roi_head.objectness_power = power
        proposals = [InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40]]), scores=torch.tensor([0.25]))]
        return model.roi_head.predict_bbox(features, metas, proposals, model.test_cfg.rcnn)[0].scores

    model.eval()
    torch.testing.assert_close(scores(0.5), scores(0.0) * 0.5)


def test_image_frame_is_restored() -> None:
    head = ViLDBBoxHead(in_channels=4, embed_dim=DIM, trunk={'num_convs': 0, 'num_fcs': 1, 'fc_channels': 8})
    roi = torch.tensor([[0.0, 10, 20, 30, 60]])
    meta = {'img_shape': (100, 100), 'scale_factor': (2.0, 4.0)}
    raw = head._predict_by_feat_single(roi, torch.ones(1, 3), torch.zeros(1, 4), meta, rescale=True)
    assert raw.bboxes.tolist() == [[5, 5, 15, 15]]
    assert raw.scores.shape == (1, 3)


def test_no_candidate_gives_no_detection() -> None:
    nms = {'type': 'nms', 'iou_threshold': 0.5}
    found = select_detections(torch.zeros(3, 4), torch.zeros(3, 2), 0.5, nms, 10)
    assert len(found) == 0
    assert found.bboxes.shape == (0, 4)


def test_box_loss_averages_over_regions_or_over_matched_coordinates() -> None:
    deltas = torch.tensor([[3.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    zeros, weights = torch.zeros(3, 4), torch.ones(3, 4)
    labels = torch.tensor([0, 1, 1])  # one class: label 1 is background
    expected = {'regions': 2.5 / 3, 'positives': 2.5 / 4}
    for average, value in expected.items():
        head = ViLDBBoxHead('vild_image', 4, embed_dim=DIM, box_average=average)
        head.set_text(torch.eye(DIM)[:1], torch.zeros(1, dtype=torch.bool))
        loss = head.loss(None, deltas, torch.zeros(3, 5), labels, torch.ones(3), zeros, weights)
        assert loss['loss_bbox'].item() == pytest.approx(value)


def test_background_weight_scales_unmatched_regions() -> None:
    head = ViLDBBoxHead('vild_text', 4, embed_dim=DIM, background_weight=0.2)
    head.set_text(torch.eye(DIM)[:1], torch.zeros(1, dtype=torch.bool))
    logits, zeros = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 4)
    arguments = torch.zeros(2, 5), torch.tensor([0, 1]), torch.ones(2), zeros, zeros
    loss = head.loss(logits, zeros, *arguments)['loss_cls']
    matched = torch.tensor(1 + torch.e**-2).log()
    assert loss.item() == pytest.approx((matched + 0.2 * torch.tensor(2.0).log()).item() / 2)


@pytest.mark.parametrize('mode', MODES)
def test_every_variant_trains_and_predicts_in_mixed_precision(mode: str) -> None:
    model = detector(mode)
    expected = losses_of(model, batch())
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model, batch())
        found = predictions_of(model, batch())
    for name in ('loss_bbox', *(name for name in ('loss_cls', 'loss_distill') if name in expected)):
        torch.testing.assert_close(losses[name].float(), expected[name], atol=0.05, rtol=0.05)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())
    assert all(instances.scores.dtype == torch.float32 for instances in found)


def test_gathered_regions_keep_image_and_order() -> None:
    regions = [sample.region_instances for sample in batch(2)['data_samples']]
    joined = gather_regions(regions)
    assert joined.rois[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(joined.rois[3:, 1:], regions[1].bboxes[:2])
    assert torch.equal(joined.embeddings[:3], regions[0].embeddings)
    assert joined.valid.all()


def mean_colour_tower() -> Any:
    """An image tower whose embedding is the mean colour of the crop, repeated to D numbers."""

    class Tower(torch.nn.Module):
        image_size, embed_dim, fingerprint = 8, DIM, 'tower'

        def normalize(self, pixels: Tensor) -> Tensor:
            return pixels.float() / 255

        def encode(self, pixels: Tensor) -> Tensor:
            return pixels.mean((2, 3)).repeat(1, 3)[:, :DIM]

    return Tower()


def test_online_teacher_embeds_crops_of_the_current_batch() -> None:
    model = detector(online_teacher={'image_encoder': {'model': 'unused'}, 'num_regions': 4})
    assert model.online_teacher is not None
    model.online_teacher._encoder = mean_colour_tower()
    data = batch()
    for sample in data['data_samples']:
        del sample.region_instances
    prepared = model.data_preprocessor(data, True)
    losses = model(**prepared, mode='loss')
    assert losses['loss_distill'] > 0
    regions = [sample.region_instances for sample in prepared['data_samples']]
    assert all(len(item) == 4 and item.metainfo['encoder_fingerprint'] == 'tower' for item in regions)
    image = rgb_images(prepared['inputs'], model.data_preprocessor)[0]
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    embedding = model.online_teacher.embed([image], [box])[0][0, :3]
    colour = data['inputs'][0].flip(0).float().mean((1, 2))
    torch.testing.assert_close(embedding / embedding.norm(), colour / colour.norm(), atol=2e-2, rtol=0)
    assert not [key for key in model.state_dict() if 'teacher' in key]


def test_a_variant_without_distillation_never_asks_the_teacher() -> None:
    model = detector('vild_text', online_teacher={'image_encoder': {'model': 'a tower that is not there'}})
    assert 'loss_distill' not in losses_of(model, batch())


def test_clip_at_test_time_takes_the_image_side() -> None:
    plain = predictions_of(detector(), batch())
    model = detector(clip_ensemble={'image_encoder': {'model': 'unused'}, 'num_regions': 5})
    assert model.clip_ensemble is not None
    model.clip_ensemble._encoder = mean_colour_tower()
    found = predictions_of(model, batch())
    assert not torch.equal(found[0].scores, plain[0].scores)
    head = model.roi_head.bbox_head
    crops = torch.nn.functional.normalize(torch.randn(2, DIM), dim=-1)
    pooled = torch.randn(2, 16, 3, 3)
    with torch.no_grad():
        text, _ = head.score(pooled)
        both, _ = head.score(pooled, crops)
    image = (crops @ head.text_embeddings.T / 0.05).softmax(-1)
    weight = torch.tensor([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(both, text**weight * image ** (1 - weight))


def test_clip_cosines_keep_their_precision_under_autocast() -> None:
    head = detector().roi_head.bbox_head
    crops = torch.nn.functional.normalize(torch.randn(5, DIM), dim=-1)
    expected = head._clip_logits(crops)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(head._clip_logits(crops), expected)


def test_a_report_can_say_how_scores_came_about() -> None:
    model = detector('vild_ensemble')
    assert model.describe() == {
        'templates': 'a',
        'text_encoder': None,
        'mode': 'vild_ensemble',
        'background': 'learned, left out after the softmax',
        'temperature': 0.05,
        'text_exponent': {'base': 0.6667, 'novel': 0.3333},
        'image_side': 'second head',
        'objectness_power': 0.0,
        'score_threshold': 0.0,
        'nms': {'type': 'nms', 'iou_threshold': 0.5},
        'max_per_image': 10,
    }
    model.set_vocabulary(words(('cat',), ()))
    assert model.describe()['text_exponent'] == {'base': 0.6}
    assert 'text_exponent' not in detector('vild').describe()
    assert detector('vild_image').describe()['background'] == 'none'
    with_clip = detector('vild_text', clip_ensemble={'image_encoder': {'model': 'unused'}})
    assert with_clip.describe()['image_side'] == 'CLIP on crops, temperature'


def test_pixels_are_restored_to_rgb_whatever_the_normalisation() -> None:
    pixels = torch.randint(0, 256, (1, 3, 4, 4)).float()
    mean, std = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)
    rgb = SimpleNamespace(_enable_normalize=True, _channel_conversion=True, mean=mean, std=std)
    assert torch.equal(rgb_images((pixels - 100) / 50, rgb)[0], pixels[0].byte())
    bgr = SimpleNamespace(_enable_normalize=False, _channel_conversion=False)
    assert torch.equal(rgb_images(pixels, bgr)[0], pixels[0].flip(0).byte())


@pytest.mark.parametrize('limit', [10000, 100], ids=['together', 'class by class'])
def test_suppression_does_not_depend_on_the_place_of_a_word(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small boxes far from the origin, thousands of classes: each class as if it were alone."""
    monkeypatch.setattr('ovd.models.vild.bbox_head._MAX_JOINT_BOXES', limit)
    torch.manual_seed(0)
    corners = torch.rand(2000, 2) * 1200
    side, shift = 4 + torch.rand(2000, 1) * 2, torch.rand(2000, 1) * 2
    first, second = (
        torch.cat([corners, corners + side], 1),
        torch.cat([corners + shift, corners + shift + side], 1),
    )
    scores = torch.cat([torch.eye(2000), torch.eye(2000)]) * (0.1 + 0.9 * torch.rand(4000, 1))
    nms = {'type': 'nms', 'iou_threshold': 0.5}
    found = select_detections(torch.cat([first, second]), scores, 0.05, nms, 4000)
    survivors = 4000 - int((torchvision.ops.box_iou(first, second).diagonal() > 0.5).sum())
    assert 2500 < survivors < 3500
    assert len(found) == survivors
