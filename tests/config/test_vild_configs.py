"""Every ViLD config is read, says what it is, and its model trains a step and predicts at toy width."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from ovd.caching.clip_regions import read_cache_images
from ovd.config import check_needs, load_config
from ovd.config.collection import collection, find_config
from ovd.encoders.text_embeddings import TextEmbeddings
from ovd.registry import MODELS, TRANSFORMS
from ovd.text.vocabulary import Vocabulary
from tests.toys.vild import batch

VILD = sorted(name for name in collection() if name.startswith('vild_'))
RPN = sorted(name for name in collection() if name.startswith('rpn_'))
NORM = {'type': 'GN', 'num_groups': 4}


def read(name: str) -> Config:
    init_default_scope('mmdet')
    return load_config(name)


def slim(model: ConfigDict) -> ConfigDict:
    """The same wiring with thin layers; every option of the config stays."""
    model.backbone.pop('norm_cfg', None)
    model.backbone.update(depth=18, base_channels=8, stem_channels=8, norm_cfg=NORM, frozen_stages=-1)
    model.backbone.init_cfg = None
    model.backbone.style = 'pytorch'
    outputs = model.backbone.get('out_indices', (0, 1, 2, 3))
    model.neck.update(in_channels=[8 * 2**stage for stage in outputs], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    if 'roi_head' in model:
        head = model.roi_head
        for extractor in (head.bbox_roi_extractor, head.mask_roi_extractor):
            extractor.out_channels = 16
        head.bbox_head.update(in_channels=16, embed_dim=8)
        head.bbox_head.trunk.update(conv_channels=16, fc_channels=32)
        head.mask_head.update(in_channels=16, conv_out_channels=16)
    return model


def set_words(model: Any, vocabulary: Vocabulary) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(len(vocabulary), 8), dim=-1)
    model.set_vocabulary(TextEmbeddings(vectors, vocabulary, (), ''))


@pytest.mark.parametrize('name', VILD)
def test_model_trains_a_step_and_predicts(name: str) -> None:
    config = read(name)
    vocabulary = Vocabulary.parse(config.model.text.vocabulary)
    assert Vocabulary.parse(config.test_dataloader.dataset.vocabulary) == vocabulary
    config.model.pop('text')
    config.model.pop('clip_ensemble', None)
    model = MODELS.build(slim(config.model))
    set_words(model, vocabulary)
    data = batch(2)
    base = vocabulary.is_novel.index(False)
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = base
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert ('loss_distill' in losses) == (not name.startswith('vild_text'))
    assert model.roi_head.bbox_head.classifier.project.weight.grad.any()
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch(1), False), mode='predict')
    assert 'masks' in found[0].pred_instances
    assert len(found[0].pred_instances) <= model.test_cfg.rcnn.max_per_img


@pytest.mark.parametrize('name', RPN)
def test_proposal_network_trains_a_step_and_predicts(name: str) -> None:
    model = MODELS.build(slim(read(name).model))
    losses = model(**model.data_preprocessor(batch(2), True), mode='loss')
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch(1), False), mode='predict')
    assert 'scores' in found[0].pred_instances


@pytest.mark.parametrize('name', VILD)
def test_training_data_match_the_variant(name: str) -> None:
    config = read(name)
    dataset = config.train_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    kinds = [step['type'] for step in dataset.pipeline]
    assert ('ovd.LoadRegionEmbeddings' in kinds) == (config.model.roi_head.bbox_head.mode != 'vild_text')
    if 'ovd.LoadRegionEmbeddings' in kinds:
        load = TRANSFORMS.build(dataset.pipeline[kinds.index('ovd.LoadRegionEmbeddings')])
        assert load.store == config.region_cache.store
        assert kinds.index('RandomFlip') < kinds.index('ovd.LoadRegionEmbeddings') < kinds.index(kinds[-1])
    assert config.region_cache.image_encoder.model == config.model.text.encoder.model


@pytest.mark.parametrize('name', [*VILD, *RPN])
def test_missing_data_are_named_with_the_remedy(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    config = read(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'data/.*(make_shapes|see data/README.md)'):
        check_needs(config)


@pytest.mark.parametrize('name', [*VILD, *RPN])
def test_header_says_how_to_run_it(name: str) -> None:
    header = find_config(name).read_text().split('"""')[1]
    assert f'configs/{name}.py' in header
    assert 'python tools/' in header or 'torchrun' in header


@pytest.mark.parametrize('name', [name for name in [*VILD, *RPN] if name.endswith(('lvis', 'tf', 'detpro'))])
def test_lvis_configs_find_their_images_where_coco_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of data/README.md: annotations in data/lvis_v1, pictures in data/coco."""
    config = read(name)
    monkeypatch.chdir(tmp_path)
    vocabulary = Vocabulary.parse('lvis')
    content = {
        'images': [{'id': 9, 'height': 40, 'width': 50, 'coco_url': 'http://a/train2017/000000000009.jpg'}],
        'annotations': [
            {
                'id': 1,
                'image_id': 9,
                'category_id': 1,
                'bbox': [1, 2, 20, 30],
                'area': 600,
                'segmentation': [[1, 2, 21, 2, 21, 32, 1, 32]],
            }
        ],
        'categories': [
            {'id': index + 1, 'name': word, 'frequency': 'r' if vocabulary.is_novel[index] else 'f'}
            for index, word in enumerate(vocabulary.names)
        ],
    }
    Path('data/lvis_v1/annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        Path(f'data/lvis_v1/annotations/lvis_v1_{split}.json').write_text(json.dumps(content))
    picture = Path('data/coco/train2017/000000000009.jpg')
    picture.parent.mkdir(parents=True)
    picture.touch()
    for loader in (config.train_dataloader, config.test_dataloader):
        dataset = DATASETS.build(loader.dataset)
        assert Path(dataset.get_data_info(0)['img_path']) == picture
        assert len(dataset.metainfo['novel_classes']) == 337
    if config.get('region_cache'):
        assert [image.path for image in read_cache_images(config.region_cache.dataset)[0]] == [picture]
