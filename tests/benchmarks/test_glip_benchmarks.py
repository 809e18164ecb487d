"""GLIP's benchmarks: their arithmetic, their refusals, and a measurement of each at toy width."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from ovd.checkpoints.writing import save_tensors
from ovd.cli.console import run_tool
from ovd.encoders.tokens.bert_tokenizer import BertTokenizer
from ovd.inference.predictor import Predictor
from ovd.text.phrases import clean_name
from ovd.text.vocabulary import Vocabulary
from tests.helpers import ROOT, write_coco, write_image
from tests.toys.glip import WORDS, toy_config, toy_glip

pytest.importorskip('transformers')


@pytest.fixture(scope='module', autouse=True)
def _benchmarks() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    yield
    sys.path.remove(str(ROOT / 'benchmarks'))


@pytest.fixture(scope='module')
def peer() -> ModuleType:
    import glip_peer

    return glip_peer


@pytest.fixture(scope='module')
def sensitivity() -> ModuleType:
    import prompt_sensitivity

    return prompt_sensitivity


# --- against mmdet's GLIP -----------------------------------------------------------------------------------


def run(seconds: float, peak: int, sentences: int = 14) -> dict[str, Any]:
    return {
        'seconds': seconds,
        'further': seconds / 4,
        'idle': 100 << 20,
        'peak': peak << 20,
        'sentences': sentences,
    }


def test_figures_are_the_peers_time_over_ours_and_our_memory_over_the_peers(peer: ModuleType) -> None:
    runs = {
        'peer': [run(12, 200, 31), run(20, 220, 31)],
        'ours': [run(3, 190), run(4, 190)],
        'ours40': [run(6, 195, 31), run(5, 195, 31)],
    }
    whole, same, further, memory = peer.figures_of('deep', runs)
    assert whole.case == 'deep, 14 sentences against 31'
    assert (whole.value, whole.verdict) == (4.5, 'ok')
    assert same.value == 3.0
    assert further.value == 4.5
    assert (memory.value, memory.verdict) == (0.95, 'ok')
    assert memory.ours == '190 MiB (90 above idle)'


def test_other_answers_are_not_compared(
    peer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(side: str, scores: list[float], labels: list[int], shift: float = 0.0) -> None:
        boxes = np.arange(4 * len(scores)).reshape(-1, 4) + shift
        np.savez(tmp_path / f'{side}.npz', scores=np.array(scores), labels=np.array(labels), bboxes=boxes)

    write('peer', [0.5, 0.4], [1, 2])
    write('ours40', [0.5, 0.40001], [1, 2], 0.01)
    peer.check_answers(tmp_path)
    assert '2 of 2 boxes are equal' in capsys.readouterr().err
    others: list[tuple[list[float], list[int], float]] = [
        ([0.5, 0.41], [1, 2], 0.0),
        ([0.5, 0.4], [1, 3], 0.0),
        ([0.5, 0.4], [1, 2], 1.0),
        ([0.5], [1], 0.0),
        ([], [], 0.0),
    ]
    for other in others:
        write('ours40', *other)
        with pytest.raises(ValueError, match=r'the peer finds 2 boxes, we \d, of which \d are equal'):
            peer.check_answers(tmp_path)


def test_the_stand_in_for_a_tokenizer_spells_every_name(peer: ModuleType, tmp_path: Path) -> None:
    names = [clean_name(name) for name in [*peer.class_names(1203), 'jalapeño', 'cd-player']]
    assert len(names) == 1205
    peer.write_bert(tmp_path / 'bert', None, names)
    tokenizer = BertTokenizer(tmp_path / 'bert')
    found = tokenizer.count_tokens(names)
    assert 1203 < sum(found) < 4 * 1203
    assert tokenizer.vocab_size == 30522
    unknown = tokenizer.fast.unk_token_id
    assert not any(unknown in tokenizer.encode(name)[0] for name in names)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['depp'], "unknown depth 'depp', expected some of deep, shallow"),
        (['--names', '0'], 'must be at least 1'),
        (['--tokenizer', 'nowhere'], 'the tokenizer folder nowhere has no vocab.txt'),
    ],
)
def test_mistakes_are_named(
    peer: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_tool(peer.main, arguments) == 2
    assert message in capsys.readouterr().err


# --- dependence on order and cuts ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config and checkpoint of a toy GLIP with three annotated images."""
    folder = tmp_path_factory.mktemp('sensitivity')
    boxes = [[(0, [4.0, 4.0, 30.0, 30.0])], [(2, [10.0, 8.0, 20.0, 30.0])], []]
    write_coco(folder, WORDS, boxes)
    save_tensors(folder / 'weights.safetensors', toy_glip(folder / 'bert').state_dict())
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipeline = [
        {'type': 'ovd.LoadImage'},
        {'type': 'mmdet.Resize', 'scale': (64, 48), 'keep_ratio': True},
        {'type': 'mmdet.PackDetInputs', 'meta_keys': keys},
    ]
    dataset = {
        'type': 'ovd.OpenVocabularyDataset',
        'data_root': str(folder),
        'ann_file': 'instances.json',
        'data_prefix': {'img': 'images'},
        'vocabulary': WORDS,
        'pipeline': pipeline,
        'test_mode': True,
    }
    loader = {
        'batch_size': 2,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': dataset,
    }
    whole = {
        'model': toy_config(folder / 'bert', test_cfg={'score_thr': 0.01}),
        'test_dataloader': loader,
        'test_evaluator': {'type': 'ovd.DetectionMetric', 'metric': 'bbox'},
        'default_scope': 'mmdet',
    }
    Config(whole).dump(folder / 'glip.py')
    return folder / 'glip.py', folder / 'weights.safetensors'


def test_orders_and_cuts_are_measured(
    sensitivity: ModuleType, toy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*map(str, toy), '--orders', '1', '--cuts', '1', '2', '--floor', '0.01']
    assert run_tool(sensitivity.main, argv) in (0, None)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith('|')]
    rows = {cells[1]: cells[2:] for cells in ([c.strip() for c in line.split('|')] for line in lines)}
    assert 'bbox/AP' in lines[0]
    assert rows['as configured'][0] == '1'
    assert rows['as configured'][2:4] == ['0.000', '0.000']
    assert rows['1 names in a sentence'][0] == '5'
    assert rows['2 names in a sentence'][0] == '3'
    assert float(rows['random order 1'][3]) > 0
    assert '3 images' in out


def test_labels_return_to_the_order_of_the_vocabulary(
    sensitivity: ModuleType, toy: tuple[Path, Path]
) -> None:
    """Names that stand alone do not know of any order."""
    predictor = Predictor(*toy, device='cpu')
    vocabulary = Vocabulary.parse(WORDS)
    answers = [
        sensitivity.ask(
            predictor.model, predictor.config, vocabulary, sensitivity.Variant('', order, 1), images=2
        )
        for order in ((0, 1, 2, 3, 4), (3, 0, 4, 1, 2))
    ]
    assert answers[0].best.shape == (2, 5)
    np.testing.assert_allclose(answers[0].best, answers[1].best, atol=1e-5)
    assert answers[0].metrics == pytest.approx(answers[1].metrics, abs=1e-4, nan_ok=True)
    assert answers[0].sentences == 5


def test_changes_count_what_either_question_finds(sensitivity: ModuleType) -> None:
    base, other = np.array([[0.5, 0.05, 0.0]]), np.array([[0.4, 0.06, 0.3]])
    assert sensitivity.changes(base, other, 0.1) == pytest.approx((0.2, 0.3))
    assert sensitivity.changes(base * 0, other * 0, 0.1) == (0.0, 0.0)
    answers = sensitivity.Answers(base, {'mAP': 0.5}, 1)
    with pytest.raises(ValueError, match="unknown metric 'AP', expected one of mAP"):
        sensitivity.report([('as configured', answers)], 0.1, 'AP')


def test_other_models_are_refused(
    sensitivity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.toys.predictor import write_toy

    assert run_tool(sensitivity.main, [*map(str, write_toy(tmp_path))]) == 2
    assert 'ToyDetector does not read class names in sentences' in capsys.readouterr().err


def test_captions_are_refused(
    sensitivity: ModuleType, toy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are places in a caption there: no order of names would change them."""
    write_image(tmp_path / 'a.png', 48, 64)
    line = {'filename': 'a.png', 'height': 48, 'width': 64, 'grounding': {'caption': 'a dog', 'regions': []}}
    (tmp_path / 'lines.jsonl').write_text(json.dumps(line))
    data = {
        'type': 'ovd.GroundingDataset',
        'ann_file': str(tmp_path / 'lines.jsonl'),
        'data_prefix': {'img': str(tmp_path)},
    }
    options = [f'test_dataloader.dataset={data}']
    assert run_tool(sensitivity.main, [*map(str, toy), '--cfg-options', *options]) == 2
    assert 'GroundingDataset' in capsys.readouterr().err
