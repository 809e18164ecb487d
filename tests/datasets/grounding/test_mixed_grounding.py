"""Captions, class lists and pseudo labels side by side in one batch, as often as they are weighted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from tests.datasets.grounding.test_flickr_entities import write_entities
from tests.helpers import write_coco, write_image
from tests.toys.glip import toy_glip

pytest.importorskip('transformers')

META = ('img_path', 'img_shape', 'text', 'tokens_positive', 'tokens_ignored', 'phrase_types')
STEPS = [
    {'type': 'ovd.LoadImage'},
    {'type': 'mmdet.LoadAnnotations', 'with_bbox': True},
    {'type': 'mmdet.PackDetInputs', 'meta_keys': META},
]
NAMES = ['dog', 'cat']


def write_sets(folder: Path, tokenizer: Path) -> list[dict[str, Any]]:
    """Flickr30k Entities, pseudo labels, COCO instances with captions, and detection as ODVG."""
    for name in ('flickr', 'pseudo', 'coco', 'detection'):
        (folder / name).mkdir()
    region = {'phrase': 'a dog', 'tokens_positive': [[0, 5]], 'bbox': [[4, 4, 30, 30]], 'score': [0.7]}
    line = {'filename': 'a.png', 'height': 48, 'width': 64}
    labelled = line | {'grounding': {'caption': 'a dog runs', 'regions': [region]}}
    boxed = line | {'detection': {'instances': [{'bbox': [4, 4, 30, 30], 'label': 1, 'category': 'cat'}]}}
    for name, content in (('pseudo', labelled), ('detection', boxed)):
        write_image(folder / name / 'a.png', 48, 64)
        (folder / name / 'lines.jsonl').write_text(3 * (json.dumps(content) + '\n'))
    (folder / 'detection' / 'map.json').write_text(json.dumps(dict(enumerate(NAMES))))
    coco = json.loads(write_coco(folder / 'coco', NAMES, [[(0, [1, 2, 20, 20])]]).read_text())
    coco['annotations'] = [{'id': 1, 'image_id': 1, 'caption': 'a big dog'}]
    (folder / 'coco' / 'captions.json').write_text(json.dumps(coco))
    names = {'type': 'ovd.SampleClassNames', 'vocabulary': NAMES, 'tokenizer': str(tokenizer)}
    return [
        {
            'type': 'ovd.FlickrEntitiesDataset',
            'ann_file': str(write_entities(folder / 'flickr')),
            'data_prefix': {'img': str(folder / 'flickr' / 'images')},
            'pipeline': STEPS,
        },
        {
            'type': 'ovd.GroundingDataset',
            'ann_file': str(folder / 'pseudo' / 'lines.jsonl'),
            'data_prefix': {'img': str(folder / 'pseudo')},
            'min_score': 0.5,
            'pipeline': STEPS,
        },
        {
            'type': 'ovd.CocoGroundingDataset',
            'ann_file': str(folder / 'coco' / 'instances.json'),
            'captions': str(folder / 'coco' / 'captions.json'),
            'data_prefix': {'img': str(folder / 'coco' / 'images')},
            'vocabulary': NAMES,
            'pipeline': STEPS,
        },
        {
            'type': 'ovd.GroundingDataset',
            'ann_file': str(folder / 'detection' / 'lines.jsonl'),
            'data_prefix': {'img': str(folder / 'detection')},
            'label_map': str(folder / 'detection' / 'map.json'),
            'pipeline': [*STEPS[:2], names, STEPS[2]],
        },
    ]


def loader(sets: list[dict[str, Any]], batch_size: int, ratio: list[int]) -> Any:
    init_default_scope('mmdet')
    dataset = {'type': 'ConcatDataset', 'datasets': sets, 'ignore_keys': ['classes']}
    config = {
        'batch_size': batch_size,
        'num_workers': 0,
        'dataset': dataset,
        'sampler': {'type': 'MultiDataSampler', 'dataset_ratio': ratio, 'seed': 0},
        'collate_fn': {'type': 'pseudo_collate'},
    }
    return Runner.build_dataloader(config)


def sources(batch: Any) -> Counter[str]:
    """How many samples each folder gave; the folder of an image is named after its set."""
    known = ('flickr', 'pseudo', 'coco', 'detection')
    return Counter(
        next(part for part in Path(sample.img_path).parts[::-1] if part in known)
        for sample in batch['data_samples']
    )


def test_a_mixed_batch_trains(tmp_path: Path) -> None:
    model = toy_glip(tmp_path / 'bert', text={'encoder': {'model': str(tmp_path / 'bert')}})
    sets = write_sets(tmp_path, tmp_path / 'bert')
    batches = list(loader(sets, 9, [1, 1, 1, 1]))
    assert len(batches) == 1
    (batch,) = batches
    assert len(sources(batch)) >= 3
    texts = {sample.text for sample in batch['data_samples']}
    assert any('dog' in text for text in texts)
    torch.manual_seed(0)
    model.train()
    loss, log = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert log['loss_bbox'] > 0
    for name, parameter in model.bbox_head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_sets_are_drawn_as_they_are_weighted(tmp_path: Path) -> None:
    toy_glip(tmp_path / 'bert')
    sets = write_sets(tmp_path, tmp_path / 'bert')
    counts: Counter[str] = Counter()
    drawn = loader(sets, 3, [0, 3, 1, 0])
    for epoch in range(40):
        drawn.sampler.set_epoch(epoch)
        for batch in drawn:
            counts += sources(batch)
    assert set(counts) == {'pseudo', 'coco'}
    assert 2.2 < counts['pseudo'] / counts['coco'] < 4.2
