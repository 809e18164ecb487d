"""ClipSegmentor: labels equal plain cosines, depend on image and words alone, background by both rules."""

from typing import Any

import pytest
import torch
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.layers.cosine_scores import CosineScores, background_scores
from ovd.layers.score_maps import argmax_labels, materialize
from ovd.models.training_free.segmentor import ClipSegmentor
from ovd.text.vocabulary import Vocabulary

TINY = 'ovd/assets/clip_tiny_shapes'
WORDS = 'star, heart, ring, fish'


def segmentor(words: Any = WORDS, **options: Any) -> ClipSegmentor:
    tower = options.pop('tower', {'model': TINY, 'windows': {'stride': 16, 'profile': 'triangle'}})
    model = ClipSegmentor(tower, text={'vocabulary': words, 'templates': 'single'}, **options)
    return model.eval()


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labels(model: ClipSegmentor, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    shape = tuple(images.shape[2:]) if size is None else size
    samples = [SegDataSample(metainfo={'ori_shape': shape}) for _ in images]
    return torch.cat([sample.pred_sem_seg.data for sample in model.predict(images, samples)])


@torch.no_grad()
def test_labels_are_the_nearest_words() -> None:
    model = segmentor()
    images = pixels(2, 3, 96, 128)
    maps = model.tower(images)
    scores = torch.einsum('kd,bdhw->bkhw', model.text_embeddings.embeddings, maps)
    expected = F.interpolate(scores, (90, 120), mode='bilinear', align_corners=False).argmax(1)
    assert torch.equal(labels(model, images, (90, 120)), expected)


@torch.no_grad()
def test_neighbours_padding_order_and_chunks_change_nothing() -> None:
    model = segmentor()
    images = pixels(2, 3, 96, 112)
    together = labels(model, images)
    assert torch.equal(labels(model, images[1:]), together[1:])
    padded = F.pad(images, (0, 16, 0, 32))
    meta = {'ori_shape': (96, 112), 'img_padding_size': (0, 16, 0, 32)}
    found = model.predict(padded, [SegDataSample(metainfo=dict(meta)) for _ in padded])
    assert torch.equal(torch.cat([sample.pred_sem_seg.data for sample in found]), together)
    model.set_test_cfg({'max_elements': 97})
    assert torch.equal(labels(model, images), together)
    model.set_vocabulary('fish, star, ring, heart')
    order = torch.tensor([3, 0, 2, 1])  # positions of the new words among the old ones
    assert torch.equal(order[labels(model, images)], together)


@torch.no_grad()
def test_sliding_windows_average_exactly() -> None:
    model = segmentor(
        tower={'model': TINY, 'attention': 'maskclip'},
        test_cfg={'mode': 'slide', 'crop_size': 64, 'stride': 32},
    )
    images = pixels(1, 3, 64, 96)
    model.prepare_text()
    left, right = (materialize(model._pixel_scores(images[..., start : start + 64])) for start in (0, 32))
    total = torch.zeros(1, 4, 64, 96)
    total[..., :64] += left
    total[..., 32:] += right
    total[..., 32:64] /= 2
    assert torch.equal(labels(model, images), total.argmax(1))


def test_background_scores_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).T.reshape(1, 2, 1, 2)
    classes = torch.eye(2)
    scale = 2.0
    found = background_scores(embeddings, classes, scale, threshold=0.7, max_elements=1)
    for column, cosines in enumerate([(1.0, 0.0), (0.6, 0.8)]):
        logits = torch.tensor(cosines) * scale
        expected = torch.logsumexp(logits, 0) + torch.tensor(0.7).log()
        assert float(found[0, 0, 0, column]) == pytest.approx(float(expected), abs=1e-6)
        # Background wins exactly where the best probability misses the threshold.
        assert bool(found[0, 0, 0, column] > logits.max()) == bool(logits.softmax(0).max() < 0.7)
    rivals = torch.tensor([[0.0, 1.0]])
    both = background_scores(embeddings, classes, scale, threshold=0.7, rivals=rivals)
    assert float(both[0, 0, 0, 1]) == pytest.approx(max(1.6, float(found[0, 0, 0, 1])), abs=1e-6)
    with pytest.raises(ValueError, match='threshold'):
        background_scores(embeddings, classes, scale)


def test_rows_and_classes_of_cosine_scores() -> None:
    embeddings, classes = pixels(2, 3, 4, 5), F.normalize(pixels(6, 3), dim=1)
    background = pixels(2, 1, 4, 5)
    scores = CosineScores(embeddings, classes, 10.0, background)
    whole = torch.cat([10 * torch.einsum('kd,bdhw->bkhw', classes, embeddings), background], 1)
    torch.testing.assert_close(materialize(scores), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.rows(1, 3, slice(4, 7)), whole[:, 4:, 1:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.rows(0, 4, slice(6, 7)), background)
    torch.testing.assert_close(scores.images(1, 2).rows(0, 4), whole[1:], atol=1e-5, rtol=1e-5)
    assert torch.equal(argmax_labels(scores), whole.argmax(1))


@torch.no_grad()
def test_background_is_a_class_of_its_own() -> None:
    images = pixels(1, 3, 64, 64)
    everything = segmentor(background={'threshold': 0.999})
    assert everything.background_index == 4
    assert (labels(everything, images) == 4).all()
    everything.set_background(False)
    assert torch.equal(labels(everything, images), labels(segmentor(), images))
    nothing = segmentor(background={'threshold': 1e-6})
    assert (labels(nothing, images) < 4).all()


@torch.no_grad()
def test_background_words_compete() -> None:
    images = pixels(1, 3, 64, 96)
    plain = labels(segmentor('star, heart, ring, fish, tree'), images)
    rival = segmentor('star, heart, ring, fish', background={'names': 'tree, fish'})
    found = labels(rival, images)
    assert torch.equal(found, plain)  # the fifth label is 'tree' there and background here
    assert rival.rivals is not None
    assert len(rival.rivals) == 1  # 'fish' is asked for, so it is no background


def test_vectors_of_other_models_are_refused() -> None:
    model = segmentor()
    vocabulary = Vocabulary(['a'])
    for width, fingerprint, named in ((8, '', '8'), (128, 'f' * 16, 'ffff')):
        vectors = F.normalize(torch.ones(1, width), dim=1)
        with pytest.raises(ValueError, match=named):
            model.set_vocabulary(TextEmbeddings(vectors, vocabulary, (), fingerprint))


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'temperature': 0.0}, 'temperature'),
        ({'background': {}}, 'threshold'),
        ({'background': {'threshold': 1.5}}, '1.5'),
        ({'tower': {'model': TINY, 'attention': 'maskclap'}}, 'maskclap'),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        segmentor(**options)


def test_it_is_not_trained() -> None:
    with pytest.raises(ValueError, match='not trained'):
        segmentor().loss(pixels(1, 3, 64, 64), [])


def test_pixels_are_normalised_as_the_tower_wants() -> None:
    model = segmentor()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    data = {'inputs': [image], 'data_samples': [SegDataSample(metainfo={'img_shape': (64, 64)})]}
    found = model.data_preprocessor(data, False)['inputs'][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.tower.mean, model.tower.std))
    torch.testing.assert_close(found, (image.flip(0) / 255 - mean) / std, atol=1e-5, rtol=1e-5)
