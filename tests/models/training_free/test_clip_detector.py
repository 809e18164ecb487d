"""ClipDetector: crops, words and objectness against plain loops; proposals of every source; bad files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, nms

from ovd.encoders.image_encoder import ImageEncoder
from ovd.models.training_free.detector import ClipDetector, SelectionRules, class_probs
from ovd.models.training_free.regions import segment_boxes
from ovd.regions.crops import CropPolicy, crop_regions
from ovd.regions.store import RegionStoreWriter

TINY = {'model': 'ovd/assets/clip_tiny_shapes'}
WORDS = 'star, heart, ring'
BOXES = [[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 90.0, 60.0], [0.0, 0.0, 96.0, 64.0], [50.0, 20.0, 80.0, 60.0]]
SCORES = [0.9, 0.4, 0.6, 0.3]


def image(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(seed)).float()


def write_results(path: Path, **changes: Any) -> Path:
    """COCO results of two images, 7 and 9."""
    results = [
        {'image_id': number, 'bbox': [x, y, x2 - x, y2 - y], 'score': score, 'category_id': 1}
        for number in (7, 9)
        for (x, y, x2, y2), score in zip(BOXES, SCORES)
    ]
    for result in results:
        result.update(changes)
        for key in [key for key, value in result.items() if value is None]:
            del result[key]
    path.write_text(json.dumps(results))
    return path


def sample(number: Any = 7, **meta: Any) -> DetDataSample:
    return DetDataSample(metainfo={'img_id': number, 'ori_shape': (64, 96), 'img_shape': (64, 96), **meta})


def detector(words: Any = WORDS, **options: Any) -> ClipDetector:
    return ClipDetector(TINY, text={'vocabulary': words, 'templates': 'single'}, **options).eval()


def predict(model: ClipDetector, *pairs: tuple[Tensor, DetDataSample]) -> list[InstanceData]:
    found = model.predict(torch.stack([pixels for pixels, _ in pairs]), [given for _, given in pairs])
    return [given.pred_instances for given in found]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / 'proposals.json')


@torch.no_grad()
def plain_scores(pixels: Tensor, model: ClipDetector, scales: tuple[float, ...]) -> Tensor:
    """One crop after the other through the tower: probabilities [N, K]."""
    encoder = ImageEncoder(**TINY)
    rows = []
    for box in BOXES:
        crops = [
            crop_regions(
                pixels.to(torch.uint8), torch.tensor([box]), 64, CropPolicy(scales=(scale,)), encoder.mean
            )
            for scale in scales
        ]
        vector = torch.stack([encoder.encode(encoder.normalize(crop))[0] for crop in crops]).sum(0)
        cosines = F.normalize(vector, dim=0) @ model.text_embeddings.embeddings.T
        rows.append((cosines / 0.01).softmax(0))
    return torch.stack(rows)


@pytest.mark.parametrize('weight', [0.0, 0.5, 0.2])
def test_scores_equal_a_plain_loop_over_crops(results: Path, weight: float) -> None:
    model = detector(
        proposals={'file': str(results), 'nms': None},
        objectness_weight=weight,
        test_cfg={'nms': None, 'max_per_image': 1000},
    )
    (found,) = predict(model, (image(), sample()))
    probs = plain_scores(image(), model, (1.0, 1.5))
    expected = torch.tensor(SCORES)[:, None] ** weight * probs ** (1 - weight)
    assert len(found) == expected.numel()
    assert bool((found.scores[:-1] >= found.scores[1:]).all())
    for box, label, score in zip(found.bboxes, found.labels, found.scores):
        row = next(i for i, given in enumerate(BOXES) if torch.equal(box, torch.tensor(given)))
        assert float(score) == pytest.approx(float(expected[row, label]), abs=1e-5)


def test_neighbours_in_the_batch_change_nothing(results: Path) -> None:
    model = detector(proposals={'file': str(results)})
    first, second = predict(model, (image(0), sample(7)), (image(1), sample(9)))
    for pixels, given, together in ((image(0), sample(7), first), (image(1), sample(9), second)):
        (alone,) = predict(model, (pixels, given))
        torch.testing.assert_close(alone.scores, together.scores, atol=1e-5, rtol=1e-5)
        assert torch.equal(alone.bboxes, together.bboxes)


def test_the_order_of_words_changes_nothing(results: Path) -> None:
    model = detector(proposals={'file': str(results)})
    (before,) = predict(model, (image(), sample()))
    model.set_vocabulary('ring, star, heart')
    (after,) = predict(model, (image(), sample()))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(after.scores, before.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(order[after.labels], before.labels)


def test_contrast_words_take_probability_away_and_are_never_answers(results: Path) -> None:
    options: dict[str, Any] = {
        'proposals': {'file': str(results)},
        'objectness_weight': 0.0,
        'temperature': 0.5,
    }
    (plain,) = predict(detector(**options), (image(), sample()))
    (found,) = predict(detector(contrast='tree, star', **options), (image(), sample()))
    assert int(found.labels.max()) < 3
    assert found.scores.sum() < plain.scores.sum()
    (same,) = predict(detector(contrast='star', **options), (image(), sample()))
    torch.testing.assert_close(same.scores, plain.scores)


def test_probabilities_by_hand() -> None:
    found = class_probs(torch.tensor([[2.0, 0.0]]), torch.eye(2), 0.5, torch.tensor([[0.0, 1.0]]))
    logits = torch.tensor([2.0, 0.0, 0.0])
    torch.testing.assert_close(found, logits.softmax(0)[None, :2])


def test_suppression_is_per_class_and_keeps_the_best() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.1, 0.05]])
    rows, labels = SelectionRules(score_threshold=0.06).select(boxes, scores)
    assert list(zip(rows.tolist(), labels.tolist())) == [(0, 0), (1, 1), (2, 0)]
    for label in range(2):
        kept = nms(boxes, scores[:, label], 0.5)
        expected = [int(row) for row in kept if scores[row, label] > 0.06]
        assert rows[labels == label].tolist() == expected
    rows, _ = SelectionRules(nms=None, max_per_image=2).select(boxes, scores)
    assert rows.tolist() == [0, 1]


def test_resized_inputs_give_boxes_of_the_original(results: Path) -> None:
    model = detector(proposals={'file': str(results)})
    pixels = F.interpolate(image()[None], (128, 192), mode='nearest')[0]
    (found,) = predict(model, (pixels, sample(img_shape=(128, 192), scale_factor=(2.0, 2.0))))
    assert {tuple(box) for box in found.bboxes.tolist()} <= {tuple(box) for box in BOXES}


def test_masks_come_from_the_proposals(tmp_path: Path) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[10:30, 5:20] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    encoded['counts'] = encoded['counts'].decode()
    file = write_results(tmp_path / 'masks.json', segmentation=encoded)
    (found,) = predict(detector(proposals={'file': str(file)}), (image(), sample()))
    assert found.masks.shape == (len(found), 64, 96)
    assert all(np.array_equal(one.numpy(), mask.astype(bool)) for one in found.masks)


def test_proposals_of_the_samples() -> None:
    given = sample()
    given.proposals = InstanceData(bboxes=torch.tensor(BOXES), scores=torch.tensor(SCORES))
    (found,) = predict(detector(), (image(), given))
    assert len(found)
    with pytest.raises(ValueError, match='no proposals'):
        predict(detector(), (image(), sample()))


def test_segments_are_proposals_with_masks() -> None:
    pytest.importorskip('skimage')
    picture = np.full((60, 80, 3), 200, np.uint8)
    picture[10:40, 20:60] = (200, 30, 30)
    boxes, scores, masks = segment_boxes(picture, scales=(100.0,))
    assert float(box_iou(boxes, torch.tensor([[20.0, 10.0, 60.0, 40.0]])).max()) > 0.8
    assert boxes[0].tolist() == [0.0, 0.0, 80.0, 60.0]
    assert len(scores) == len(masks) == len(boxes)
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
    meta = {'ori_shape': (60, 80), 'img_shape': (60, 80)}
    (found,) = predict(detector(proposals={'segments': {}}), (pixels, sample(None, **meta)))
    assert found.masks.shape[1:] == (60, 80)


def test_a_store_answers_without_the_tower(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {'proposals': {'file': str(results)}, 'objectness_weight': 0.5}
    model = detector(**options)
    (expected,) = predict(model, (image(), sample()))
    tower = model.embedder.tower
    header = {
        'clip_fingerprint': tower.fingerprint,
        'embed_dim': tower.embed_dim,
        'crops': CropPolicy().to_dict(),
        'crops_hash': CropPolicy().hash,
        'proposals': model.source.describe(),
        'max_regions': 4,
    }
    regions = model.source(image().to(torch.uint8), sample(), torch.ones(4))
    (vectors,) = model.embedder.embed([image().to(torch.uint8)], [regions.boxes])
    with RegionStoreWriter(tmp_path / 'store', header) as writer:
        assert writer.pending([7]) == [7]
        writer.add(7, regions.boxes, regions.scores, vectors.half())
        writer.close()
    stored = detector(store=str(tmp_path / 'store'))
    stored.prepare_text()
    monkeypatch.setattr(ImageEncoder, 'encode', lambda *args: pytest.fail('the tower was run'))
    (found,) = predict(stored, (image(), sample()))
    torch.testing.assert_close(found.scores, expected.scores, atol=2e-2, rtol=2e-2)  # stored in float16
    assert torch.equal(found.labels[:3], expected.labels[:3])
    with pytest.raises(ValueError, match='crops_hash'):
        detector(store=str(tmp_path / 'store'), crops={'mode': 'pad_square'})


@pytest.mark.parametrize(
    ('changes', 'number', 'named'),
    [
        ({}, 8, '8'),
        ({'bbox': [10, 10, 200, 20]}, 7, 'another size'),
        ({'score': None}, 7, 'score'),
    ],
)
def test_wrong_proposal_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], number: int, named: str
) -> None:
    file = write_results(tmp_path / 'bad.json', **changes)
    with pytest.raises(ValueError, match=named):
        predict(detector(proposals={'file': str(file)}), (image(), sample(number)))


def test_a_file_without_scores_will_do_without_objectness(tmp_path: Path) -> None:
    file = write_results(tmp_path / 'noscore.json', score=None)
    (found,) = predict(detector(proposals={'file': str(file)}, objectness_weight=0.0), (image(), sample()))
    assert len(found)


def test_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / 'empty.json'
    empty.write_text('[]')
    with pytest.raises(ValueError, match='empty'):
        detector(proposals={'file': str(empty)})
    annotations = tmp_path / 'annotations.json'
    images = [{'id': 1, 'file_name': 'a.jpg', 'height': 64, 'width': 96}]
    annotations.write_text(json.dumps({'images': images, 'annotations': [], 'categories': []}))
    file = write_results(tmp_path / 'other.json')
    with pytest.raises(ValueError, match='any image'):
        detector(proposals={'file': str(file), 'ann_file': str(annotations)})


def test_an_image_without_proposals_has_no_detections(tmp_path: Path, results: Path) -> None:
    annotations = tmp_path / 'annotations.json'
    images = [{'id': n, 'file_name': f'{n}.jpg', 'height': 64, 'width': 96} for n in (7, 8)]
    annotations.write_text(json.dumps({'images': images, 'annotations': [], 'categories': []}))
    model = detector(proposals={'file': str(results), 'ann_file': str(annotations)})
    full, bare = predict(model, (image(), sample(7)), (image(), sample(8)))
    assert len(full)
    assert len(bare) == 0


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'temperature': -1}, '-1'),
        ({'objectness_weight': 1.0}, '1.0'),
        ({'proposals': {'file': 'a.json', 'segments': {}}}, 'file and segments'),
        ({'proposals': {'config': 'a.py'}}, 'a.py'),
        ({'proposals': {'segments': {}, 'top': 0}}, 'top'),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        detector(**options)


def test_options_of_the_image_tower_are_none_of_the_text_encoder() -> None:
    text = {'vocabulary': WORDS, 'templates': 'single'}
    model = ClipDetector({**TINY, 'channels_last': True}, text=text)
    assert model.text_embeddings.encoder_fingerprint == model.embedder.tower.fingerprint


def test_it_is_not_trained() -> None:
    with pytest.raises(ValueError, match='not trained'):
        detector().loss(image()[None], [])
