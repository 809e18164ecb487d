"""Bad inputs of the command: each ends with an exit code and one line that names what is wrong."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovd.cli.console import run_tool
from ovd.cli.main import run
from ovd.text.vocabulary import Vocabulary
from ovd.training.work_dir import only_training_in

CONFIG = """
model = dict(type='ovd.ViLD', roi_head=dict(distill_weight=0.5), test_cfg=dict(rcnn=dict(score_thr=0.1,
    nms=dict(type='nms', iou_threshold=0.6))))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1.0))
region_cache = dict(store='STORE', dataset=dict(ann_file='a.json', images='images'),
    image_encoder=dict(model='clip'), proposals=dict(ground_truth=True, top=8))
"""

CASES = [
    ('train C --cfg-options optim_wrapper.optimizer.lr=1e400', 'optim_wrapper.optimizer.lr is inf'),
    ('train C --cfg-options optim_wrapper.optimizer.lr=nan', "optim_wrapper.optimizer.lr is 'nan'"),
    ('train C --cfg-options optim_wrapper.optimizer.lr=-0.1', 'optim_wrapper.optimizer.lr is -0.1'),
    ('train C --cfg-options optim_wrapper.clip_grad.max_norm=-1', 'optim_wrapper.clip_grad.max_norm is -1'),
    ('train C --cfg-options model.roi_head.distill_weight=-1', 'model.roi_head.distill_weight is -1'),
    ('train C --cfg-options model.test_cfg.rcnn.score_thr=nan', "model.test_cfg.rcnn.score_thr is 'nan'"),
    ('train C --cfg-options model.test_cfg.rcnn.nms.iou_threshold=7', 'nms.iou_threshold is 7'),
    ('train C --seed -1', "'-1'"),
    ('train C --launcher pytorch', '--launcher pytorch'),
    ('train C --work-dir FILE', 'FILE is a file'),
    ('train C --work-dir /proc/nope', '/proc/nope'),
    ('train EMPTY', 'no section model'),
    ('cache make C --limit 0', "'0'"),
    ('cache make C --cfg-options region_cache.proposals.top=0', 'region_cache.proposals.top is 0'),
    ('cache make C --cfg-options region_cache.proposals.nms=2', 'region_cache.proposals.nms is 2'),
    (
        'cache make C --cfg-options region_cache.proposals.min_side=-1',
        'region_cache.proposals.min_side is -1',
    ),
    ('cache make C --cfg-options region_cache.images_per_shard=0', 'region_cache.images_per_shard is 0'),
    ('cache make C --cfg-options region_cache.batch_size=abc', "region_cache.batch_size is 'abc'"),
    ('cache verify STORE --sample 1.5', "'1.5'"),
    ('data shapes --out FILE', 'FILE is a file'),
    ('data shapes --train 0 --val 0 --test 0', 'no picture'),
]


@pytest.mark.parametrize(('command', 'part'), CASES)
def test_one_line_names_the_value(
    command: str,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    Path('c.py').write_text(CONFIG)
    Path('empty.py').write_text('')
    Path('FILE').write_text('x')
    words = [{'C': 'c.py', 'EMPTY': 'empty.py'}.get(word, word) for word in command.split()]
    try:
        code = run(words)
    except SystemExit as end:  # the parser of the arguments
        code = int(end.code or 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert part in line


def read_key(argv: Any) -> None:
    {}['epoch']


def read_number(argv: Any) -> None:
    int('abc')


def make_folder(argv: Any) -> None:
    Path(argv[0]).mkdir()


@pytest.mark.parametrize(
    ('main', 'part'),
    [(read_key, "no entry 'epoch'"), (read_number, "'abc'"), (make_folder, 'file exists')],
)
def test_what_python_raised_names_the_call(
    main: Callable[..., None], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(main, [str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
    assert str(tmp_path) in line
    assert 'Errno' not in line


def test_a_folder_is_no_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='folder'):
        Vocabulary.parse(str(tmp_path))


def _hold(folder: Path, ready: Any) -> None:
    with only_training_in(folder):
        ready.set()
        multiprocessing.Event().wait()


def test_one_training_at_a_time_and_a_killed_one_does_not_count(tmp_path: Path) -> None:
    context = multiprocessing.get_context('fork')
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    ready.wait()
    try:
        with pytest.raises(ValueError, match='work directory'), only_training_in(tmp_path):
            pass
        with only_training_in(tmp_path, rank=1):
            pass
    finally:
        process.kill()
        process.join()
    with only_training_in(tmp_path):
        pass
