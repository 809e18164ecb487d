"""Pseudo labels: what becomes one, what is read back, and the same bytes after kills and by ranks."""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.utils import register_all_modules

from ovd.config import load_config
from ovd.datasets.grounding.dataset import GroundingDataset
from ovd.inference.predictor import Predictor
from ovd.pseudo_labels.labelling import PseudoLabelling
from ovd.pseudo_labels.selection import CaptionTask, Selection, label_image, select
from ovd.text.nouns import Noun, NounExtractor
from tests.helpers import ROOT, write_image
from tests.toys.glip import toy_config, toy_glip
from tests.toys.predictor import write_toy
from tests.toys.regions import contents, run_tool

pytest.importorskip('transformers')

EVENTS = 3 + 2 * (1 + 2 + 2)  # images; header, parts, labels and manifest, before and after they are there
CAPTIONS = ['a red star above a ring', 'a big dog  and a cart\n', 'nothing here']
PIPELINE = [
    {'type': 'ovd.LoadImage'},
    {'type': 'mmdet.Resize', 'scale': (96, 96), 'keep_ratio': True},
    {
        'type': 'mmdet.PackDetInputs',
        'meta_keys': ('img_path', 'ori_shape', 'img_shape', 'scale_factor', 'text', 'tokens_positive'),
    },
]


def write_task(folder: Path, num_images: int = 7, **changes: Any) -> dict[str, Any]:
    """A teacher with random weights, images with captions, and the section that joins them."""
    model = toy_glip(folder / 'bert', test_cfg={'score_thr': 0.01, 'max_per_img': 12})
    torch.save(model.state_dict(), folder / 'teacher.pth')
    config = toy_config(folder / 'bert', test_cfg={'score_thr': 0.01, 'max_per_img': 12})
    lines = [f'model = {config!r}', f'test_dataloader = dict(dataset=dict(pipeline={PIPELINE!r}))']
    (folder / 'teacher.py').write_text('\n'.join([*lines, "default_scope = 'mmdet'"]))
    images = [
        {'id': index, 'file_name': f'{index}.png', 'height': 48 + 16 * (index % 2), 'width': 64}
        for index in range(num_images)
    ]
    for image in images:
        write_image(folder / 'images' / image['file_name'], image['height'], image['width'], image['id'])
    annotations = [
        {'id': 3 * image['id'] + place, 'image_id': image['id'], 'caption': caption}
        for image in images
        for place, caption in enumerate(CAPTIONS)
    ]
    (folder / 'captions.json').write_text(json.dumps({'images': images, 'annotations': annotations}))
    return {
        'out': str(folder / 'out' / 'pseudo.jsonl'),
        'teacher': {'config': str(folder / 'teacher.py'), 'checkpoint': str(folder / 'teacher.pth')},
        'captions': {
            'type': 'ovd.CaptionDataset',
            'ann_file': str(folder / 'captions.json'),
            'data_prefix': {'img_path': str(folder / 'images')},
        },
        'nouns': {'backend': 'vocabulary', 'vocabulary': ['star', 'ring', 'dog', 'cart'], 'phrases': True},
        'score_thr': 0.05,
        'images_per_part': 2,
        **changes,
    }


def label(section: dict[str, Any], ranks: int = 1, **options: Any) -> Any:
    """Run the ranks one after the other in this process; the last one's manifest."""
    manifest = None
    for rank in range(ranks):
        labelling = PseudoLabelling(section, 'cpu', options.get('limit'))
        manifest = labelling.run(labelling.start(rank, ranks), workers=options.get('workers', 0))
    return manifest


def read_lines(section: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(section['out']).read_text().splitlines()]


@pytest.fixture(scope='module')
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A task and what an undisturbed run writes."""
    register_all_modules(init_default_scope=True)
    torch.set_num_threads(1)
    section = write_task(tmp_path_factory.mktemp('task'))
    label(section)
    return section, contents(Path(section['out']).parent)


def elsewhere(reference: Any, folder: Path) -> dict[str, Any]:
    return {**reference[0], 'out': str(folder / 'out' / 'pseudo.jsonl')}


def test_lines_hold_what_the_teacher_finds(reference: Any) -> None:
    section, _ = reference
    lines = read_lines(section)
    assert len(lines) == 14, 'the caption without a noun is left out'
    predictor = Predictor(section['teacher']['config'], section['teacher']['checkpoint'], 'cpu')
    inputs, sample = predictor.prepare(str(Path(section['captions']['data_prefix']['img_path']) / '1.png'))
    line = next(line for line in lines if line['filename'] == '1.png')
    assert (line['height'], line['width']) == (64, 64)
    assert line['grounding']['caption'] == CAPTIONS[0]
    sample.set_metainfo({'text': CAPTIONS[0], 'tokens_positive': {0: [[2, 10]], 1: [[19, 23]]}})
    with torch.no_grad():
        (found,) = predictor.model.predict(inputs, [sample])
    for place, region in enumerate(line['grounding']['regions']):
        assert region['phrase'] == ('red star', 'ring')[place]
        own = found.pred_instances[found.pred_instances.labels == place]
        own = own[own.scores >= 0.05]
        assert len(own) > 0
        assert torch.allclose(torch.tensor(region['bbox']), own.bboxes, atol=0.006)
        assert torch.allclose(torch.tensor(region['score']), own.scores, atol=6e-5)


def test_captions_are_tidied_and_positions_fit(reference: Any) -> None:
    section, _ = reference
    for line in read_lines(section):
        for region in line['grounding']['regions']:
            ((start, end),) = region['tokens_positive']
            assert line['grounding']['caption'][start:end] == region['phrase']
    assert {line['grounding']['caption'] for line in read_lines(section)} == {
        CAPTIONS[0],
        'a big dog and a cart',
    }


def test_the_student_reads_the_lines(reference: Any) -> None:
    section, _ = reference
    folder = section['captions']['data_prefix']['img_path']
    dataset = GroundingDataset(ann_file=section['out'], data_prefix={'img': folder})
    boxes = sum(len(info['instances']) for info in dataset)
    manifest = json.loads(Path(section['out']).with_suffix('.manifest.json').read_text())
    assert boxes == manifest['counts']['pseudo_boxes'] > 0
    assert len(dataset) == manifest['counts']['lines'] == 14
    strict = GroundingDataset(ann_file=section['out'], data_prefix={'img': folder}, min_score=0.2)
    assert 0 < sum(len(info['instances']) for info in strict) < boxes


def test_provenance_is_written(reference: Any) -> None:
    section, _ = reference
    manifest = json.loads(Path(section['out']).with_suffix('.manifest.json').read_text())
    settings = manifest['settings']
    assert len(settings['weights_sha256']) == len(settings['teacher_sha256']) == len(manifest['sha256']) == 64
    assert settings['selection'] == {'score_thr': 0.05, 'max_boxes': None, 'phrase_nms': None}
    assert settings['nouns'] == section['nouns']
    assert settings['images'] == 7
    assert manifest['made_with']['code_version']
    assert manifest['made_with']['config'] == section['teacher']['config']
    assert not Path(section['out'] + '.parts').exists()


def test_one_image_with_several_captions_costs_its_features_once(reference: Any) -> None:
    section, _ = reference
    predictor = Predictor(section['teacher']['config'], section['teacher']['checkpoint'], 'cpu')
    inputs, sample = predictor.prepare(str(Path(section['captions']['data_prefix']['img_path']) / '0.png'))
    tasks = [
        CaptionTask('a red star', (), ([[2, 10]],)),
        CaptionTask('a dog and a ring', (), ([[2, 5]], [[12, 16]])),
    ]
    calls = []
    predictor.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    together = label_image(predictor.model, inputs, sample, tasks, Selection(0.2))
    assert len(calls) == 1
    for task, line in zip(tasks, together):
        (alone,) = label_image(predictor.model, inputs, sample, [task], Selection(0.2))
        assert [r['phrase'] for r in alone['regions']] == [r['phrase'] for r in line['regions']]
        for one, other in zip(alone['regions'], line['regions']):
            assert torch.allclose(torch.tensor(one['bbox']), torch.tensor(other['bbox']), atol=0.02)


def test_noun_phrases_are_asked_for_unless_words_are_wanted(reference: Any, tmp_path: Path) -> None:
    nouns = {'backend': 'vocabulary', 'vocabulary': ['star', 'ring']}
    phrases = {}
    for name, changes in (('default', {}), ('words', {'phrases': False})):
        section = elsewhere(reference, tmp_path / name) | {'nouns': {**nouns, **changes}}
        label(section, limit=1)
        phrases[name] = read_lines(section)[0]['grounding']['regions'][0]['phrase']
    assert phrases == {'default': 'red star', 'words': 'star'}


def test_all_captions_are_read_unless_the_first_is_wanted(reference: Any, tmp_path: Path) -> None:
    section = elsewhere(reference, tmp_path)
    section['captions'] = {**section['captions'], 'captions': 'first'}
    label(section, limit=2)
    assert {line['grounding']['caption'] for line in read_lines(section)} == {CAPTIONS[0]}


def test_a_teacher_of_class_lists_is_refused(reference: Any, tmp_path: Path) -> None:
    config, checkpoint = write_toy(tmp_path)
    teacher = {'config': str(config), 'checkpoint': str(checkpoint)}
    with pytest.raises(ValueError, match=r'pseudo_labels\.teacher.*ToyDetector'):
        PseudoLabelling({**reference[0], 'teacher': teacher}, 'cpu')


def test_a_broken_image_ends_the_job_unless_it_is_dropped(reference: Any, tmp_path: Path) -> None:
    images = tmp_path / 'images'
    shutil.copytree(reference[0]['captions']['data_prefix']['img_path'], images)
    (images / '1.png').write_bytes(b'no image')
    captions = {**reference[0]['captions'], 'data_prefix': {'img_path': str(images)}}
    section = elsewhere(reference, tmp_path) | {'captions': captions, 'images_per_part': 1}
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"1\.png.*\(pseudo_labels\.broken_images='drop'"):
            label(section, limit=3, workers=workers)
    assert len(list((tmp_path / 'out').rglob('part-*'))) == 1, 'what was done before it is kept'
    manifest = label(section | {'broken_images': 'drop'}, limit=3)
    assert (manifest['counts']['lines'], manifest['counts']['broken_images']) == (4, 1)
    assert {line['filename'] for line in read_lines(section)} == {'0.png', '2.png'}
    with pytest.raises(ValueError, match=r"broken_images.*'skip'"):
        PseudoLabelling(section | {'broken_images': 'skip'}, 'cpu')


def test_phrases_that_the_teacher_cannot_read_do_not_end_the_job(
    reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joiner of emojis has no tokens; a list of keywords is longer than the text encoder reads."""
    longest = ' '.join(['star'] * 300)
    caption = f'a red star \u200d {longest}'
    nouns = [Noun('red star', 2, 10), Noun('\u200d', 11, 12), Noun(longest, 13, len(caption))]
    monkeypatch.setattr(NounExtractor, 'extract', lambda self, text: nouns)
    path = tmp_path / 'captions.jsonl'
    path.write_text(json.dumps({'image': '0.png', 'caption': caption}))
    section = elsewhere(reference, tmp_path)
    section['captions'] = {**section['captions'], 'ann_file': str(path)}
    label(section)
    (line,) = read_lines(section)
    assert [region['phrase'] for region in line['grounding']['regions']] == ['red star']


def test_a_second_round_keeps_the_scores_of_the_first(reference: Any, tmp_path: Path) -> None:
    """What the first teacher found does not become true."""
    captions = {
        'type': 'ovd.GroundingDataset',
        'ann_file': reference[0]['out'],
        'data_prefix': {'img': reference[0]['captions']['data_prefix']['img_path']},
    }
    section = elsewhere(reference, tmp_path) | {'captions': captions}
    counts = label(section)['counts']
    assert counts['true_boxes'] == 0
    assert counts['pseudo_boxes'] > 0
    first, second = (read_lines(each)[0]['grounding']['regions'][0] for each in (reference[0], section))
    assert first == second


STAR, RING = [[2, 6]], [[9, 13]]
BOXES = torch.tensor(
    [[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, 70]], dtype=torch.float32
)
SCORES = torch.tensor([0.6, 0.9, 0.7, 0.5, 0.3])
LABELS = torch.tensor([0, 1, 0, 0, 1])


def chosen(task: CaptionTask, **options: Any) -> list[tuple[int, int]]:
    """(phrase, number of the box) of what becomes a label."""
    found = select(task, BOXES, SCORES, LABELS, Selection(**options))
    return [(place, BOXES.tolist().index(box)) for place, box, _ in found]


def test_what_becomes_a_label() -> None:
    task = CaptionTask('a star, a ring', (), (STAR, [[10, 14]]))
    assert chosen(task) == [(1, 1), (0, 2), (0, 0), (0, 3)]
    assert chosen(task, score_thr=0.65) == [(1, 1), (0, 2)]
    assert chosen(task, score_thr=0.2, max_boxes=1) == [(1, 1), (0, 2)]
    assert chosen(task, phrase_nms=0.5) == [(1, 1), (0, 2), (0, 3)], 'the first box is 90 % the better ring'
    assert select(task, BOXES, SCORES, LABELS, Selection())[0] == (1, [0.0, 0.0, 10.0, 9.0], 0.9)


def test_true_boxes_stand_in_the_way_of_other_words() -> None:
    known = {'phrase': 'a ring', 'tokens_positive': [[8, 14]], 'bbox': [[20, 20, 30, 31]]}
    task = CaptionTask('a star, a ring', (known,), (STAR,))
    stars = LABELS == 0
    found = select(task, BOXES[stars], SCORES[stars], LABELS[stars], Selection(phrase_nms=0.5))
    assert [score for _, _, score in found] == [0.6, 0.5]
    same = CaptionTask('a star, a Star', (), (STAR, [[10, 14]]))
    assert (0, 0) in chosen(same, phrase_nms=0.5), 'equal words may share a box'


@pytest.mark.parametrize(
    'options', [{'score_thr': 1.5}, {'max_boxes': 0}, {'phrase_nms': 0.0}, {'phrase_nms': 2.0}]
)
def test_bad_thresholds_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=rf'{name}.*{options[name]}'):
        Selection(**options)


def write_phrases(folder: Path, images: str) -> dict[str, Any]:
    """Captions whose stars have boxes, and whose rings are novel."""
    regions = [
        {'phrase': 'a star', 'tokens_positive': [[0, 6]], 'bbox': [[4.0, 4.0, 20.0, 20.0]]},
        {'phrase': 'a ring', 'tokens_positive': [[11, 17]], 'bbox': [[30.0, 4.0, 50.0, 20.0]]},
    ]
    line = {'filename': '0.png', 'height': 48, 'width': 64}
    line['grounding'] = {'caption': 'a star and a ring', 'regions': regions}
    (folder / 'phrases.jsonl').write_text(2 * (json.dumps(line) + '\n'))
    return {
        'type': 'ovd.GroundingDataset',
        'ann_file': str(folder / 'phrases.jsonl'),
        'data_prefix': {'img': images},
        'vocabulary': {'names': ['star', 'ring'], 'novel': ['ring']},
        'novel_boxes': 'drop',
    }


def test_true_boxes_are_kept_and_hidden_ones_never_read(reference: Any, tmp_path: Path) -> None:
    images = reference[0]['captions']['data_prefix']['img_path']
    captions = write_phrases(tmp_path, images)
    section = elsewhere(reference, tmp_path) | {'captions': captions, 'max_boxes': 1}
    manifest = label(section)
    assert manifest['counts'] == {
        'lines': 2,
        'true_boxes': 2,
        'pseudo_boxes': 2,
        'pseudo_phrases': 2,
        'left_phrases': 0,
    }
    star, ring = read_lines(section)[0]['grounding']['regions']
    assert (star['bbox'], 'score' in star) == ([[4.0, 4.0, 20.0, 20.0]], False)
    assert ring['phrase'] == 'a ring'
    assert ring['bbox'] != [[30.0, 4.0, 50.0, 20.0]]

    options = {key: captions[key] for key in ('data_prefix', 'vocabulary')}
    (info, _) = GroundingDataset(ann_file=section['out'], novel_boxes='pseudo', **options)
    assert [instance['bbox_label'] for instance in info['instances']] == [0, 1]
    (true, _) = GroundingDataset(ann_file=captions['ann_file'], novel_boxes='pseudo', **options)
    assert [instance['bbox_label'] for instance in true['instances']] == [0]
    assert true['tokens_ignored'] == [[11, 17]]


def test_phrases_that_are_not_found_are_left_out_of_the_loss(reference: Any, tmp_path: Path) -> None:
    images = reference[0]['captions']['data_prefix']['img_path']
    section = elsewhere(reference, tmp_path) | {'captions': write_phrases(tmp_path, images), 'score_thr': 1.0}
    assert label(section)['counts']['left_phrases'] == 2
    (info, _) = GroundingDataset(ann_file=section['out'], data_prefix={'img': images})
    assert info['tokens_ignored'] == [[11, 17]]
    assert info['tokens_positive'] == {0: [[0, 6]]}


@pytest.mark.parametrize('options', [{'ranks': 2}, {'ranks': 3}, {'workers': 2}])
def test_ranks_and_loading_ahead_give_the_same_bytes(
    reference: Any, tmp_path: Path, options: dict[str, int]
) -> None:
    section = elsewhere(reference, tmp_path)
    label(section, **options)
    assert contents(tmp_path / 'out') == reference[1]


def test_settings_are_compared(reference: Any, tmp_path: Path) -> None:
    section = elsewhere(reference, tmp_path)
    unfinished = PseudoLabelling(section, 'cpu')
    assert unfinished.run(unfinished.start()[:1]) is None
    with pytest.raises(ValueError, match=r'\(selection\)'):
        label({**section, 'score_thr': 0.3})
    assert label(section)['counts']['lines'] == 14
    before = contents(tmp_path / 'out')
    assert PseudoLabelling(section, 'cpu').start() == []
    assert contents(tmp_path / 'out') == before == reference[1]
    with pytest.raises(ValueError, match=r'pseudo\.jsonl.*\(images\)'):
        label(section, limit=3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'score_threshold': 1}, "unknown key 'score_threshold', did you mean 'score_thr'"),
        ({'teacher': {'config': 'x.py'}}, "pseudo_labels.teacher lacks 'checkpoint'"),
        ({'teacher': 'x.py'}, r"pseudo_labels.teacher is 'x.py', expected dict\(config"),
        ({'captions': 'x.json'}, r"pseudo_labels.captions is 'x.json', expected a data set: dict\(type"),
    ],
)
def test_bad_sections_are_refused(reference: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoLabelling({**reference[0], **changes}, 'cpu')


def test_missing_files_are_named(reference: Any) -> None:
    teacher = {**reference[0]['teacher'], 'checkpoint': 'none.pth'}
    with pytest.raises(FileNotFoundError, match=r"teacher's.*none\.pth"):
        PseudoLabelling({**reference[0], 'teacher': teacher}, 'cpu')
    with pytest.raises(ValueError, match='pseudo_labels'):
        PseudoLabelling(None, 'cpu')  # type: ignore[arg-type]


def run_and_kill(labelling: PseudoLabelling, after: int) -> bool:
    """Label in a forked process that kills itself at event ``after``; whether it came so far.

    Events are an image that is done, and the moments before and after a file appears under its name.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3), 'the job failed by itself'
        return os.WIFSIGNALED(status)
    events, rename = itertools.count(1), Path.replace

    def tick(*_: Any) -> None:
        if next(events) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(path: Path, target: Any) -> Path:
        tick()
        renamed = rename(path, target)
        tick()
        return renamed

    try:
        Path.replace = replace  # type: ignore[assignment,method-assign]
        labelling.run(labelling.start(), on_image=tick)
        os._exit(0)
    except BaseException:
        os._exit(3)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded')
def test_kills_at_any_moment_change_nothing(reference: Any, tmp_path: Path) -> None:
    """Killed at every event in turn; from the start again whenever the labels get finished."""
    torch.set_num_threads(1)
    labelling, out = PseudoLabelling(elsewhere(reference, tmp_path), 'cpu', limit=3), tmp_path / 'out'
    labelling.run(labelling.start())
    expected = contents(out)
    shutil.rmtree(out)
    for after in range(1, EVENTS + 1):
        assert run_and_kill(labelling, after)
        labelling.run(labelling.start())
        assert visible(out) == expected, f'killed at event {after}'
        shutil.rmtree(out)
    assert not run_and_kill(labelling, EVENTS + 1), 'nothing happens after the manifest is there'
    shutil.rmtree(out)
    for _ in range(EVENTS):
        run_and_kill(labelling, 5)
        if (out / 'pseudo.manifest.json').exists():
            break
    labelling.run(labelling.start())
    assert visible(out) == expected


def visible(folder: Path) -> dict[str, bytes]:
    """Files of a folder without those that a kill left under a temporary name."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith('.')
    }


def write_config(folder: Path, section: dict[str, Any]) -> Path:
    path = folder / 'config.py'
    needs = [{'path': section['out'], 'what': 'made here'}]
    path.write_text(f'pseudo_labels = {section!r}\nneeds = {needs!r}\n')
    return path


def test_the_tool_says_what_it_found(
    reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location('pseudo_label', ROOT / 'tools' / 'pseudo_label.py')
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = write_config(tmp_path, elsewhere(reference, tmp_path))
    tool.main([str(config), '--device', 'cpu'])
    said = capsys.readouterr().out
    assert '7 images in 4 parts, 4 of them for this process' in said
    assert 'is complete: 14 lines, 0 true boxes' in said
    assert contents(tmp_path / 'out') == reference[1]
    trial = tmp_path / 'trial.jsonl'
    (tmp_path / 'out' / 'pseudo.jsonl').unlink()
    tool.main([str(config), '--device', 'cpu', '--limit', '1', '--cfg-options', f'pseudo_labels.out={trial}'])
    assert len(trial.read_text().splitlines()) == 2, 'training needs the labels, a trial does not'
    with pytest.raises(ValueError, match='--workers is -1'):
        tool.main([str(config), '--workers', '-1'])


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(reference: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, elsewhere(reference, tmp_path))
    launcher = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    run = run_tool('pseudo_label.py', config, '--device', 'cpu', launcher=launcher)
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / 'out') == reference[1]


def test_the_config_of_the_student_is_read() -> None:
    config = load_config(ROOT / 'configs' / 'glip_shapes_student.py')
    dataset = config.train_dataloader.dataset.datasets[0]
    assert config.pseudo_labels.captions.novel_boxes == 'drop'
    assert dataset.novel_boxes == 'pseudo'
    assert config.pseudo_labels.out == dataset.data_root + dataset.ann_file
    assert dataset.min_score >= config.pseudo_labels.score_thr
