"""The segmentor base: labels of original images that depend on image and words alone."""

from typing import Any

import numpy as np
import pytest
import torch
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from ovd.layers.score_maps import ScoreMaps, TensorScores
from ovd.models.segmentor import OpenVocabularySegmentor
from ovd.text.vocabulary import Vocabulary
from tests.toys.segmentor import ToySegmentor

PREPROCESSOR = {
    'type': 'mmseg.SegDataPreProcessor',
    'mean': [127.5] * 3,
    'std': [127.5] * 3,
    'seg_pad_val': -1,
}


def toy(words: Any = 'red, green, blue', **kwargs: Any) -> ToySegmentor:
    model = ToySegmentor(words, data_preprocessor=dict(PREPROCESSOR), **kwargs)
    return model.eval()


def samples(*shapes: tuple[int, int], **meta: Any) -> list[SegDataSample]:
    return [SegDataSample(metainfo={'ori_shape': shape, **meta}) for shape in shapes]


def labels_of(found: list[SegDataSample]) -> list[Tensor]:
    return [sample.pred_sem_seg.data for sample in found]


def plain_scores(model: ToySegmentor, inputs: Tensor, size: tuple[int, int]) -> Tensor:
    """The toy's scores at an original size, by whole tensors: pad, forward, resize, cut, resize."""
    height, width = inputs.shape[2:]
    stride = model.stride
    padded = F.pad(inputs, (0, -width % stride, 0, -height % stride))
    if model.field > 1:
        features = F.avg_pool2d(padded, model.field, 1, model.field // 2)
    else:
        features = padded
    low = torch.einsum('bchw,kc->bkhw', F.avg_pool2d(features, stride), model.text_embeddings.embeddings)
    scores = F.interpolate(low, padded.shape[2:], mode='bilinear', align_corners=model.align_corners)
    scores = scores[:, :, :height, :width]
    return F.interpolate(scores, size, mode='bilinear', align_corners=model.align_corners)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('stride', [1, 4])
@torch.no_grad()
def test_labels_equal_whole_tensors_at_any_size(stride: int, align_corners: bool) -> None:
    model = toy(['red', 'green', 'blue', 'sky', 'wall'], stride=stride, align_corners=align_corners)
    for size, original in [((16, 24), (16, 24)), ((13, 7), (31, 40)), ((1, 1), (3, 2)), ((30, 41), (5, 1))]:
        inputs = torch.randn(2, 3, *size)
        found = model.predict(inputs, samples(original, original))
        expected = plain_scores(model, inputs, original).argmax(1)
        for label, truth in zip(labels_of(found), expected):
            assert label.dtype == torch.int64
            assert label.shape == (1, *original)
            assert torch.equal(label[0], truth)


def test_the_result_holds_nothing_but_labels_unless_asked() -> None:
    inputs = torch.randn(1, 3, 8, 8)
    (sample,) = toy().predict(inputs, samples((12, 10)))
    assert set(sample.keys()) == {'pred_sem_seg'}
    model = toy(test_cfg={'keep_scores': True})
    (sample,) = model.predict(inputs, samples((12, 10)))
    assert sample.seg_logits.data.shape == (3, 12, 10)
    assert torch.equal(sample.seg_logits.data.argmax(0), sample.pred_sem_seg.data[0])
    expected = plain_scores(model, inputs, (12, 10))[0]
    torch.testing.assert_close(sample.seg_logits.data, expected.detach(), atol=2e-6, rtol=0)


@torch.no_grad()
def test_original_sizes_may_differ_in_a_batch() -> None:
    model, inputs = toy(stride=2), torch.randn(3, 3, 10, 12)
    shapes = [(10, 12), (25, 30), (7, 9)]
    batch = labels_of(model.predict(inputs, samples(*shapes)))
    for index, shape in enumerate(shapes):
        (single,) = labels_of(model.predict(inputs[index : index + 1], samples(shape)))
        assert torch.equal(batch[index], single)


@pytest.mark.parametrize('mode', [{}, {'mode': 'slide', 'crop_size': 8, 'stride': 4}, {'flip': True}])
@torch.no_grad()
def test_padding_changes_nothing(mode: dict) -> None:
    """Images of different sizes in one padded batch equal each image alone."""
    model = toy(stride=2, field=3, test_cfg=mode)
    images = [torch.randn(3, 10, 12), torch.randn(3, 16, 9), torch.randn(3, 10, 12)]
    inputs = torch.stack([F.pad(i, (0, 12 - i.shape[2], 0, 16 - i.shape[1]), value=9.0) for i in images])
    batch = samples(*[(20, 20)] * 3)
    for sample, image in zip(batch, images):
        sample.set_metainfo({'img_padding_size': (0, 12 - image.shape[2], 0, 16 - image.shape[1])})
    found = model.predict(inputs, batch)
    assert found is batch
    for sample, image in zip(found, images):
        (single,) = model.predict(image[None], samples((20, 20)))
        assert torch.equal(sample.pred_sem_seg.data, single.pred_sem_seg.data)


@torch.no_grad()
def test_test_step_of_the_host_reaches_the_same_labels() -> None:
    """Through mmseg's preprocessor, which pads to a multiple and converts the channels."""
    model = toy(stride=4)
    padding = dict(PREPROCESSOR, test_cfg={'size_divisor': 32}, bgr_to_rgb=True)
    padded = ToySegmentor('red, green, blue', stride=4, data_preprocessor=padding).eval()
    image = torch.randint(0, 256, (3, 18, 27), dtype=torch.uint8)
    (a,) = padded.test_step({'inputs': [image], 'data_samples': samples((40, 50))})
    (b,) = model.test_step({'inputs': [image[[2, 1, 0]]], 'data_samples': samples((40, 50))})
    assert padded.forwards == [(1, 3, 20, 28)]
    assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


@pytest.mark.parametrize('step', ['test_step', 'val_step'])
@torch.no_grad()
def test_a_batch_may_hold_images_of_different_sizes(step: str) -> None:
    model = toy(stride=2)
    shapes = [(10, 12), (16, 9), (10, 12), (7, 7)]
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]
    found = getattr(model, step)({'inputs': images, 'data_samples': samples(*shapes)})
    assert [sample.ori_shape for sample in found] == shapes
    assert [shape[0] for shape in model.forwards] == [2, 1, 1]
    for image, shape, sample in zip(images, shapes, found):
        (single,) = model.test_step({'inputs': [image], 'data_samples': samples(shape)})
        assert torch.equal(sample.pred_sem_seg.data, single.pred_sem_seg.data)


@torch.no_grad()
def test_mirrored_inputs_are_mirrored_back() -> None:
    model, image = toy(), torch.randn(1, 3, 9, 11)
    (plain,) = labels_of(model.predict(image, samples((9, 11))))
    for direction, axis in [('horizontal', 3), ('vertical', 2)]:
        meta = {'flip': True, 'flip_direction': direction}
        (back,) = labels_of(model.predict(image.flip(axis), samples((9, 11), **meta)))
        assert torch.equal(plain, back)


@torch.no_grad()
def test_order_of_words_and_new_words() -> None:
    words = ['sky', 'red', 'wall', 'green', 'tree', 'blue']
    model, inputs = toy(words, stride=2), torch.randn(1, 3, 12, 12)
    (before,) = model.inference_scores(inputs, samples((20, 20)))
    (labels,) = labels_of(model.predict(inputs, samples((20, 20))))
    order = torch.randperm(6)
    model.set_vocabulary([words[index] for index in order])
    (permuted,) = labels_of(model.predict(inputs, samples((20, 20))))
    assert torch.equal(order[permuted], labels)
    model.set_vocabulary([*words, 'dog'])
    (more,) = model.inference_scores(inputs, samples((20, 20)))
    assert torch.equal(more.rows(0, 20, slice(0, 6)), before.rows(0, 20))


@torch.no_grad()
def test_one_word_and_ten_thousand() -> None:
    model, inputs = toy(['heart']), torch.randn(1, 3, 6, 6)
    (labels,) = labels_of(model.predict(inputs, samples((7, 7))))
    assert (labels == 0).all()
    model.set_vocabulary(Vocabulary([f'thing {index}' for index in range(10000)]))
    (labels,) = labels_of(model.predict(inputs, samples((7, 7))))
    assert torch.equal(labels, plain_scores(model, inputs, (7, 7)).argmax(1))
    assert labels.max() > 255


@torch.no_grad()
def test_a_word_longer_than_the_text_tower_is_a_class_like_others() -> None:
    long = 'red ' + 'very ' * 400 + 'long'
    model = toy(['green', long])
    inputs = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert (labels_of(model.predict(inputs))[0] == 1).all()


@torch.no_grad()
def test_background_is_the_last_label_and_can_be_left_out() -> None:
    model = toy(['red', 'green'], background=0.5)
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.3, 0.2, 0]]).T.view(1, 3, 1, 3)
    assert labels_of(model.predict(colors))[0].tolist() == [[[0, 1, 2]]]
    assert model.background_index == 2
    model.set_test_cfg({'background': False})
    assert labels_of(model.predict(colors))[0].tolist() == [[[0, 1, 0]]]
    assert model.background_index is None
    assert toy().background_index is None


@torch.no_grad()
def test_encode_decode_and_tensor_mode_give_scores_at_input_size() -> None:
    model, inputs = toy(stride=4), torch.randn(2, 3, 10, 14)
    expected = plain_scores(model, inputs, (10, 14))
    torch.testing.assert_close(model.encode_decode(inputs), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(model(inputs, mode='tensor'), expected, atol=2e-6, rtol=0)


@torch.no_grad()
def test_memory_limits_change_no_label() -> None:
    inputs = torch.randn(2, 3, 20, 31)
    mode = {'mode': 'slide', 'crop_size': 12, 'stride': 8, 'scales': (0.75, 1.0), 'flip': True}
    found = []
    for limits in ({}, {'max_elements': 77}, {'eager_elements': 0}, {'eager_elements': 0, 'max_elements': 9}):
        model = toy(stride=2, field=3, test_cfg={**mode, **limits})
        found.append(labels_of(model.predict(inputs, samples((33, 40), (10, 10)))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_context_of_the_whole_image_and_own_results() -> None:
    """``image_context`` sees groups of unpadded images with their samples; windows get their value."""

    class Contextual(ToySegmentor):
        def image_context(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
            self.seen = [tuple(inputs.shape), [sample.metainfo['mark'] for sample in data_samples]]
            return torch.tensor([[float(sample.metainfo['mark'])] for sample in data_samples])

        def score_maps(self, inputs: Tensor, context: Tensor | None = None) -> ScoreMaps:
            assert context is not None
            scores = torch.zeros(len(inputs), 5, *inputs.shape[2:])
            scores[torch.arange(len(inputs)), context[:, 0].long()] = 1
            return TensorScores(scores)

        def add_to_samples(self, inputs: Tensor, data_samples: Any) -> None:
            for image, sample in zip(inputs, data_samples):
                sample.mean = image.mean()

    model = Contextual('a, b, c, d, e', test_cfg={'mode': 'slide', 'crop_size': 4, 'stride': 3})
    inputs = torch.randn(2, 3, 9, 8)
    batch = [SegDataSample(metainfo={'ori_shape': (9, 8), 'mark': mark}) for mark in (3, 1)]
    found = model.predict(inputs, batch)
    assert model.seen == [(2, 3, 9, 8), [3, 1]]
    assert [label.unique().tolist() for label in labels_of(found)] == [[3], [1]]
    assert found[1].mean == inputs[1].mean()


def test_black_is_what_the_preprocessor_makes_of_it() -> None:
    model = ToySegmentor(data_preprocessor=dict(PREPROCESSOR, mean=[10, 20, 30], std=[5, 4, 3]))
    assert torch.equal(model._black(), torch.tensor([-2.0, -5.0, -10.0]))
    model = ToySegmentor(data_preprocessor={'type': 'mmseg.SegDataPreProcessor'})
    assert model._black() is None


def test_checkpoints_hold_no_words() -> None:
    model = toy()
    model.predict(torch.randn(1, 3, 4, 4))
    assert list(model.state_dict()) == ['weight']


def test_a_misspelled_option_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(TypeError, match='keep_score'):
        toy(test_cfg={'keep_score': True})
    with pytest.raises(TypeError, match='abstract'):
        OpenVocabularySegmentor()  # type: ignore[abstract]


def test_labels_survive_numpy() -> None:
    (sample,) = toy().predict(torch.randn(1, 3, 4, 4))
    assert np.asarray(sample.pred_sem_seg.data).dtype == np.int64


@torch.no_grad()
def test_test_time_augmentation_of_the_host() -> None:
    """mmseg averages probabilities of views; of a pixelwise model a mirrored view adds nothing."""
    from mmseg.models import SegTTAModel

    model = toy(['red', 'green', 'sky'], background=0.1, test_cfg={'keep_scores': True})
    augmented = SegTTAModel(module=model)
    image = torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8)
    views = [image, image.flip(2)]
    meta = {'img_path': 'a.png', 'ori_shape': (18, 22)}
    batch = [
        [SegDataSample(metainfo={**meta, 'flip': flip, 'flip_direction': 'horizontal'})]
        for flip in (False, True)
    ]
    (merged,) = augmented.test_step({'inputs': [[view] for view in views], 'data_samples': batch})
    (single,) = model.test_step({'inputs': [image], 'data_samples': samples((18, 22))})
    assert torch.equal(merged.pred_sem_seg.data.reshape(18, 22), single.pred_sem_seg.data[0])
    assert model.out_channels == 4
