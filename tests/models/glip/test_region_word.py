"""Contrast between regions and words: values by hand, a plain peer, gradients, two processes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from ovd.models.glip.region_word_loss import (
    Embedded,
    RegionWordContrast,
    contrasted_anchors,
    region_word_loss,
)
from tests.helpers import leave_group

E = math.e


def embedded(vectors: list[list[float]], images: list[int], ids: list[int]) -> Embedded:
    return Embedded(torch.tensor(vectors), torch.tensor(images), torch.tensor(ids))


def two_images(second_region: int, second_word: int = 6) -> tuple[Embedded, Embedded, Tensor]:
    """A region each; two words of the first image and one of the second."""
    regions = embedded([[1.0, 0.0], [0.0, 1.0]], [0, 1], [5, second_region])
    words = embedded([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1], [5, second_word, -1])
    own = torch.tensor([[True, False, False], [False, False, True]])
    return regions, words, own


@pytest.mark.parametrize('second_word', [6, 5], ids=['another class', 'not what the region is called'])
def test_captions_of_other_images_are_negatives(second_word: int) -> None:
    loss = region_word_loss(*two_images(-1, second_word), 2, torch.zeros(1))
    regions = (math.log(E + 2) - 1) + (math.log(1 + 2 * E) - 1)
    words = 2 * (math.log(E + 1) - 1)
    assert loss.item() == pytest.approx((regions + words) / 2, abs=1e-6)


def test_the_same_class_in_another_image_is_positive() -> None:
    loss = region_word_loss(*two_images(5), 2, torch.zeros(1))
    regions = (math.log(E + 2) - 1) + (math.log(1 + 2 * E) - 0.5)
    words = (math.log(E + 1) - 0.5) + (math.log(E + 1) - 1)
    assert loss.item() == pytest.approx((regions + words) / 2, abs=1e-6)


def test_the_scale_divides_as_its_exponential() -> None:
    regions, words, own = two_images(5)
    doubled = regions._replace(vectors=2 * regions.vectors)
    expected = region_word_loss(doubled, words, own, 2, torch.zeros(1))
    loss = region_word_loss(regions, words, own, 2, torch.tensor([-math.log(2)]))
    torch.testing.assert_close(loss, expected)


def plain_loss(contrast: RegionWordContrast, data: dict[str, Tensor]) -> Tensor:
    """The same loss, pair by pair; all anchors with a box take part, and no others."""
    anchors, words, assigned_boxes = data['features'], data['words'], data['assigned_boxes']
    regions = [(b, n) for b, n in (assigned_boxes >= 0).nonzero().tolist()]
    tokens = [(b, t) for b, t in data['word_mask'].nonzero().tolist()]

    def vector(project: nn.Module, features: Tensor) -> Tensor:
        projected = project(features)
        return projected / projected.norm()

    def is_pair(b: int, n: int, image: int, token: int) -> bool:
        called = data['tokens'][b, assigned_boxes[b, n]]
        if b == image:
            return bool(called[token])
        named = {int(data['word_ids'][b, t]) for t in called.nonzero().flatten().tolist()} - {-1}
        return int(data['word_ids'][image, token]) in named

    logits = torch.stack(
        [
            torch.stack(
                [
                    vector(contrast.project_regions, anchors[b, n])
                    @ vector(contrast.project_words, words[image, token])
                    / contrast.log_scale.exp()[0]
                    for image, token in tokens
                ]
            )
            for b, n in regions
        ]
    )
    pairs = torch.tensor([[is_pair(*region, *token) for token in tokens] for region in regions])
    total = torch.zeros(())
    for scores, positives in ((logits, pairs), (logits.T, pairs.T)):
        for row, wanted in zip(scores, positives):
            if wanted.any():
                total = total - (row - row.exp().sum().log())[wanted].mean()
    return total / 2 / len(regions)


def toy_data(images: int = 4, all_anchors_of_first: bool = False) -> dict[str, Tensor]:
    """Places, words and boxes; images 0 and 1 are detection with shared classes, the others captions."""
    generator = torch.Generator().manual_seed(0)
    anchors, length, boxes = 7, 5, 3
    assigned_boxes = torch.randint(-1, boxes, (images, anchors), generator=generator)
    assigned_boxes[:, 0] = 0
    if all_anchors_of_first:
        assigned_boxes[0] = assigned_boxes[0].clamp(min=0)
    word_ids = torch.full((images, length), -1)
    word_ids[0], word_ids[1] = torch.tensor([-1, 3, 3, 8, -1]), torch.tensor([-1, 8, 9, 3, -1])
    tokens = torch.zeros(images, boxes, length, dtype=torch.bool)
    for image in range(images):
        for box in range(boxes):
            tokens[image, box, 1 + (image + box) % 3] = True
    tokens[0, 0, 1:3] = True
    tokens[0, 1] = torch.tensor([False, False, False, True, False])
    tokens[0, 2] = tokens[0, 0]
    word_mask = torch.ones(images, length, dtype=torch.bool)
    word_mask[2, 4] = False
    return {
        'features': torch.randn(images, anchors, 6, generator=generator),
        'words': torch.randn(images, length, 4, generator=generator),
        'word_mask': word_mask,
        'assigned_boxes': assigned_boxes,
        'tokens': tokens,
        'word_ids': word_ids,
    }


def toy_contrast(**changes: Any) -> RegionWordContrast:
    torch.manual_seed(1)
    contrast = RegionWordContrast(6, 4, embed_dim=3, **changes)
    with torch.no_grad():
        contrast.log_scale.fill_(-0.7)
    return contrast


def test_equals_a_plain_implementation_with_gradients() -> None:
    contrast, data = toy_contrast(fill=False), toy_data()
    leaves = [data['features'].requires_grad_(), data['words'].requires_grad_(), *contrast.parameters()]
    ours, peer = contrast(**data), plain_loss(contrast, data)
    torch.testing.assert_close(ours, peer, atol=1e-6, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(peer, leaves)):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_regions_are_limited_and_filled_up() -> None:
    assigned_boxes = torch.tensor([[0, 0, 1, 1, -1, -1], [-1, 2, -1, -1, -1, -1], [-1] * 6])
    images, anchors = contrasted_anchors(assigned_boxes, max_positives=3, fill=False)
    assert images.tolist() == [0, 0, 0, 1]
    assert len(set(anchors[:3].tolist()) & {0, 1, 2, 3}) == 3
    images, anchors = contrasted_anchors(assigned_boxes, max_positives=3, fill=True)
    assert images.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert (assigned_boxes[images, anchors] >= 0).tolist() == [True] * 4 + [False] * 5
    assert len({*anchors[3:6].tolist()}) == 3


def test_weight_scales_and_fillers_are_negatives() -> None:
    data = toy_data(all_anchors_of_first=True)
    plain, filled = toy_contrast(fill=False)(**data), toy_contrast(fill=True)(**data)
    assert filled > plain
    torch.testing.assert_close(toy_contrast(fill=False, weight=0.25)(**data), plain / 4)


@pytest.mark.parametrize('fill', [True, False])
def test_nothing_to_contrast_gives_zero_with_gradients(fill: bool) -> None:
    contrast, data = toy_contrast(fill=fill), toy_data()
    data['assigned_boxes'] = torch.full_like(data['assigned_boxes'], -1)
    loss = contrast(**data)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in contrast.parameters())


class Tower(nn.Module):
    """Features that are trained, before the contrast."""

    def __init__(self, fill: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.features, self.words = nn.Linear(6, 6), nn.Linear(4, 4)
        self.contrast = toy_contrast(fill=fill)

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        changed = {'features': self.features(data['features']), 'words': self.words(data['words'])}
        loss: Tensor = self.contrast(**{**data, **changed})
        return loss


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    results = [share_of_a_step(rank, fill) for fill in (False, True)]
    if rank == 0:
        torch.save(results, f'{folder}/results.pth')
    leave_group()


def share_of_a_step(rank: int, fill: bool) -> tuple[Tensor, list[Tensor | None]]:
    """Mean loss and gradients."""
    tower = nn.parallel.DistributedDataParallel(Tower(fill))
    share = slice(0, 3) if rank == 0 else slice(3, 4)
    loss = tower({key: value[share] for key, value in toy_data(4, True).items()})
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean / 2, [parameter.grad for parameter in tower.parameters()]


def test_two_processes_contrast_as_one(tmp_path: Path) -> None:
    """Loss and gradients, with shares of different size; padding takes all anchors there are."""
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method='spawn')
    for fill, (loss, gradients) in zip(
        (False, True), torch.load(tmp_path / 'results.pth', weights_only=True)
    ):
        tower = Tower(fill)
        alone = tower(toy_data(4, True))
        alone.backward()
        torch.testing.assert_close(loss, alone.detach())
        for joint, parameter in zip(gradients, tower.parameters()):
            torch.testing.assert_close(joint, parameter.grad, atol=1e-6, rtol=1e-4)
