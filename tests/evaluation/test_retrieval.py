"""Recall at 1 between images and captions: ties, equal captions, batches, and the way through the tools."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch.nn import functional as F

from ovd.evaluation.retrieval import RetrievalMetric, recall_at_1
from tests.cli.test_tools import tool
from tests.toys.captions import caption_of, write_coco_captions


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def plain(images: torch.Tensor, texts: torch.Tensor) -> tuple[float, float]:
    """A second, plain computation for different captions without ties."""
    scores = images @ texts.T
    own = torch.arange(len(images))
    return float((scores.argmax(1) == own).float().mean()), float((scores.argmax(0) == own).float().mean())


def test_hand_computed() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.0, 1.0]])
    # Image 0 finds text 0; images 1 and 2 see texts 1 and 2 score alike. Text 0 finds image 2 (0.96 > 0.8).
    assert recall_at_1(images, texts, ['a', 'b', 'c']) == pytest.approx(((1 + 0.5 + 0) / 3, (0 + 1 + 0) / 3))
    # With one caption for the last two there is one text for both, and image 2 prefers text 0.
    assert recall_at_1(images, texts, ['a', 'b', 'b']) == pytest.approx((2 / 3, (0 + 1) / 2))
    assert recall_at_1(images, texts, [None] * 3) == pytest.approx((0.5, 1 / 3))


@pytest.mark.parametrize('rows', [3, 4096])
def test_equals_a_plain_computation(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr('ovd.evaluation.retrieval._ROWS', rows)
    images = unit(40, 6)
    texts = F.normalize(images + 0.6 * unit(40, 6, seed=1), dim=-1)
    expected = plain(images, texts)
    assert 0.1 < expected[0] < 0.9
    assert recall_at_1(images, texts, [str(i) for i in range(40)]) == pytest.approx(expected)


def test_a_collapsed_model_scores_chance() -> None:
    same = unit(1, 8).expand(50, -1)
    assert recall_at_1(same, same, [None] * 50) == pytest.approx((1 / 50, 1 / 50))


def evaluate(
    images: torch.Tensor, texts: torch.Tensor, captions: list[str], **options: Any
) -> RetrievalMetric:
    metric = RetrievalMetric(**options)
    for start in range(0, len(images), 3):  # the loader's batches do not matter
        samples = []
        for image, text, caption in list(zip(images, texts, captions))[start : start + 3]:
            sample = BaseDataElement(metainfo={'caption': caption})
            sample.set_field(image, 'image_embeddings')
            sample.set_field(text, 'text_embeddings')
            samples.append(sample.to_dict())
        metric.process(None, samples)
    metric.evaluate(len(images))
    return metric


def test_batches_are_neighbours_in_the_data_set(tmp_path: Path) -> None:
    images = unit(11, 4)
    texts = F.normalize(images + 0.7 * unit(11, 4, seed=1), dim=-1)
    captions = [str(i) for i in range(11)]
    metric = evaluate(images, texts, captions, batch_size=4, out_file=tmp_path / 'report.json')
    metrics = metric.report['metrics']
    assert [metrics['image_to_text'], metrics['text_to_image']] == pytest.approx(plain(images, texts))
    parts = [plain(images[start : start + 4], texts[start : start + 4]) for start in (0, 4)]
    expected = torch.tensor(parts).mean(0).tolist()
    found = [metrics['batch_image_to_text'], metrics['batch_text_to_image']]
    assert found == pytest.approx(expected)
    assert metrics['batch_R1'] == pytest.approx(sum(expected) / 2)
    assert metrics['R1'] <= metrics['batch_R1']
    protocol = {'annotations': None, 'images': 11, 'different_captions': 11, 'batch_size': 4, 'batches': 2}
    assert metric.report['protocol'] == protocol
    assert json.loads((tmp_path / 'report.json').read_text())['protocol'] == protocol


def test_a_small_set_is_one_batch() -> None:
    images = unit(5, 4)
    report = evaluate(images, images, ['a', 'a', 'b', 'c', 'd'], batch_size=64).report
    assert report['protocol']['batch_size'] == 5
    assert report['protocol']['different_captions'] == 4
    assert report['metrics']['batch_text_to_image'] == report['metrics']['text_to_image'] == 1
    assert report['metrics']['image_to_text'] == pytest.approx(0.8)  # the second image's text is the first's


def test_wrong_use_is_named() -> None:
    with pytest.raises(KeyError, match='image_embeddings'):
        RetrievalMetric().process(None, [{'text_embeddings': unit(1, 2)[0]}])


CONFIG = """
custom_imports = dict(imports=['tests.toys.captions'])
default_scope = 'mmseg'
model = dict(type='mmengine.ToyMatcher')
train_dataloader = dict(
    batch_size=4, num_workers={workers}, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ovd.CaptionDataset', ann_file={ann_file!r}, data_prefix=dict(img_path={images!r}),
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='ovd.TimmAugment', size=16),
            dict(type='ovd.CaptionPrompts', count=2,
                 nouns=dict(backend='vocabulary', vocabulary=['dog', 'fruit', 'star'])),
            dict(type='ovd.PackCaptions')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=6)
val_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.CaptionDataset', ann_file={ann_file!r}, data_prefix=dict(img_path={images!r}),
        pipeline=[
            dict(type='ovd.LoadImage'),
            dict(type='ovd.CaptionPrompts', count=0),
            dict(type='ovd.PackCaptions')],
        test_mode=True))
val_cfg = dict()
val_evaluator = dict(type='ovd.RetrievalMetric', batch_size=4)
test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3))
log_processor = dict(by_epoch=False)
randomness = dict(seed=3)
"""


def test_caption_files_train_and_are_evaluated_through_the_tools(tmp_path: Path) -> None:
    ann_file = str(write_coco_captions(tmp_path, [[caption_of(i), 'a dog'] for i in range(9)]))
    config = tmp_path / 'captions.py'
    for workers in (0, 2):
        config.write_text(CONFIG.format(ann_file=ann_file, images=str(tmp_path / 'images'), workers=workers))
        run = tmp_path / f'run{workers}'
        assert tool('train', config, '--work-dir', run) == 0
        assert tool('test', config, run / 'latest.pth', '--out', run / 'metrics.json') == 0
    reports = [json.loads((tmp_path / f'run{workers}' / 'metrics.json').read_text()) for workers in (0, 2)]
    assert reports[0]['metrics'] == reports[1]['metrics']
    assert 0 <= reports[0]['metrics']['retrieval/batch_R1'] <= 1
    assert reports[0]['protocol']['images'] == 9
    assert reports[0]['protocol']['annotations'] == ann_file
