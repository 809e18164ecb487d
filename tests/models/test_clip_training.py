"""The contrastive losses, the trainable CLIP, its data, and its accuracy metric."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from mmengine.config import Config
from torch.nn import functional as F

from ovd.config import load_config
from ovd.datasets.captions.clip_pairs import AnnotatedRegions, ShapePairs, caption_styles
from ovd.encoders.loading import load_clip
from ovd.evaluation.classification import ZeroShotAccuracy
from ovd.layers.contrastive import image_text_loss, uniformity_loss
from ovd.models.clip_pretraining import CLIP
from ovd.shapes.scenes import CaptionedPicture
from ovd.training.runner import build_runner
from tests.helpers import write_coco

ARCHITECTURE = {
    'embed_dim': 16,
    'vision_cfg': {
        'image_size': 32,
        'layers': [1, 1, 1, 1],
        'width': 4,
        'head_width': 32,
        'patch_size': None,
    },
    'text_cfg': {'context_length': 16, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1},
}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def write_architecture(folder: Path) -> str:
    path = folder / 'toy_clip.json'
    path.write_text(json.dumps(ARCHITECTURE))
    return str(path)


def toy_clip(folder: Path, **kwargs: Any) -> CLIP:
    options = {'text': {'vocabulary': ['circle', 'arrow']}, 'pretrained': 'random:0', **kwargs}
    return CLIP(write_architecture(folder), **options)


# --- losses -------------------------------------------------------------------------------------------------


def test_loss_of_different_texts_is_open_clips() -> None:
    images, texts = unit(5, 8, seed=1).requires_grad_(), unit(5, 8, seed=2).requires_grad_()
    scale = torch.tensor(1.3, requires_grad=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    ours = image_text_loss(images, texts, order, scale)
    ours_grads = torch.autograd.grad(ours, (images, texts, scale))
    theirs = open_clip.ClipLoss()(images, texts[order], scale.exp())
    theirs_grads = torch.autograd.grad(theirs, (images, texts, scale))
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(ours_grads, theirs_grads):
        torch.testing.assert_close(a, b)


def test_images_of_one_text_share_its_probability() -> None:
    """Two images of text 0 and one of text 1, all orthogonal to nothing: computed by hand."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.eye(2)
    loss = image_text_loss(images, texts, torch.tensor([0, 0, 1]), torch.tensor(0.0))
    e = math.e
    of_image = -math.log(e / (e + 1))
    of_text = (-math.log(e / (2 * e + 1)) - math.log(e / (e + 2))) / 2
    assert loss.item() == pytest.approx((of_image + of_text) / 2, rel=1e-6)


def test_one_text_for_all_images_costs_only_the_even_spread() -> None:
    images = unit(1, 8).expand(4, 8)
    loss = image_text_loss(images, unit(1, 8, seed=1), torch.zeros(4, dtype=torch.long), torch.tensor(2.0))
    assert loss.item() == pytest.approx(math.log(4) / 2, rel=1e-6)


def test_uniformity_by_hand_and_for_few_vectors() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = math.log((math.exp(-4) + math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity_loss(vectors).item() == pytest.approx(expected, rel=1e-6)
    assert uniformity_loss(torch.eye(2)[:1]).item() == 0
    assert uniformity_loss(torch.zeros(0, 4)).item() == 0


def test_uniformity_pushes_apart() -> None:
    vectors = torch.nn.Parameter(unit(6, 16))
    before = (F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T).triu(1).max().item()
    optimizer = torch.optim.SGD([vectors], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        uniformity_loss(F.normalize(vectors, dim=-1)).backward()
        optimizer.step()
    after = (F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T).triu(1).max().item()
    assert after < before


# --- data ---------------------------------------------------------------------------------------------------


def test_caption_styles() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    star, arrow = ('star', 'red', 'striped'), ('arrow', 'blue', 'plain')
    assert caption_styles(CaptionedPicture(image, (star,))) == ['star', 'red star', 'striped red star']
    assert caption_styles(CaptionedPicture(image, (star, arrow), 'above')) == [
        'star above an arrow',
        'red star above a blue arrow',
        'striped red star above a blue arrow',
    ]
    assert caption_styles(CaptionedPicture(image, ())) == ['empty background'] * 3


def test_shape_pairs_are_drawn_once(tmp_path: Path) -> None:
    pairs = ShapePairs(12, seed=3, size=32, cache_dir=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(pairs) == 12
    assert pairs[0]['inputs'].shape == (3, 32, 32)
    assert pairs[0]['inputs'].dtype == torch.uint8
    assert all(len(pairs[i]['captions']) == 3 for i in range(12))
    again = ShapePairs(12, seed=3, size=32, cache_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    torch.testing.assert_close(again[11]['inputs'], pairs[11]['inputs'])
    other = ShapePairs(12, seed=4, size=32, cache_dir=tmp_path)
    assert not torch.equal(other[0]['inputs'], pairs[0]['inputs'])


def test_annotated_regions_are_crops_with_vocabulary_labels(tmp_path: Path) -> None:
    boxes = [[(1, [4, 4, 20, 10]), (0, [30, 8, 16, 24])], [], [(0, [0, 0, 8, 8])]]
    path = write_coco(tmp_path, ['circle', 'arrow'], boxes)  # type: ignore[arg-type]
    dataset = {
        'type': 'ovd.OpenVocabularyDataset',
        'ann_file': str(path),
        'data_prefix': {'img': str(tmp_path / 'images')},
        'vocabulary': {'names': ['arrow', 'circle'], 'novel': ['circle']},
    }
    regions = AnnotatedRegions(dataset, size=16, crops={'scales': (1.0, 1.5)})
    assert len(regions) == 2  # the picture without boxes is left out
    assert regions[0]['inputs'].shape == (2, 2, 3, 16, 16)
    assert regions[0]['labels'].tolist() == [0, 1]
    assert regions.metainfo['novel_classes'] == ('circle',)


# --- metric -------------------------------------------------------------------------------------------------


def one_hot_sample(labels: list[int], predicted: list[int], first_view: list[int]) -> dict[str, torch.Tensor]:
    columns = [torch.tensor(column) for column in (labels, predicted, first_view)]
    return {
        'labels': columns[0],
        'scores': F.one_hot(columns[1], 3).float(),
        'view_scores': F.one_hot(columns[2], 3).float(),
    }


def test_accuracy_by_hand(tmp_path: Path) -> None:
    metric = ZeroShotAccuracy(out_file=tmp_path / 'metrics.json')
    metric.dataset_meta = {'classes': ('a', 'b', 'c'), 'novel_classes': ('c',)}
    samples = [one_hot_sample([0, 0, 1], [0, 1, 1], [0, 0, 0]), one_hot_sample([2, 2], [2, 0], [2, 2])]
    metric.process(None, samples)
    values = metric.evaluate(2)  # two images, five regions
    assert values['zero_shot/accuracy'] == pytest.approx(3 / 5)
    assert values['zero_shot/accuracy_base'] == pytest.approx(2 / 3)
    assert values['zero_shot/accuracy_novel'] == pytest.approx(1 / 2)
    assert values['zero_shot/accuracy_one_view'] == pytest.approx(4 / 5)
    assert values['zero_shot/accuracy_worst_class'] == pytest.approx(1 / 2)
    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert [row['accuracy'] for row in report['per_class']] == [0.5, 1.0, 0.5]
    assert report['protocol']['classes_competing'] == 3


def test_accuracy_without_novel_classes_or_names(tmp_path: Path) -> None:
    metric = ZeroShotAccuracy()
    metric.dataset_meta = {'classes': ('a', 'b', 'c')}
    metric.process(None, [one_hot_sample([0], [0], [0])])
    assert math.isnan(metric.evaluate(1)['zero_shot/accuracy_novel'])
    assert metric.report['metrics']['accuracy_novel'] is None
    with pytest.raises(ValueError, match="'classes'"):
        metric.dataset_meta = {}


# --- model --------------------------------------------------------------------------------------------------


def test_training_texts_are_those_of_open_clip(tmp_path: Path) -> None:
    """The length cut is exact, and gradients reach both towers and the scale."""
    model = toy_clip(tmp_path)
    texts = ['a photo of an arrow.', 'circle']
    expected = model.clip.encode_text(
        open_clip.tokenizer.SimpleTokenizer(context_length=16)(texts), normalize=True
    )
    torch.testing.assert_close(model.encode_texts(texts), expected)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    losses = model(list(pixels), mode='loss', captions=[['arrow', 'circle', 'arrow', 'red circle']])
    losses['loss_contrastive'].backward()
    without = [
        name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert without == []


def test_equal_captions_become_one_text(tmp_path: Path) -> None:
    model = toy_clip(tmp_path, uniformity_weight=0.5)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    losses = model(list(pixels), mode='loss', captions=[['arrow'] * 3])
    assert losses['loss_uniformity'].item() == 0  # a single text has nothing to be apart from
    assert losses['loss_contrastive'].item() >= math.log(3) / 2


def test_logit_scale_is_bounded(tmp_path: Path) -> None:
    model = toy_clip(tmp_path, max_logit_scale=20.0)
    model.clip.logit_scale.data.fill_(9.0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    losses = model(list(pixels), mode='loss', captions=[['arrow', 'circle']])
    assert losses['scale'].item() == pytest.approx(20.0)


def test_prediction_averages_the_views(tmp_path: Path) -> None:
    model = toy_clip(tmp_path, text={'vocabulary': ['circle', 'arrow'], 'templates': ['a {}', '{}']}).eval()
    crops = torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8)
    empty = torch.zeros(0, 2, 3, 32, 32, dtype=torch.uint8)
    labels = [torch.tensor([0, 1, 1]), torch.zeros(0, dtype=torch.long)]
    with torch.no_grad():
        first, second = model([crops, empty], mode='predict', labels=labels)
        views = model.encode_images(crops.flatten(0, 1)).view(3, 2, -1)
        texts = model.embed_vocabulary()
    scale = model.clip.logit_scale.exp()
    torch.testing.assert_close(first.scores, scale * F.normalize(views.mean(1), dim=-1) @ texts.T)
    torch.testing.assert_close(first.view_scores, scale * views[:, 0] @ texts.T)
    assert second.scores.shape == (0, 2)
    assert texts.shape == (2, 16)


# --- end to end ---------------------------------------------------------------------------------------------


def toy_config(folder: Path, **changes: Any) -> Config:
    """configs/clip_tiny_shapes.py at toy size: a few steps on a few pictures."""
    config = load_config('clip_tiny_shapes')
    config.merge_from_dict(
        {
            'work_dir': str(folder / 'run'),
            'model.model': write_architecture(folder),
            'train_dataloader.batch_size': 8,
            'train_dataloader.dataset': {'count': 16, 'size': 32, 'cache_dir': str(folder / 'pairs')},
            'train_cfg': {'max_iters': 4, 'val_interval': 10},
            **changes,
        }
    )
    boxes = [[(0, [4, 4, 20, 10]), (16, [30, 8, 16, 24])]]
    path = write_coco(folder, ['circle'] + [f'other {i}' for i in range(15)] + ['heart'], boxes)  # type: ignore[arg-type]
    for loader in (config.val_dataloader, config.test_dataloader):
        loader.dataset.size = 32
        loader.dataset.dataset.ann_file = str(path)
        loader.dataset.dataset.data_prefix = {'img': str(folder / 'images')}
    return config


def test_train_export_and_load_again(tmp_path: Path) -> None:
    runner = build_runner(toy_config(tmp_path))
    runner.train()
    exported = load_clip(tmp_path / 'run' / 'clip')
    trained = runner.model.clip.state_dict()
    for name, tensor in exported.model.state_dict().items():
        torch.testing.assert_close(tensor.float(), trained[name].float(), rtol=2e-3, atol=1e-4)
    theirs = open_clip.create_model(f'local-dir:{tmp_path / "run" / "clip"}')
    torch.testing.assert_close(theirs.visual.conv1.weight, exported.model.visual.conv1.weight)

    for checkpoint in ('latest.pth', 'clip/open_clip_model.safetensors'):
        config = toy_config(tmp_path, load_from=str(tmp_path / 'run' / checkpoint))
        for section in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
            config.pop(section)
        for section in ('val_dataloader', 'val_cfg', 'val_evaluator'):
            config.pop(section)
        config.experiment_name = f'test_{Path(checkpoint).stem}'
        metrics = build_runner(config).test()
        assert 0 <= metrics['zero_shot/accuracy'] <= 1


def test_a_tiny_clip_fits_two_words(tmp_path: Path) -> None:
    """Fifty steps on two plain pictures are enough to tell them apart by name."""
    torch.manual_seed(0)
    model = toy_clip(tmp_path).train()
    dark, bright = (
        torch.full((3, 32, 32), 20, dtype=torch.uint8),
        torch.full((3, 32, 32), 230, dtype=torch.uint8),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    captions = [['circle', 'arrow'] * 4]
    pictures = [dark, bright] * 4
    values = []
    for _ in range(50):
        loss = model(pictures, mode='loss', captions=captions)['loss_contrastive']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0] - 0.2
    with torch.no_grad():
        scores = model.encode_images(torch.stack(pictures[:2])) @ model.encode_texts(['circle', 'arrow']).T
    assert scores.argmax(1).tolist() == [0, 1]
