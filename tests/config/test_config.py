"""Configs that cannot be what the user meant are refused before anything is built."""

import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from ovd.config import ConfigError, check_needs, find_config, load_config
from ovd.config.loading import SECTIONS
from tests.helpers import ROOT


def write(folder: Path, text: str, name: str = 'c.py') -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_config_is_read_with_its_base_and_overrides(tmp_path: Path) -> None:
    write(tmp_path, 'optim_wrapper = dict(optimizer=dict(lr=0.1))', 'base.py')
    path = write(
        tmp_path, "_base_ = ['base.py']\nmodel = dict(type='A', heads=[dict(width=1), dict(width=2)])"
    )
    config = load_config(
        path, {'model.heads.1.width': 5, 'optim_wrapper.optimizer.lr': 1.0, 'model.new.key': 'x'}
    )
    assert config.model.heads == [{'width': 1}, {'width': 5}]
    assert config.optim_wrapper.optimizer.lr == 1.0
    assert config.model.new.key == 'x'


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('modle', 'model'),
        ('optim_wraper', 'optim_wrapper'),
        ('train_dataloder', 'train_dataloader'),
        ('test_evaluater', 'test_evaluator'),
        ('region_caches', 'region_cache'),
        ('custom_hook', 'custom_hooks'),
    ],
)
def test_a_misspelled_section_is_named(tmp_path: Path, name: str, meant: str) -> None:
    path = write(tmp_path, f'{name} = dict()')
    with pytest.raises(ConfigError, match=rf"c\.py: unknown section '{name}', did you mean '{meant}'\?"):
        load_config(path)


@pytest.mark.parametrize(
    'name', ['novel_names', 'image_size', '_model', 'store', 'albu_transforms', 'max_epochs']
)
def test_honest_helper_names_are_let_through(tmp_path: Path, name: str) -> None:
    load_config(write(tmp_path, f'{name} = 1'))


def test_all_errors_come_in_one_message(tmp_path: Path) -> None:
    path = write(tmp_path, 'modle = dict()\ntrain_cfgs = dict()\nmodel = dict(width=1, parts=[1])')
    with pytest.raises(ConfigError) as caught:
        load_config(path, {'modell.width': 2, 'brand_new.x': 1, 'model.parts.7': 1, 'model.width.deep': 3})
    message = str(caught.value)
    for part in (
        "unknown section 'modle'",
        "unknown section 'train_cfgs'",
        "unknown section 'modell', did you mean 'model'?",
        "option 'brand_new.x': the config has no section 'brand_new'",
        "option 'model.parts.7'=1 cannot be applied",
    ):
        assert part in message
    assert '\n' not in message


def test_options_may_add_a_known_section_or_set_a_helper(tmp_path: Path) -> None:
    path = write(tmp_path, 'store = 1\nmodel = dict(a=1)')
    config = load_config(path, {'randomness.seed': 3, 'store': 2})
    assert config.randomness.seed == 3
    assert config.store == 2


def test_files_that_are_not_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no\.py does not exist'):
        load_config(tmp_path / 'no.py')
    with pytest.raises(ConfigError, match=r'c\.py cannot be read: .*'):
        load_config(write(tmp_path, 'model = dict('))
    with pytest.raises(FileNotFoundError, match=r'lost\.py'):
        load_config(write(tmp_path, "_base_ = ['lost.py']"))
    with pytest.raises(ConfigError, match='cannot be read'):
        load_config(write(tmp_path, 'text', 'c.txt'))


def test_missing_files_are_listed_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / 'here').mkdir()
    needs = [
        {'path': str(tmp_path / 'here'), 'what': 'images', 'how': 'copy them'},
        {'path': str(tmp_path / 'ann.json'), 'what': 'LVIS annotations', 'how': 'see data/README.md'},
        {'path': str(tmp_path / 'w.pth')},
    ]
    with pytest.raises(FileNotFoundError) as caught:
        check_needs(Config({'needs': needs}))
    message = str(caught.value)
    assert message.startswith('2 needed files are missing: ')
    assert 'ann.json (LVIS annotations): see data/README.md; ' in message
    assert 'w.pth; ' in message
    check_needs(Config({'needs': needs[:1]}))
    check_needs(Config({}))


def test_a_wrong_need_is_named() -> None:
    with pytest.raises(ConfigError, match=r"needs\[0\] takes path, what and how, got \['paht'\]"):
        check_needs(Config({'needs': [{'paht': 'x'}]}))


# Variables.

BASE = """
fold = 0
max_iters = 100
norm_cfg = dict(type='SyncBN', momentum=0.1)
steps = [dict(type='Load'), dict(type='Resize', scale=(8, 8))]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
train_dataloader = dict(batch_size=2, dataset=dict(fold=fold, pipeline=steps))
test_dataloader = train_dataloader
"""
LEAF = """
_base_ = ['base.py']
max_iters = 80
root: str = 'data/'
load_from = root + 'start.pth'
model = dict(neck=dict(norm_cfg=_base_.norm_cfg), fold=_base_.fold)
needs = [dict(path=root + 'images'), dict(path=load_from)]
param_scheduler = [dict(end=max_iters)]
train_cfg = dict(max_iters=max_iters)
"""


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    write(tmp_path, BASE, 'base.py')
    return write(tmp_path, LEAF, 'leaf.py')


def test_what_is_computed_from_a_variable_follows_it(leaf: Path) -> None:
    config = load_config(leaf, {'max_iters': 20, 'fold': 3})
    assert config.max_iters == config.param_scheduler[0]['end'] == 20
    assert config.train_cfg == {'max_iters': 20, 'val_interval': 5}
    assert config.fold == config.model.fold == config.train_dataloader.dataset.fold == 3
    assert config.test_dataloader.dataset.fold == 3
    plain = load_config(leaf)
    assert (plain.max_iters, plain.fold, plain.train_cfg.val_interval) == (80, 0, 20), 'nothing stays behind'


def test_sections_are_changed_after_variables_whatever_the_order(leaf: Path) -> None:
    for options in (
        {'max_iters': 20, 'train_cfg.max_iters': 7},
        {'train_cfg.max_iters': 7, 'max_iters': 20},
    ):
        config = load_config(leaf, options)
        assert config.train_cfg == {'max_iters': 7, 'val_interval': 5}
        assert config.param_scheduler[0]['end'] == 20
    config = load_config(leaf, {'train_dataloader.batch_size': 9})
    assert config.test_dataloader.batch_size == 2, 'a section is no variable'


def test_parts_of_variables_are_set_too(leaf: Path) -> None:
    config = load_config(leaf, {'norm_cfg.type': 'BN', 'steps.1.scale': (4, 4)})
    assert config.model.neck.norm_cfg == {'type': 'BN', 'momentum': 0.1}
    assert config.train_dataloader.dataset.pipeline[1] == {'type': 'Resize', 'scale': (4, 4)}


def test_files_that_are_named_by_variables_are_needed_there(leaf: Path, tmp_path: Path) -> None:
    (tmp_path / 'images').mkdir()
    (tmp_path / 'other.pth').touch()
    root = f'{tmp_path}/'
    config = load_config(leaf, {'root': root, 'load_from': f'{root}other.pth'})
    check_needs(config)
    assert config.load_from == f'{root}other.pth'
    check_needs(load_config(leaf, {'root': root, 'load_from': None}))
    with pytest.raises(FileNotFoundError, match=r'start\.pth'):
        check_needs(load_config(leaf, {'root': root}))


def test_a_value_that_the_config_cannot_work_with_is_named(leaf: Path) -> None:
    with pytest.raises(ConfigError, match=r'leaf\.py cannot be read with root=3: TypeError'):
        load_config(leaf, {'root': 3})


@pytest.mark.parametrize('value', [0, -5, 'many', 2.5, True, None])
@pytest.mark.parametrize('key', ['max_iters', 'train_cfg.max_iters'])
def test_lengths_that_train_nothing_are_named(leaf: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf'{key}={value!r}'):
        load_config(leaf, {key: value})


def test_a_length_in_the_file_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'train_cfg\.max_iters is 0'):
        load_config(write(tmp_path, "train_cfg = dict(type='IterBasedTrainLoop', max_iters=0)"))


@pytest.mark.parametrize('length', [20, 50])
def test_a_training_shorter_than_its_warm_up_is_named(length: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config('vild_shapes', {'max_iters': length})
    message = str(caught.value)
    assert f'max_iters={length}' in message
    assert 'begin=50' in message
    assert 'param_scheduler' in message
    load_config('vild_shapes', {'max_iters': length, 'param_scheduler': []})
    load_config('vild_shapes', {'max_iters': 51})


@pytest.mark.parametrize(('name', 'value'), [('runner_type', 'FlexibleRunner'), ('compile', True)])
def test_sections_that_no_tool_honours_are_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        load_config(write(tmp_path, f'{name} = {value!r}'))
    load_config(write(tmp_path, 'compile = False'))


def test_items_of_lists_and_tuples_are_set(tmp_path: Path) -> None:
    path = write(tmp_path, 'model = dict(mean=[1.0, 2.0], scale=(8, 8), parts=[dict(a=1)])')
    config = load_config(path, {'model.mean.0': 5, 'model.scale.1': 4, 'model.parts.0.a': 2})
    assert config.model == {'mean': [5, 2.0], 'scale': (8, 4), 'parts': [{'a': 2}]}
    with pytest.raises(ConfigError, match=r"option 'model\.mean\.2'=1 cannot be applied: .*2 items"):
        load_config(path, {'model.mean.2': 1})


# Every section that code reads is known, so that a misspelled one is noticed.

_READ = re.compile(
    r"\b(?:config|cfg)\b(?:\.(?:get|setdefault|pop)\(\s*'(\w+)'|\['(\w+)'\]|\.([a-z]\w+)\b(?!\())"
)
_OTHER_CONFIGS = ('encoders', 'conversion', 'checkpoints')  # those of CLIPs and BERTs
_NO_SECTIONS = {'min_size', 'filter_empty_gt', 'to_dict', 'pretty_text', 'filename', 'model_cfg', 'json'}


def sections_read() -> dict[str, str]:
    found = {}
    files = [path for folder in ('ovd', 'tools') for path in (ROOT / folder).rglob('*.py')]
    for path in files:
        if path.relative_to(ROOT).parts[1] in _OTHER_CONFIGS:
            continue
        code = re.sub(r'^\s*from .*$', '', path.read_text(encoding='utf-8'), flags=re.MULTILINE)
        for match in _READ.finditer(code):
            name = next(filter(None, match.groups()))
            found[name] = f'{path.relative_to(ROOT)}: {match[0]}'
    return {name: where for name, where in found.items() if name not in _NO_SECTIONS}


def test_every_section_that_the_code_reads_is_known() -> None:
    read = sections_read()
    assert {'channels_last', 'region_cache', 'pseudo_labels', 'model', 'needs'} <= set(read)
    unknown = {name: where for name, where in read.items() if name not in SECTIONS}
    assert not unknown


@pytest.mark.parametrize(
    ('name', 'meant'),
    [('channel_last', 'channels_last'), ('calibration_dataloder', 'calibration_dataloader')],
)
def test_our_own_sections_are_known_by_name(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=meant):
        load_config(write(tmp_path, f'{name} = True'))


# Variables that a file sets although its base does.

PARENT = """
data_root = 'data/shapes/'
vocabulary = 'shapes'
max_iters = 100
load_from = data_root + 'start.pth'
needs = [dict(path=data_root + 'images'), dict(path=load_from)]
steps = [dict(type='Load', root=data_root)]
model = dict(words=vocabulary, norm=dict(type='BN'))
train_dataloader = dict(dataset=dict(data_root=data_root, vocabulary=vocabulary, pipeline=steps))
train_cfg = dict(max_iters=max_iters)
"""


def child(folder: Path, text: str) -> Path:
    write(folder, PARENT, 'parent.py')
    return write(folder, f"_base_ = './parent.py'\n{text}", 'child.py')


def test_what_a_base_computes_follows_the_variables_of_its_child(tmp_path: Path) -> None:
    config = load_config(child(tmp_path, "data_root = '/mine/'\nmax_iters = 2 * _base_.max_iters"))
    assert config.train_dataloader.dataset.data_root == '/mine/'
    assert config.load_from == '/mine/start.pth'
    assert [need['path'] for need in config.needs] == ['/mine/images', '/mine/start.pth']
    assert config.train_dataloader.dataset.pipeline[0]['root'] == '/mine/'
    assert config.train_cfg.max_iters == config.max_iters == 200
    assert config.filename.endswith('child.py')


def test_a_variable_may_change_its_kind(tmp_path: Path) -> None:
    words = {'names': ['cat', 'dog'], 'novel': ['dog']}
    by_file = load_config(child(tmp_path, f'vocabulary = dict(**{words})'))
    literal = load_config(child(tmp_path, f'vocabulary = {words}'))
    by_option = load_config(write(tmp_path, PARENT, 'parent.py'), {'vocabulary': words})
    for config in (by_file, literal, by_option):
        assert config.vocabulary == config.model.words == config.train_dataloader.dataset.vocabulary == words
    switched_off = load_config(child(tmp_path, 'load_from = None'))
    assert switched_off.needs[1]['path'] is None


def test_a_child_and_an_option_agree(tmp_path: Path) -> None:
    values = {'vocabulary': 'coco', 'data_root': '/x/', 'max_iters': 7, 'load_from': 'w.pth'}
    by_option = load_config(child(tmp_path, ''), values)
    by_file = load_config(child(tmp_path, '\n'.join(f'{key} = {value!r}' for key, value in values.items())))
    assert by_file.to_dict() == by_option.to_dict()
    assert load_config(child(tmp_path, 'max_iters = 3'), {'max_iters': 9}).train_cfg.max_iters == 9


def test_the_lowest_of_several_files_counts(tmp_path: Path) -> None:
    child(tmp_path, "data_root = '/middle/'\nsteps = [dict(type='Other', root=data_root)]")
    path = write(tmp_path, "_base_ = ['./child.py']\ndata_root = '/last/'")
    dataset = load_config(path).train_dataloader.dataset
    assert dataset == {
        'data_root': '/last/',
        'vocabulary': 'shapes',
        'pipeline': [{'type': 'Other', 'root': '/last/'}],
    }


def test_dicts_and_sections_of_a_child_are_merged(tmp_path: Path) -> None:
    config = load_config(child(tmp_path, 'model = dict(norm=dict(momentum=0.1))'))
    assert config.model == {'words': 'shapes', 'norm': {'type': 'BN', 'momentum': 0.1}}


# Configs by name.


def test_configs_are_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = load_config(find_config('vild_r50_lvis')).to_dict()
    for name in ('vild_r50_lvis.py', 'configs/vild_r50_lvis.py', 'configs/any/where/vild_r50_lvis'):
        assert load_config(name).to_dict() == expected
    Path('configs').mkdir()
    write(tmp_path / 'configs', 'model = 1', 'vild_r50_lvis.py')
    assert load_config('configs/vild_r50_lvis.py').model == 1, 'an existing file comes first'


def test_unknown_names_come_with_similar_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='vild_r50_lvis') as caught:
        load_config('configs/vild_r50_lvi.py')
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r'glip_t_a_to_lvis\.py.*split=minival'):
        load_config('configs/glip_t_a_to_lvis_minival.py')
    for path in (tmp_path / 'vild_r50_lvis.py', Path('mine') / 'vild_r50_lvis.py'):
        with pytest.raises(FileNotFoundError):
            find_config(path)


def test_needs_are_checked_by_stage() -> None:
    needs = {'always': [{'path': 'a'}], 'train': [{'path': 'b'}], 'test': [{'path': 'c'}], 'demo': None}
    for stage, missing in (('train', 'ab'), ('test', 'ac'), ('demo', 'a'), (None, 'abc')):
        with pytest.raises(FileNotFoundError) as caught:
            check_needs({'needs': needs}, stage)
        listed = str(caught.value).partition('missing: ')[2].split('; ')[: len(missing)]
        assert listed == list(missing)
    with pytest.raises(ConfigError, match='tset'):
        check_needs({'needs': {'tset': []}})


def test_a_variable_inside_a_function_is_another_one(tmp_path: Path) -> None:
    path = write(tmp_path, 'n = 1\ndef twice():\n    n = 5\n    return n\nmodel = dict(a=n, b=twice())')
    assert load_config(path, {'n': 2}).model == {'a': 2, 'b': 5}


def test_a_variable_that_the_config_computes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 'count = 4\ncount += 1\nmodel = dict(count=count)')
    with pytest.raises(ConfigError, match="option 'count': the config computes it"):
        load_config(path, {'count': 3})


def test_formats_without_variables_are_merged_as_before(tmp_path: Path) -> None:
    path = write(tmp_path, '{"max_iters": 4, "model": {"a": 1}}', 'c.json')
    config = load_config(path, {'max_iters': 3, 'model.a': 2})
    assert (config.max_iters, config.model.a) == (3, 2)


@pytest.mark.parametrize(
    ('name', 'options', 'places'),
    [
        (
            'lseg_r101_pascal5i',
            {'fold': 2},
            {
                'train_dataloader.dataset.fold': 2,
                'val_dataloader.dataset.fold': 2,
                'test_dataloader.dataset.fold': 2,
            },
        ),
        (
            'vild_text_shapes',
            {'max_iters': 60, 'data_root': 'd/'},
            {
                'train_cfg.max_iters': 60,
                'param_scheduler.1.end': 60,
                'test_dataloader.dataset.data_root': 'd/',
                'needs.0.path': 'd/annotations',
            },
        ),
        (
            'vild_r50_coco',
            {'clip.model': 'c', 'norm_cfg.type': 'BN'},
            {
                'model.text.encoder.model': 'c',
                'region_cache.image_encoder.model': 'c',
                'model.neck.norm_cfg.type': 'BN',
            },
        ),
        (
            'glip_shapes_linear_probe',
            {'load_from': 'x.pth'},
            {'load_from': 'x.pth', 'needs.1.path': 'x.pth'},
        ),
    ],
)
def test_variables_of_shipped_configs(
    name: str, options: dict[str, object], places: dict[str, object]
) -> None:
    config = load_config(ROOT / 'configs' / f'{name}.py', options)
    for key, value in places.items():
        found: Any = config
        for part in key.split('.'):
            found = found[int(part)] if part.isdecimal() else found[part]
        assert found == value, key
