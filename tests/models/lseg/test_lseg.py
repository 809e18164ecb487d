"""LSeg: labels and their errors, training, sizes, mixed precision, any backbone, few-shot pairs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.encoders.text_encoder import TextEncoder
from ovd.layers.score_maps import materialize
from ovd.models.lseg.segmentor import nearest
from ovd.registry import MODELS
from ovd.text.templates import expand
from ovd.text.vocabulary import Vocabulary
from tests.toys.clip import VIT, write_architecture
from tests.toys.lseg import (
    CHANNELS,
    DIM,
    NAMES,
    SIZE,
    batch,
    losses_of,
    model_config,
    predictions_of,
    segmentor,
    vit,
)
from tests.toys.lseg import words as toy_words

WIDTHS = (8, 12, 16, 20)
RESNET = {
    'type': 'ovd.ResNetPyramid',
    'model': 'resnet18',
    'options': {'channels': WIDTHS, 'zero_init_last': False},
}


def preprocessed(model: Any, data: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    done = model.data_preprocessor(data, True)
    return done['inputs'], done['data_samples']


# training --------------------------------------------------------------


@pytest.mark.parametrize('loss_size', ['image', 'features'])
def test_loss_is_the_cross_entropy_of_the_logits(loss_size: str) -> None:
    model = segmentor(loss_size=loss_size).eval()
    inputs, samples = preprocessed(model, batch())
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    logits = materialize(model.score_maps(inputs))
    if loss_size == 'image':
        logits = F.interpolate(logits, SIZE, mode='bilinear', align_corners=True)
    else:
        labels = nearest(labels, logits.shape[2:], True)
    expected = F.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(model.loss(inputs, samples)['loss_seg'], expected)


def test_chunks_change_neither_loss_nor_gradients() -> None:
    head = {'regularization': {'kind': 'bottleneck', 'depth': 2}, 'with_background': True}
    results = []
    for elements in (1 << 26, 6 * 64 * 96, 6 * 96 * 10, 1):
        model = segmentor(head, loss_elements=elements, background_weight=0.5).eval()
        loss = losses_of(model, batch(classes=len(NAMES) + 1))['loss_seg']
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for other in results[1:]:
        for ours, theirs in zip(other, results[0]):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ('head', 'options'),
    [
        ({}, {}),
        ({'with_background': True, 'regularization': {'kind': 'bottleneck', 'depth': 2}}, {}),
        ({}, {'backbone': {**model_config().backbone, 'readout': 'add'}}),
        (
            {},
            {
                'backbone': RESNET,
                'neck': {'type': 'ovd.DPTFusion', 'in_channels': WIDTHS, 'out_channels': 16},
            },
        ),
    ],
    ids=['vit', 'background', 'readout', 'resnet'],
)
def test_every_parameter_is_trained_and_no_text_is(head: dict[str, Any], options: dict[str, Any]) -> None:
    model = segmentor(head, **options).train()
    losses_of(model, batch(classes=len(NAMES) + model.with_background))['loss_seg'].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.abs().sum() > 0] == []
    vectors = model.text_embeddings.embeddings
    state = model.state_dict()
    assert not any(value.shape == vectors.shape and torch.equal(value, vectors) for value in state.values())
    assert not vectors.requires_grad


def test_training_overfits_two_pictures() -> None:
    neck = {**model_config().neck, 'norm_cfg': {'type': 'GN', 'num_groups': 4}}
    model = segmentor(neck=neck).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = losses_of(model, batch(2))['loss_seg']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]
    found = predictions_of(model, batch(2))
    truth = torch.stack([sample.gt_sem_seg.data for sample in found])
    labels = torch.stack([sample.pred_sem_seg.data for sample in found])
    assert (labels == truth)[truth >= 0].float().mean() > 0.6


def test_gradient_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        backbone = model_config().backbone
        backbone.vit.grad_checkpointing = checkpointing
        model = segmentor(backbone=backbone).train()
        losses_of(model, batch())['loss_seg'].backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected)


def test_bfloat16_training_is_finite_and_close() -> None:
    model = segmentor({'regularization': {'kind': 'bottleneck'}}).train()
    full = losses_of(model, batch())['loss_seg']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = losses_of(model, batch())['loss_seg']
    mixed.backward()
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, atol=0.05, rtol=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# labels ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('label', 'background', 'fine'), [(5, False, False), (5, True, True), (6, True, False)]
)
def test_a_label_beyond_the_classes_is_named(label: int, background: bool, fine: bool) -> None:
    model = segmentor({'with_background': background})
    data = batch()
    data['data_samples'][1].gt_sem_seg.data[0, 3, 4] = label
    if fine:
        assert losses_of(model, data)['loss_seg'].isfinite()
        return
    with pytest.raises(ValueError, match=rf'1\.jpg.* {label} '):
        losses_of(model, data)


@pytest.mark.parametrize('label', [-2, 255])
def test_foreign_ignore_labels_are_refused(label: int) -> None:
    data = batch()
    data['data_samples'][0].gt_sem_seg.data[0, 0, 0] = label
    with pytest.raises(ValueError, match=rf'0\.jpg.* {label} '):
        losses_of(segmentor(), data)


def test_labels_of_another_size_are_named() -> None:
    data = batch()
    data['data_samples'][1].gt_sem_seg = PixelData(data=torch.zeros(1, 20, 30, dtype=torch.long))
    inputs, samples = torch.zeros(2, 3, *SIZE), data['data_samples']
    with pytest.raises(ValueError, match=r'1\.jpg.*\(20, 30\).*\(64, 96\)'):
        segmentor().loss(inputs, samples)


def test_unseen_classes_are_out_of_the_softmax_and_their_pixels_refused() -> None:
    model = segmentor(text=toy_words(novel=('dog', 'sky'))).eval()
    data = batch()
    with pytest.raises(ValueError, match=r"leakage.*'dog', 'sky'"):
        losses_of(model, data)
    for sample in data['data_samples']:
        labels = sample.gt_sem_seg.data
        labels[(labels == 1) | (labels == 3)] = -1
    inputs, samples = preprocessed(model, data)
    found = model.loss(inputs, samples)['loss_seg']
    logits = F.interpolate(materialize(model.score_maps(inputs)), SIZE, mode='bilinear', align_corners=True)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    mapped = torch.tensor([0, -1, 1, -1, 2, -1])[labels]
    expected = F.cross_entropy(logits[:, [0, 2, 4]], mapped, ignore_index=-1)
    torch.testing.assert_close(found, expected)
    samples[1].gt_sem_seg.data[0, 0, 0] = 1
    with pytest.raises(IndexError, match='-2'):  # after the first iteration the cross entropy refuses them
        model.loss(inputs, samples)


def test_labels_are_read_in_the_first_iteration_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them waits for the GPU. Other words are checked again."""
    model = segmentor()
    checked = []
    monkeypatch.setattr(model, '_check_labels', lambda samples, size: checked.append(size))
    for _ in range(2):
        losses_of(model, batch())
    assert checked == [SIZE]
    model.set_vocabulary(toy_words(NAMES[::-1]))
    losses_of(model, batch())
    assert checked == [SIZE] * 2


def test_unseen_classes_with_background_keep_it_last() -> None:
    model = segmentor({'with_background': True}, text=toy_words(novel=('cat',))).eval()
    data = batch(classes=len(NAMES) + 1)
    for sample in data['data_samples']:
        labels = sample.gt_sem_seg.data
        labels[labels == 0] = len(NAMES)
    inputs, samples = preprocessed(model, data)
    logits = F.interpolate(materialize(model.score_maps(inputs)), SIZE, mode='bilinear', align_corners=True)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    mapped = torch.where(labels > 0, labels - 1, labels)
    expected = F.cross_entropy(logits[:, 1:], mapped, ignore_index=-1)
    torch.testing.assert_close(model.loss(inputs, samples)['loss_seg'], expected)


def test_background_pixels_can_weigh_less() -> None:
    model = segmentor({'with_background': True}, background_weight=0.25).eval()
    inputs, samples = preprocessed(model, batch(classes=len(NAMES) + 1))
    logits = F.interpolate(materialize(model.score_maps(inputs)), SIZE, mode='bilinear', align_corners=True)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    weight = torch.tensor([1.0] * len(NAMES) + [0.25])
    expected = F.cross_entropy(logits, labels, weight, ignore_index=-1)
    torch.testing.assert_close(model.loss(inputs, samples)['loss_seg'], expected)
    with pytest.raises(ValueError, match='loss_size'):
        segmentor(loss_size='low')


@pytest.mark.parametrize('size', [(64, 96), (50, 75), (33, 64)])
def test_padding_to_the_divisor_is_cut_from_loss_and_prediction(size: tuple[int, int]) -> None:
    model = segmentor().eval()
    inputs, samples = preprocessed(model, batch(size=size))
    padded = F.pad(inputs, (0, -size[1] % 32, 0, -size[0] % 32))
    logits = F.interpolate(
        materialize(model.score_maps(padded)), padded.shape[2:], mode='bilinear', align_corners=True
    )[..., : size[0], : size[1]]
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    expected = F.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(model.loss(inputs, samples)['loss_seg'], expected)
    found = predictions_of(model, batch(size=size))
    assert torch.equal(torch.cat([sample.pred_sem_seg.data for sample in found]), logits.argmax(1))


@pytest.mark.parametrize('align_corners', [True, False])
def test_nearest_labels_lie_where_the_features_do(align_corners: bool) -> None:
    ramp = torch.arange(16.0)
    positions = F.interpolate(ramp.view(1, 1, 1, 16), (1, 5), mode='bilinear', align_corners=align_corners)
    labels = nearest(ramp.long().view(1, 1, 16), (1, 5), align_corners)
    assert (labels[0, 0] - positions[0, 0, 0]).abs().max() <= 0.5
    assert torch.equal(nearest(ramp.long().view(1, 4, 4), (4, 4), align_corners)[0].flatten(), ramp.long())


# words -----------------------------------------------------------------


def test_words_can_be_changed_and_permuted() -> None:
    model = segmentor({'regularization': {'kind': 'bottleneck', 'depth': 2}}).eval()
    image = preprocessed(model, batch(1))[0]
    with torch.no_grad():
        before = materialize(model.score_maps(image))
        model.set_vocabulary(toy_words(NAMES[::-1]))
        torch.testing.assert_close(materialize(model.score_maps(image)), before.flip(1))


@pytest.mark.parametrize('kind', [None, 'depthwise', 'bottleneck'])
def test_repeated_words_change_nothing(kind: str | None) -> None:
    """A word asked for twice has the same scores twice; the others keep theirs, and every pixel its word."""
    block = None if kind is None else {'kind': kind, 'depth': 2}
    model = segmentor({'regularization': block}).eval()
    image = preprocessed(model, batch(1))[0]
    once, order = toy_words(), torch.tensor([0, 1, 2, 3, 4, 1, 0])
    with torch.no_grad():
        before, (known,) = materialize(model.score_maps(image)), predictions_of(model, batch(1))
        names = Vocabulary([*NAMES, 'dog, again', 'cat, again'])
        model.set_vocabulary(TextEmbeddings(once.embeddings[order], names, ('{}',), ''))
        torch.testing.assert_close(materialize(model.score_maps(image)), before[:, order])
        (found,) = predictions_of(model, batch(1))
    assert torch.equal(order[found.pred_sem_seg.data], known.pred_sem_seg.data)


@pytest.mark.parametrize('classes', [1, 300])
def test_any_number_of_classes_trains_and_predicts(classes: int) -> None:
    names = [f'thing {index}' for index in range(classes)]
    model = segmentor(text=toy_words(names))
    losses_of(model, batch(classes=classes))['loss_seg'].backward()
    found = predictions_of(model, batch(classes=classes))
    labels = torch.cat([sample.pred_sem_seg.data for sample in found])
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() < classes


def test_lseg_vocabulary_of_ade20k() -> None:
    full, cut = Vocabulary.parse('ade150'), Vocabulary.parse('ade150_lseg')
    different = [i for i, (a, b) in enumerate(zip(full.names, cut.names)) if a.strip() != b]
    assert different == [44, 56, 58, 64, 73, 75, 78, 89, 91, 105, 109, 123, 136, 141, 144]
    assert cut.labels == tuple(name.strip() for name in full.names)
    assert [cut.index(name) for name in cut.labels] == list(range(150))
    prompts = [expand(name, 'name') for name in cut.names]
    assert prompts[58] == prompts[130] == ['screen']
    assert all(' ' not in prompts[index][0] for index in different)


# few-shot pairs --------------------------------------------------------


def test_pairs_train_and_score_each_image_with_its_own_class() -> None:
    model = segmentor(text=toy_words((*NAMES, 'others')), pair_with='others').eval()
    inputs, samples = preprocessed(model, batch(pairs=True))
    assert [sample.metainfo['class_id'] for sample in samples] == [0, 1]
    vectors = model.text_embeddings.embeddings
    for index, sample in enumerate(samples):
        pair = torch.stack([vectors[-1], vectors[index]])
        logits = materialize(model.head(model.extract_feat(inputs[index : index + 1]), pair))
        logits = F.interpolate(logits, SIZE, mode='bilinear', align_corners=True)
        expected = F.cross_entropy(logits, sample.gt_sem_seg.data, ignore_index=-1)
        torch.testing.assert_close(model.loss(inputs[index : index + 1], [sample])['loss_seg'], expected)
        with torch.no_grad():
            (found,) = model.predict(inputs[index : index + 1], [sample])
        assert torch.equal(found.pred_sem_seg.data, logits.argmax(1))
    together = predictions_of(model, batch(pairs=True))
    assert set(together[0].pred_sem_seg.data.unique().tolist()) <= {0, 1}


def test_samples_without_a_class_are_scored_with_the_vocabulary() -> None:
    model = segmentor(text=toy_words((*NAMES, 'others')), pair_with='others')
    found = predictions_of(model, batch(size=(64, 64)))
    plain = predictions_of(segmentor(text=toy_words((*NAMES, 'others'))), batch(size=(64, 64)))
    assert torch.equal(found[0].pred_sem_seg.data, plain[0].pred_sem_seg.data)
    with pytest.raises(KeyError, match='class_id'):
        losses_of(model, batch(classes=2))


def test_pairs_refuse_foreign_labels_and_unseen_classes() -> None:
    text = toy_words((*NAMES, 'others'), novel=('dog',))
    model = segmentor(text=text, pair_with='others').train()
    with pytest.raises(ValueError, match=r"leakage.*'dog'"):
        losses_of(model, batch(pairs=True))
    model, data = segmentor(text=text, pair_with='others').train(), batch(1, pairs=True)
    data['data_samples'][0].gt_sem_seg = PixelData(data=torch.full((1, *SIZE), 2))
    with pytest.raises(ValueError, match=r"label 2 .*'others'"):
        losses_of(model, data)
    with pytest.raises(ValueError, match="pair_with='others'"):
        segmentor(pair_with='others')
    with pytest.raises(ValueError, match='with_background'):
        segmentor({'with_background': True}, pair_with='others')


def test_the_other_word_is_encoded_like_the_classes(tmp_path: Path) -> None:
    tower = str(write_architecture(tmp_path / 'clip.json', embed_dim=DIM))
    encoder = {'model': tower, 'pretrained': 'random:0'}
    text = {'vocabulary': list(NAMES), 'templates': 'name', 'encoder': encoder}
    init_default_scope('mmseg')
    model = MODELS.build(model_config(text=text, pair_with='others'))
    losses_of(model, batch(pairs=True))
    expected = TextEmbeddings.build(['others'], 'name', TextEncoder(**encoder)).embeddings[0]
    torch.testing.assert_close(model._words(torch.device('cpu')).other, expected)


# image nets ------------------------------------------------------------


def fpn(options: dict[str, Any]) -> dict[str, Any]:
    """mmseg's ResNet, thin, before the given necks."""
    resnet = {
        'type': 'ResNet',
        'depth': 18,
        'base_channels': 8,
        'stem_channels': 8,
        'norm_cfg': {'type': 'BN'},
    }
    return {'backbone': resnet, 'neck': options, 'size_divisor': 32}


FPN = {'type': 'FPN', 'in_channels': [8, 16, 32, 64], 'out_channels': 16, 'num_outs': 4}
UPER = {
    'type': 'UPerHead',
    'in_channels': [8, 16, 32, 64],
    'in_index': [0, 1, 2, 3],
    'channels': 8,
    'num_classes': 16,
    'norm_cfg': {'type': 'BN'},
}
FUSION = {'type': 'ovd.DPTFusion', 'in_channels': [16] * 4, 'out_channels': 16, 'norm_cfg': {'type': 'BN'}}


def dpt(readout: str = 'project', **options: Any) -> dict[str, Any]:
    return {'backbone': {**model_config().backbone, 'vit': vit(**options), 'readout': readout}}


@pytest.mark.parametrize(
    ('options', 'stride'),
    [
        (fpn(FPN), 4),
        ({**fpn(FPN), 'in_index': 2}, 16),
        (fpn([FPN, FUSION]), 2),
        (fpn(UPER), 4),
        ({'backbone': RESNET, 'neck': {**FUSION, 'in_channels': WIDTHS}}, 2),
        (dpt(patch=32), 2),
        (dpt(patch=14), 1.75),
        (dpt('ignore'), 2),
    ],
    ids=['fpn', 'fpn_coarse', 'fpn_fusion', 'decode_head', 'resnet', 'patch32', 'patch14', 'ignore'],
)
def test_other_image_nets_train_and_predict_at_odd_sizes(options: dict[str, Any], stride: float) -> None:
    model = segmentor(**options)
    size = (70, 90)
    losses_of(model, batch(size=size))['loss_seg'].backward()
    with torch.no_grad():
        side = 4 * model.size_divisor
        scores = model.eval().score_maps(torch.randn(1, 3, side, 2 * side))
    assert scores.size == (side / stride, 2 * side / stride)
    found = predictions_of(model, batch(size=size))
    assert found[0].pred_sem_seg.data.shape == (1, *size)


def test_the_vit_of_a_clip_is_a_backbone(tmp_path: Path) -> None:
    tower = str(write_architecture(tmp_path / 'clip.json', vision_cfg={**VIT, 'layers': 4}))
    trunk = {'type': 'ovd.ClipViT', 'model': tower, 'pretrained': 'random:1'}
    backbone = {'type': 'ovd.DPTViT', 'vit': trunk, 'hooks': (0, 1, 2, 3), 'channels': CHANNELS}
    model = segmentor(backbone=backbone)
    losses_of(model, batch())['loss_seg'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert predictions_of(model, batch(size=(40, 70)))[0].pred_sem_seg.data.shape == (1, 40, 70)
