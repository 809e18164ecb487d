"""Recall of class-agnostic proposals, against values worked out by hand."""

from typing import Any

import torch

from ovd.evaluation.proposals import ProposalRecall


def sample(
    proposals: list[list[float]], scores: list[float], boxes: list[list[float]], labels: list[int]
) -> Any:
    return {
        'pred_instances': {
            'bboxes': torch.tensor(proposals).reshape(-1, 4),
            'scores': torch.tensor(scores),
        },
        'gt_instances': {'bboxes': torch.tensor(boxes).reshape(-1, 4), 'labels': torch.tensor(labels).long()},
    }


def evaluate(samples: list[Any], **options: Any) -> dict[str, float]:
    metric = ProposalRecall(proposal_nums=(1, 2), **options)
    metric.dataset_meta = {'classes': ('cat', 'dog'), 'novel_classes': ('dog',)}
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_counts_boxes_found_by_the_best_proposals() -> None:
    near, far = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    found = evaluate([sample([far, near], [0.2, 0.9], [near, far], [0, 1])])
    assert found == {
        'recall/all@1': 0.5,
        'recall/all@2': 1.0,
        'recall/base@1': 1.0,
        'recall/base@2': 1.0,
        'recall/novel@1': 0.0,
        'recall/novel@2': 1.0,
    }


def test_overlap_threshold_decides() -> None:
    half = sample([[0.0, 0.0, 10.0, 5.0]], [1.0], [[0.0, 0.0, 10.0, 10.0]], [0])
    assert evaluate([half])['recall/base@1'] == 1.0
    assert evaluate([half], iou_threshold=0.6)['recall/base@1'] == 0.0


def test_images_without_boxes_or_proposals() -> None:
    assert evaluate([sample([], [], [], [])]) == {}
    missed = evaluate([sample([], [], [[0.0, 0.0, 4.0, 4.0]], [1])])
    assert missed['recall/novel@2'] == 0.0
    assert 'recall/base@1' not in missed


def test_recall_averaged_over_thresholds_says_so_in_the_protocol() -> None:
    metric = ProposalRecall(proposal_nums=(2,), iou_threshold=[0.3, 0.5, 0.7, 0.9])
    metric.dataset_meta = {'classes': ('cat', 'dog'), 'novel_classes': ('dog',), 'split': 'custom'}
    box = [0.0, 0.0, 10.0, 10.0]
    half = [0.0, 0.0, 10.0, 5.0]
    metric.process(None, [sample([half], [1.0], [box], [0]), sample([box], [1.0], [box], [1])])
    assert metric.evaluate(2) == {'recall/all@2': 0.75, 'recall/base@2': 0.5, 'recall/novel@2': 1.0}
    assert metric.report['protocol'] == {
        'evaluator': 'class-agnostic recall',
        'split': 'custom',
        'images': 2,
        'boxes_base': 1,
        'boxes_novel': 1,
        'iou_thresholds': [0.3, 0.5, 0.7, 0.9],
    }
