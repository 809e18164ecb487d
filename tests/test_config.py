"""Configs that cannot be what the user meant are refused before anything is built."""

from pathlib import Path

import pytest
from mmengine.config import Config

from ovd.config import ConfigError, check_needs, load_config


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
    assert message.endswith('w.pth')
    check_needs(Config({'needs': needs[:1]}))
    check_needs(Config({}))


def test_a_wrong_need_is_named() -> None:
    with pytest.raises(ConfigError, match=r"needs\[0\] takes path, what and how, got \['paht'\]"):
        check_needs(Config({'needs': [{'paht': 'x'}]}))
