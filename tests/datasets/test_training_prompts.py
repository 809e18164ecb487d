"""Training prompts from the data loader: contents, kept boxes, the losses of prompts built in the step."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes

from ovd.datasets.grounding.transforms import BuildPrompt
from tests.toys.bert import write_bert
from tests.toys.glip import images, toy_glip

pytest.importorskip('transformers')

KEYS = ('text', 'tokens_positive', 'tokens_ignored', 'prompt', 'img_shape', 'ori_shape', 'scale_factor')
CAPTION = 'a red star above a big ring'
SPANS = {3: [[2, 10]], 5: [[17, 27]]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp('prompts') / 'bert')


def results(text: Any, labels: list[int], ignored: list[int] | None = None, **extra: Any) -> dict[str, Any]:
    boxes = torch.tensor([[8.0 + 8 * row, 8, 40 + 8 * row, 40] for row in range(len(labels))]).reshape(-1, 4)
    return {
        'img': np.zeros((64, 96, 3), dtype=np.uint8),
        'img_shape': (64, 96),
        'ori_shape': (64, 96),
        'scale_factor': (1.0, 1.0),
        'text': text,
        'gt_bboxes': HorizontalBoxes(boxes),
        'gt_bboxes_labels': np.array(labels, dtype=np.int64),
        'gt_ignore_flags': np.array(ignored or [0] * len(labels), dtype=bool),
        **extra,
    }


def packed(transform: BuildPrompt, found: dict[str, Any]) -> DetDataSample:
    sample: DetDataSample = PackDetInputs(meta_keys=KEYS).transform(transform.transform(found))[
        'data_samples'
    ]
    return sample


def test_a_caption_with_its_boxes(folder: Path) -> None:
    transform = BuildPrompt({'model': folder})
    found = results(CAPTION, [5, 3, 3], [0, 1, 0], tokens_positive=SPANS, tokens_ignored=[[11, 16]])
    sample = packed(transform, found)
    ready = sample.prompt
    assert ready.prompt.labels == (3, 5, -1)
    words = [CAPTION[slice(*span)] for span in ready.prompt.offsets[1:-2]]
    assert words == CAPTION.split()
    # Packing puts the second box, which is ignored, elsewhere.
    assert [np.flatnonzero(row).tolist() for row in ready.positive_map] == [[5, 6, 7], [2, 3]]
    assert len(sample.gt_instances) == 2
    assert np.flatnonzero(~ready.counted).tolist() == [4]
    assert copy.deepcopy(ready) is ready
    moved = pickle.loads(pickle.dumps(sample)).prompt
    assert (moved.prompt, moved.tokenizer) == (ready.prompt, ready.tokenizer)
    assert moved.prompt.offsets == ready.prompt.offsets


def test_boxes_of_other_windows_are_left_out(folder: Path) -> None:
    transform = BuildPrompt({'model': folder})
    far = 'a dog and ' * 140
    spans = {0: [[0, 5]], 1: [[len(far), len(far) + 6]]}
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        sample = packed(transform, results(far + 'a ring', [1, 0, 1, 0], [0, 0, 0, 1], tokens_positive=spans))
        (label,) = sample.prompt.prompt.labels
        seen.add(label)
        assert sample.gt_instances.labels.tolist() == ([0] if label == 0 else [1, 1])
        assert len(sample.ignored_instances) == 1
        assert len(sample.prompt.positive_map) == len(sample.gt_instances)
    assert seen == {0, 1}


def test_other_samples_pass_unchanged(folder: Path) -> None:
    assert 'prompt' not in BuildPrompt({'model': folder}).transform(results(None, [0]))
    assert 'prompt' not in BuildPrompt().transform(results(CAPTION, [3], tokens_positive=SPANS))
    with pytest.raises(ValueError, match='label 4'):
        BuildPrompt({'model': folder}).transform(results(CAPTION, [4], tokens_positive=SPANS))
    with pytest.raises(ValueError, match='SampleClassNames'):
        BuildPrompt({'model': folder}).transform(results([f'class {number}' for number in range(300)], [0]))


@pytest.mark.parametrize('question', ['caption', 'names'])
def test_losses_are_those_of_prompts_built_in_the_step(folder: Path, question: str) -> None:
    extra: dict[str, Any] = {'tokens_positive': SPANS} if question == 'caption' else {}
    text, labels = (CAPTION, [3, 5]) if question == 'caption' else (('dog', 'red star'), [1, 0])
    model = toy_glip(folder)  # without dropout
    losses = []
    for transform in (BuildPrompt(), BuildPrompt({'model': folder})):
        torch.manual_seed(0)
        samples = [packed(transform, results(text, labels, **extra))] * 2
        inputs = {'inputs': images([(64, 96)] * 2), 'data_samples': samples}
        losses.append(model(**model.data_preprocessor(inputs, True), mode='loss'))
    assert losses[0] == losses[1]


def test_prompts_that_do_not_fit_the_model_are_refused(folder: Path) -> None:
    model = toy_glip(folder)
    for options in ({'max_tokens': 64}, {}):
        sample = packed(
            BuildPrompt({'model': folder, **options}), results(CAPTION, [3, 5], tokens_positive=SPANS)
        )
        if not options:
            sample.gt_instances = sample.gt_instances[:1]
        inputs = {'inputs': images([(64, 96)]), 'data_samples': [sample]}
        with pytest.raises(ValueError, match='BuildPrompt'):
            model(**model.data_preprocessor(inputs, True), mode='loss')
