"""Recall of phrases: by hand, and the stored sentences of the reference."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ovd.evaluation.phrases import PhraseRecall
from tests.helpers import shared_path


def sample(
    found: list[tuple[int, float, list[float]]], truth: list[tuple[int, list[float]]]
) -> dict[str, Any]:
    return {
        'text': 'a star and a ring',
        'tokens_positive': {0: [[0, 6]], 1: [[11, 17]]},
        'pred_instances': {
            'labels': torch.tensor([label for label, _, _ in found], dtype=torch.long),
            'scores': torch.tensor([score for _, score, _ in found]),
            'bboxes': torch.tensor([box for _, _, box in found]).reshape(-1, 4),
        },
        'gt_instances': {
            'labels': torch.tensor([label for label, _ in truth], dtype=torch.long),
            'bboxes': torch.tensor([box for _, box in truth]).reshape(-1, 4),
        },
    }


LEFT, RIGHT, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def evaluate(samples: list[dict[str, Any]], **options: Any) -> dict[str, float]:
    metric = PhraseRecall(**options)
    metric.dataset_meta = {}
    metric.process(None, samples)
    return metric.evaluate(len(samples))  # type: ignore[no-any-return]


def test_by_hand() -> None:
    found = [(0, 0.2, LEFT), (0, 0.9, FAR), (1, 0.5, LEFT)]
    samples = [sample(found, [(0, LEFT), (1, RIGHT), (1, FAR)]), sample([], [(1, LEFT)])]
    scores = evaluate(samples, ks=(1, 2))
    assert scores['phrase/recall@1'] == 0
    assert scores['phrase/recall@2'] == scores['phrase/recall@all'] == pytest.approx(1 / 3)
    assert scores['phrase/any_object'] == pytest.approx((1 / 3 + 2 / 3 + 1) / 3)


def test_merged_boxes() -> None:
    whole = [0.0, 0.0, 30.0, 10.0]
    samples = [sample([(0, 0.9, LEFT), (0, 0.5, whole)], [(0, LEFT), (0, RIGHT)])]
    assert evaluate(samples, ks=(1,))['phrase/recall@1'] == 1
    merged = evaluate(samples, ks=(1, 2), boxes='merged')
    assert (merged['phrase/recall@1'], merged['phrase/recall@2']) == (0, 1)


def test_novel_phrases() -> None:
    samples = [sample([(0, 0.9, LEFT), (1, 0.9, LEFT)], [(0, LEFT), (1, RIGHT)])]
    scores = evaluate(samples, ks=(1,), vocabulary={'names': ['star', 'ring'], 'novel': ['ring']})
    assert scores['phrase/recall@1/base'] == 1
    assert scores['phrase/recall@1/novel'] == 0
    assert scores['phrase/any_object/novel'] == 0.5


def test_phrases_are_counted_by_type_too() -> None:
    typed = sample([(0, 0.9, LEFT), (1, 0.9, LEFT)], [(0, LEFT), (1, RIGHT)])
    typed['phrase_types'] = {0: 'bodyparts', 1: ['scene', 'other']}
    scores = evaluate([typed], ks=(1,))
    values = {key: value for key, value in scores.items() if 'recall@1' in key}
    assert values == {
        'phrase/recall@1': 0.5,
        'phrase/recall@1/bodyparts': 1,
        'phrase/recall@1/other': 0,
        'phrase/recall@1/scene': 0,
    }


def test_the_report_says_how_it_was_measured(tmp_path: Path) -> None:
    metric = PhraseRecall(boxes='merged', out_file=tmp_path / 'report.json')
    metric.dataset_meta = {'ann_file': 'phrases.jsonl'}
    metric.process(None, [sample([(0, 0.9, LEFT)], [(0, LEFT), (1, RIGHT)])])
    scores = metric.evaluate(1)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert {f'phrase/{key}': value for key, value in report['metrics'].items()} == scores
    expected = {'annotations': 'phrases.jsonl', 'sentences': 1, 'phrases': 2, 'boxes': 'merged'}
    assert expected.items() <= report['protocol'].items()


def test_the_stored_sentences_of_the_reference() -> None:
    content = json.loads(shared_path('goldens/glip/flickr_recall.json').read_text())
    samples = []
    for record in content['records']:
        truth = list(zip(record['phrase_ids'], record['gt_bboxes']))
        found = list(zip(record['pred_labels'], record['pred_scores'], record['pred_bboxes']))
        samples.append(sample(found, truth))
    for boxes, key in (('any', 'any_box'), ('merged', 'merged_boxes')):
        scores = evaluate(samples, boxes=boxes, iou_threshold=content['iou_threshold'])
        for k, expected in content[key].items():
            assert scores[f'phrase/recall@{"all" if k == "-1" else k}'] == pytest.approx(expected)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match='boxes'):
        PhraseRecall(boxes='all')
    with pytest.raises(ValueError, match=r'ks must be positive numbers, got \(0,\)'):
        PhraseRecall(ks=(0,))


def test_without_any_phrase_there_is_no_score() -> None:
    scores = evaluate([sample([(0, 0.9, LEFT)], [])], ks=(1,))
    assert set(scores) == {'phrase/recall@1', 'phrase/recall@all', 'phrase/any_object'}
    assert all(math.isnan(score) for score in scores.values())
