"""The shipped catalogue: every entry is well formed, fits a config, and agrees with open_clip's own list."""

import json
import re
from pathlib import Path

import open_clip.pretrained
import pytest

from ovd.catalogue.entries import Entry, entries, find_entry, hub_url, names, similar
from ovd.config import load_config
from ovd.inference.model_folders.fetching import CONVERTERS

MODELS = [entry for entry in entries().values() if entry.config is not None]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('OVD_HOME', str(tmp_path))
    return tmp_path


@pytest.mark.parametrize('entry', MODELS, ids=lambda entry: entry.name)
def test_configs_and_requirements_exist(entry: Entry) -> None:
    settings = {key: value for key, value in entry.settings.items() if key != 'model.text.embeddings'}
    assert entry.config is not None
    config = load_config(entry.config, settings)
    assert config.get('test_dataloader') is not None
    for name in entry.requires:
        assert find_entry(name).kind == 'encoder'


def test_every_entry_says_what_it_is() -> None:
    assert len(names()) == len(set(names())) > 200
    for entry in entries().values():
        assert entry.converter in CONVERTERS
        assert entry.kind in ('detection', 'segmentation', 'grounding', 'encoder')
        assert entry.files
        assert entry.commands
        assert re.fullmatch(r'[a-z0-9-]+', entry.name)
        told = ' '.join(entry.unverified)
        assert entry.licence or 'licence' in told, entry.name
        for file in entry.files:
            assert file.urls or file.page
            assert all(url.startswith('https://') for url in file.urls)
            assert file.sha256 is None or re.fullmatch(r'[0-9a-f]{8}|[0-9a-f]{64}', file.sha256)
            is_main = file is entry.files[0]
            assert not is_main or file.sha256 or 'sha256' in told, entry.name
        for figure in entry.figures:
            assert set(figure) == {'data', 'metric', 'value', 'protocol'}


def test_names_of_mmdet_carry_their_hash() -> None:
    files = (file for entry in entries().values() for file in entry.files)
    found = [file for file in files if 'openmmlab' in ''.join(file.urls)]
    assert len(found) == 5
    for file in found:
        assert file.name.rpartition('-')[2] == f'{file.sha256}.pth'


def test_clip_entries_are_those_of_open_clip() -> None:
    listed = {
        (entry.options['arch'], entry.options['tag']): entry
        for entry in entries().values()
        if entry.converter == 'clip'
    }
    compared = 0
    for arch, tag in open_clip.pretrained.list_pretrained():
        entry = listed.get((arch, tag))
        release = open_clip.pretrained.get_pretrained_cfg(arch, tag)
        if entry is None:  # a later open_clip
            continue
        address = entry.files[0].urls[0]
        if 'openaipublic' in release.get('url', ''):
            assert address == release['url']
            assert entry.files[0].sha256 == address.split('/')[-2]
        else:
            assert release.get('hf_hub', '').rpartition('/')[0] in address or address == release['url']
        compared += 1
    assert compared > 100


def test_own_entries_go_before_ours(home: Path) -> None:
    (home / 'catalogue').mkdir()
    path = home / 'catalogue' / 'mine.json'
    entry = {
        'name': 'glip-t-a',
        'title': 'a mirror',
        'kind': 'grounding',
        'converter': 'glip',
        'files': [{'name': 'a.pth', 'url': 'https://mirror.example/a.pth'}],
    }
    path.write_text(json.dumps({'entries': [entry]}))
    assert find_entry('glip-t-a').title == 'a mirror'
    for broken in ('{', '{}', json.dumps({'entries': [{**entry, 'surprise': 1}]})):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r'mine\.json') as caught:
            names()
        assert '\n' not in str(caught.value)
    for bad in ('../x', '/x', ''):
        path.write_text(json.dumps({'entries': [{**entry, 'files': [{'name': bad, 'url': 'https://a/b'}]}]}))
        with pytest.raises(ValueError, match='a file is named'):
            names()


def test_addresses_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_url('a/b', 'main', 'c') == 'https://huggingface.co/a/b/resolve/main/c'
    monkeypatch.setenv('HF_ENDPOINT', 'https://mirror.example/')
    assert hub_url('a/b', 'x', 'c') == 'https://mirror.example/a/b/resolve/x/c'


def test_similar_names() -> None:
    assert similar('GroupViT-gcc-yfc')[0] == 'groupvit-gcc-yfcc'
    with pytest.raises(KeyError, match='glip-l'):
        find_entry('glip-ll')
