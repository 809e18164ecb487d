"""From a name to an answer: every official layout from a loopback server, and every way it can fail."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from mmengine.registry import DefaultScope

from ovd.catalogue.download import DownloadError, NotThereError, download
from ovd.config import load_config
from ovd.conversion.groupvit import export_groupvit
from ovd.encoders.loading import load_clip
from ovd.encoders.text_encoder import TextEncoder
from ovd.inference.model_folders.fetching import fetch, list_models, plan_fetch
from ovd.inference.model_folders.model_folder import find_model_folder, verify_hashes
from ovd.inference.predictor import Predictor
from ovd.registry import MODELS
from tests.conversion.test_conversion import as_detpro
from tests.conversion.test_lseg_conversion import as_lseg, save_lightning
from tests.encoders.foreign.test_transformers_clip import write_clip
from tests.helpers import ROOT, write_image
from tests.inference.test_model_folder import assert_identical
from tests.toys.bert import write_bert
from tests.toys.checkpoints import BOOBY_TRAPS, was_run
from tests.toys.glip import slim, spread
from tests.toys.published import Server, as_bytes, glip_as_microsoft, glip_as_mmdet, serving
from tests.toys.small_models import WORDS, write_small, write_small_clip

pytest.importorskip('transformers')


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    """An empty ``$OVD_HOME``; the hub is the loopback server."""
    monkeypatch.setenv('OVD_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('HF_ENDPOINT', server.address)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    return tmp_path / 'home'


def add_entry(home: Path, name: str, files: list[dict[str, Any]], **values: Any) -> None:
    """An entry of the user's own catalogue."""
    folder = home / 'catalogue'
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        'name': name,
        'title': f'the toy {name}',
        'kind': 'detection',
        'licence': 'MIT',
        'figures': [{'data': 'toys', 'metric': 'AP', 'value': 1.5, 'protocol': 'none'}],
        **values,
        'files': files,
    }
    (folder / f'{name}.json').write_text(json.dumps({'entries': [entry]}))


def left(home: Path) -> list[str]:
    """What lies under the home besides the catalogue."""
    return sorted(
        path.relative_to(home).as_posix()
        for path in home.rglob('*')
        if path.is_file() and 'catalogue' not in path.parts and path.suffix != '.lock'
    )


def picture(folder: Path) -> Path:
    return write_image(folder / 'picture.png', 64, 96, seed=4)


def add_groupvit(home: Path, server: Server, folder: Path, **options: Any) -> tuple[Any, bytes]:
    """The cheapest model to fetch: GroupViT in the authors' layout."""
    small = write_small('groupvit', folder / 'small')
    theirs = {'model': export_groupvit(small.tensors, 'nvlabs').tensors, 'epoch': 29}
    content = as_bytes(theirs, folder / 'released.pth')
    url = server.put('releases/group_vit.pth', content, **options)
    add_entry(
        home,
        'toy-groupvit',
        [{'name': 'group_vit.pth', 'url': url}],
        converter='groupvit',
        config=str(small.config),
    )
    return small, content


# --- every layout -----------------------------------------------------------------------------------------


def test_groupvit_of_the_authors(home: Path, server: Server, tmp_path: Path) -> None:
    small, content = add_groupvit(home, server, tmp_path)
    seen: list[tuple[str, int, int | None]] = []
    folder = fetch('toy-groupvit', progress=lambda *args: seen.append(args))
    assert folder == home / 'toy-groupvit'
    assert seen[-1] == ('group_vit.pth', len(content), len(content))
    image = picture(tmp_path)
    expected = Predictor(small.config, small.checkpoint, device='cpu').predict(image, raw=True)
    assert_identical(
        Predictor.from_pretrained('toy-groupvit', device='cpu').predict(image, raw=True), expected
    )
    card = (folder / 'MODEL_CARD.md').read_text()
    for part in ('MIT', 'toys, AP (none) | 1.5', 'releases/group_vit.pth'):
        assert part in card
    assert fetch('toy-groupvit') == folder
    assert server.asked == [('/releases/group_vit.pth', 0)]
    assert left(home) == sorted(f'toy-groupvit/{name}' for name in [*verify_hashes(folder), 'hashes.json'])


def test_groupvit_of_transformers_from_the_hub(home: Path, server: Server, tmp_path: Path) -> None:
    small = write_small('groupvit', tmp_path / 'small')
    theirs = export_groupvit(small.tensors, 'transformers').tensors
    content = as_bytes(theirs, tmp_path / 'pytorch_model.bin')
    server.put('someone/groupvit/resolve/abc/pytorch_model.bin', content)
    files = [
        {
            'name': 'weights',
            'hub': 'someone/groupvit',
            'revision': 'abc',
            'paths': ['model.safetensors', 'pytorch_model.bin'],
        }
    ]
    settings = {'model.multi_label': None}
    add_entry(home, 'toy', files, converter='groupvit', config=str(small.config), settings=settings)
    fetch('toy')
    assert [path.rpartition('/')[2] for path, _ in server.asked] == ['model.safetensors', 'pytorch_model.bin']
    image = picture(tmp_path)
    expected = Predictor(small.config, small.checkpoint, device='cpu').predict(image, raw=True)
    assert_identical(Predictor.from_pretrained('toy', device='cpu').predict(image, raw=True), expected)


def bert_files(server: Server, folder: Path) -> list[dict[str, Any]]:
    files = []
    for path in sorted(write_bert(folder).iterdir()):
        server.put(f'google/bert/resolve/main/{path.name}', path)
        files.append({'name': f'bert/{path.name}', 'path': path.name, 'hub': 'google/bert'})
    missing = {'name': 'bert/tokenizer.json', 'path': 'tokenizer.json', 'hub': 'google/bert'}
    return [*files, {**missing, 'optional': True}]


GLIP = {'converter': 'glip', 'settings': {'model.text.encoder.model': '{download}/bert'}}


def test_glip_of_mmdet_whose_name_carries_its_hash(home: Path, server: Server, tmp_path: Path) -> None:
    small = write_small('glip', tmp_path / 'small')
    content = as_bytes(glip_as_mmdet(small.tensors), tmp_path / 'glip.pth')
    digits = hashlib.sha256(content).hexdigest()[:8]
    url = server.put(f'glip/glip_tiny_mmdet-{digits}.pth', content)
    files = [{'name': 'glip.pth', 'url': url, 'sha256': digits}, *bert_files(server, tmp_path / 'bert')]
    add_entry(home, 'toy-glip', files, config=str(small.config), **GLIP)
    image = picture(tmp_path)
    before = Predictor(small.config, small.checkpoint, device='cpu')
    after = Predictor.from_pretrained(fetch('toy-glip'), device='cpu')
    assert_identical(after.predict(image, raw=True), before.predict(image, raw=True))
    phrases = after.ground(image, 'a red star', ['star'], raw=True)
    assert_identical(phrases, before.ground(image, 'a red star', ['star'], raw=True))


def test_glip_of_the_authors(home: Path, server: Server, tmp_path: Path) -> None:
    config = slim(load_config('glip_t_b_o365'), tmp_path / 'bert')
    config.model.text.vocabulary = WORDS
    config.model.test_cfg.score_thr = 0.0
    config.test_dataloader.dataset.pipeline[1].scale = (96, 64)
    config.dump(tmp_path / 'glip.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(config.model).eval()
    spread(model)
    ours = model.state_dict()
    torch.save({'state_dict': ours}, tmp_path / 'ours.pth')
    content = as_bytes({'model': glip_as_microsoft(ours)}, tmp_path / 'theirs.pth')
    url = server.put('glip_tiny_model_o365.pth', content)
    files = [{'name': 'glip.pth', 'url': url, 'size': len(content)}, *bert_files(server, tmp_path / 'b')]
    add_entry(home, 'toy-glip', files, config=str(tmp_path / 'glip.py'), **GLIP)
    image = picture(tmp_path)
    before = Predictor(tmp_path / 'glip.py', tmp_path / 'ours.pth', device='cpu').predict(image, raw=True)
    assert_identical(
        Predictor.from_pretrained(fetch('toy-glip'), device='cpu').predict(image, raw=True), before
    )


def add_clip(home: Path, server: Server, folder: Path) -> Path:
    """A CLIP of open_clip on the hub."""
    clip = write_small_clip(folder / 'tiny')
    for path in clip.iterdir():
        server.put(f'someone/clip/resolve/main/{path.name}', path)
    names = ('open_clip_config.json', 'open_clip_model.safetensors')
    files = [{'name': name, 'hub': 'someone/clip'} for name in names]
    add_entry(home, 'toy-clip', files, converter='clip-folder', kind='encoder')
    return clip


def test_lseg_with_the_clip_that_it_needs(home: Path, server: Server, tmp_path: Path) -> None:
    clip = add_clip(home, server, tmp_path)
    small = write_small('lseg', tmp_path / 'small', clip)
    save_lightning(tmp_path / 'demo.ckpt', as_lseg(small.tensors))
    url = server.put('demo_e200.ckpt', tmp_path / 'demo.ckpt')
    add_entry(
        home,
        'toy-lseg',
        [{'name': 'demo_e200.ckpt', 'url': url}],
        converter='lseg',
        config=str(small.config),
        requires=['toy-clip'],
        settings={'model.text.encoder.model': '{home}/toy-clip'},
    )
    plan = plan_fetch('toy-lseg')
    assert [required.entry.name for required in plan.requires] == ['toy-clip']
    fetch('toy-lseg')
    image = picture(tmp_path)
    before = Predictor(small.config, small.checkpoint, device='cpu')
    after = Predictor.from_pretrained('toy-lseg', device='cpu')
    assert_identical(after.predict(image, raw=True), before.predict(image, raw=True))
    assert find_model_folder('toy-clip').is_dir()
    content = json.loads((home / 'toy-lseg' / 'config.json').read_text())
    assert content['text_encoder']['reference'] == 'model:toy-clip'
    assert {row.name for row in list_models() if row.on_disk} == {'toy-clip', 'toy-lseg'}


def test_detpro_with_its_prompts(home: Path, server: Server, tmp_path: Path) -> None:
    clip = add_clip(home, server, tmp_path)
    small = write_small('vild', tmp_path / 'small', clip)
    state = {key: value for key, value in as_detpro(small.tensors).items() if 'something' not in key}
    url = server.put('f/model/', as_bytes({'state_dict': state}, tmp_path / 'epoch_20.pth'))
    prompts = torch.randn(len(WORDS) + 1, 1, 24)
    prompts_url = server.put('f/prompts/', as_bytes(prompts, tmp_path / 'prompts.pth'))
    add_entry(
        home,
        'toy-detpro',
        [{'name': 'detpro.pth', 'url': f'{url}?dl=1'}, {'name': 'prompts.pth', 'url': f'{prompts_url}?dl=1'}],
        converter='detpro',
        config=str(small.config),
        requires=['toy-clip'],
        settings={
            'model.text.embeddings': '{download}/prompts.vocab.safetensors',
            'model.text.encoder.model': '{home}/toy-clip',
        },
        options={'prompts': 'prompts.pth', 'vocabulary': WORDS},
    )
    fetch('toy-detpro')
    predictor = Predictor.from_pretrained('toy-detpro', device='cpu')
    vectors = predictor.model.text_embeddings.embeddings
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(prompts[:-1, 0], dim=-1))
    image = picture(tmp_path)
    assert predictor.predict(image, raw=True)[0].names
    before = Predictor(small.config, small.checkpoint, device='cpu')
    words = 'cat, big dog'  # not among the prompts, so the CLIP encodes them
    expected, found = (p.set_vocabulary(words).predict(image, raw=True)[0] for p in (before, predictor))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


def test_clip_in_both_layouts_serves_as_text_encoder(home: Path, server: Server, tmp_path: Path) -> None:
    clip = add_clip(home, server, tmp_path)
    fetch('toy-clip')
    assert load_clip('toy-clip').fingerprint == load_clip(clip).fingerprint
    assert TextEncoder('toy-clip').encode(['a cat']).equal(TextEncoder(clip).encode(['a cat']))

    write_clip(tmp_path / 'theirs', {}, {})
    for path in (tmp_path / 'theirs').iterdir():
        server.put(f'openai/clip/resolve/main/{path.name}', path)
    files = [
        {'name': 'config.json', 'hub': 'openai/clip'},
        {'name': 'preprocessor_config.json', 'hub': 'openai/clip', 'optional': True},
        {'name': 'weights', 'hub': 'openai/clip', 'paths': ['model.safetensors', 'pytorch_model.bin']},
    ]
    add_entry(home, 'toy-clip-transformers', files, converter='clip-folder', kind='encoder')
    fetch('toy-clip-transformers')
    assert load_clip('toy-clip-transformers').fingerprint == load_clip(tmp_path / 'theirs').fingerprint


# --- cut off, wrong, refused ------------------------------------------------------------------------------


def test_a_cut_connection_is_resumed_by_the_same_call(home: Path, server: Server, tmp_path: Path) -> None:
    _, content = add_groupvit(home, server, tmp_path, cut_after=[1000, 5000])
    fetch('toy-groupvit')
    assert [start for _, start in server.asked] == [0, 1000, 5000]
    assert len(content) > 5000


def test_a_fetch_that_gave_up_is_resumed_by_the_next(home: Path, server: Server, tmp_path: Path) -> None:
    add_groupvit(home, server, tmp_path, cut_after=[1000, 2000, 3000])
    with pytest.raises(DownloadError, match='cut off after 3000 bytes') as caught:
        fetch('toy-groupvit')
    assert '\n' not in str(caught.value)
    assert not (home / 'toy-groupvit').exists()
    assert all(name.startswith('.downloads/') for name in left(home))
    fetch('toy-groupvit')
    assert [start for _, start in server.asked] == [0, 1000, 2000, 3000]
    assert all(name.startswith('toy-groupvit/') for name in left(home))


@pytest.mark.parametrize('tag', ['"two"', None])
def test_a_file_that_changed_meanwhile_is_fetched_anew(
    home: Path, server: Server, tmp_path: Path, tag: str | None
) -> None:
    add_groupvit(home, server, tmp_path, cut_after=[1000, 1000, 1000], tag=tag)
    known = server.files['/releases/group_vit.pth']
    with pytest.raises(DownloadError):
        fetch('toy-groupvit')
    known.tag = '"three"'
    fetch('toy-groupvit')
    assert server.asked[-1] == ('/releases/group_vit.pth', 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'sha256': 'deadbeef'}, 'SHA-256 .* published is deadbeef'), ({'size': 10}, 'published are 10')],
)
def test_another_file_than_published_is_refused(
    home: Path, server: Server, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    small, _ = add_groupvit(home, server, tmp_path)
    files = [{'name': 'g.pth', 'url': f'{server.address}/releases/group_vit.pth', **changes}]
    add_entry(home, 'toy-groupvit', files, converter='groupvit', config=str(small.config))
    with pytest.raises(DownloadError, match=f'group_vit.pth.*{message}') as caught:
        fetch('toy-groupvit')
    assert '\n' not in str(caught.value)
    assert left(home) == []


@pytest.mark.parametrize('trap', sorted(BOOBY_TRAPS))
def test_a_payload_does_not_run(home: Path, server: Server, tmp_path: Path, trap: str) -> None:
    small, _ = add_groupvit(home, server, tmp_path)
    server.put('releases/group_vit.pth', BOOBY_TRAPS[trap](tmp_path))
    with pytest.raises(ValueError, match=r'group_vit\.pth') as caught:
        fetch('toy-groupvit')
    assert '\n' not in str(caught.value)
    assert not was_run(tmp_path)
    assert left(home) == []
    assert small.config.is_file()


@pytest.mark.parametrize('status', [404, 403, 500])
def test_an_answer_that_is_no_file(home: Path, server: Server, tmp_path: Path, status: int) -> None:
    add_groupvit(home, server, tmp_path, status=status)
    with pytest.raises(DownloadError, match=f'group_vit.pth.*answers {status}') as caught:
        fetch('toy-groupvit')
    assert isinstance(caught.value, NotThereError) == (status == 404)
    assert '\n' not in str(caught.value)
    assert left(home) == []


def test_redirects_are_followed_to_safe_addresses_only(home: Path, server: Server, tmp_path: Path) -> None:
    _, content = add_groupvit(home, server, tmp_path)
    url = server.put('moved.bin', b'', redirect='/releases/group_vit.pth')
    assert download(url, tmp_path / 'a').read_bytes() == content
    for address in ('http://example.org/x', 'ftp://127.0.0.1/x', 'file:///etc/passwd'):
        url = server.put('away.bin', b'', redirect=address)
        with pytest.raises(DownloadError, match=r'https|cannot be') as caught:
            download(url, tmp_path / 'b')
        assert '\n' not in str(caught.value)
        with pytest.raises(DownloadError, match='https'):
            download(address, tmp_path / 'b')
    assert not (tmp_path / 'b').exists()


def test_a_server_that_is_not_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r'127\.0\.0\.1:9/x cannot be reached'):
        download('http://127.0.0.1:9/x', tmp_path / 'x')


def test_no_space_left_is_told_before_and_while_writing(
    home: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_groupvit(home, server, tmp_path)
    usage = namedtuple('usage', 'total used free')
    with monkeypatch.context() as patch:
        patch.setattr('ovd.catalogue.download.shutil.disk_usage', lambda path: usage(9, 0, 9))
        with pytest.raises(DownloadError, match='has 9 left'):
            fetch('toy-groupvit')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr('ovd.catalogue.download.os.fsync', full)
        with pytest.raises(DownloadError, match='no space left') as caught:
            fetch('toy-groupvit')
    assert '\n' not in str(caught.value)
    assert left(home) == []
    with monkeypatch.context() as patch:  # the download fits, the folder does not
        patch.setattr('ovd.inference.model_folders.model_folder.write_hashes', lambda folder: full(0))
        with pytest.raises(OSError, match='space'):
            fetch('toy-groupvit')
    assert not (home / 'toy-groupvit').exists()
    assert left(home) == ['.downloads/toy-groupvit/group_vit.pth']
    fetch('toy-groupvit')


def test_two_processes_do_not_fetch_one_model(home: Path, server: Server, tmp_path: Path) -> None:
    add_groupvit(home, server, tmp_path)
    (home / '.downloads').mkdir()
    with FileLock(home / '.downloads' / 'toy-groupvit.lock'):
        with pytest.raises(DownloadError, match='toy-groupvit is being fetched by another process'):
            fetch('toy-groupvit')
    assert server.asked == []
    (home / '.toy-groupvit.dead.tmp').mkdir()  # left by a process that was killed
    fetch('toy-groupvit')
    assert {path.name for path in home.iterdir()} == {'.downloads', 'catalogue', 'toy-groupvit'}


def test_lists_and_plans_need_no_torch() -> None:
    code = (
        'import sys; from ovd.inference.model_folders.fetching import list_models, plan_fetch\n'
        'list_models()\n'
        "plan_fetch('glip-t'); assert 'torch' not in sys.modules and 'mmengine' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_weights_of_another_model_are_refused(home: Path, server: Server, tmp_path: Path) -> None:
    small, _ = add_groupvit(home, server, tmp_path)
    tensors = dict(export_groupvit(small.tensors, 'nvlabs').tensors)
    tensors.popitem()
    server.put('releases/group_vit.pth', as_bytes({'model': tensors}, tmp_path / 'less.pth'))
    with pytest.raises(ValueError, match=r'group_vit\.pth does not become toy-groupvit.*missing') as caught:
        fetch('toy-groupvit')
    assert '\n' not in str(caught.value)
    assert left(home) == []


# --- by hand, plans, lists --------------------------------------------------------------------------------


def test_files_brought_by_hand(home: Path, server: Server, tmp_path: Path) -> None:
    small, content = add_groupvit(home, server, tmp_path)
    page = 'https://drive.google.com/file/d/1/view'
    digest = hashlib.sha256(content).hexdigest()
    files = [{'name': 'group_vit.pth', 'page': page, 'sha256': digest}]
    add_entry(home, 'toy-groupvit', files, converter='groupvit', config=str(small.config))
    with pytest.raises(FileNotFoundError, match=r'group_vit\.pth by hand from https://drive'):
        fetch('toy-groupvit')
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
        plan_fetch('toy-groupvit', tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'empty lacks group_vit\.pth'):
        plan_fetch('toy-groupvit', tmp_path / 'empty')
    (tmp_path / 'other.pth').write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r'other\.pth is not the published group_vit\.pth'):
        fetch('toy-groupvit', tmp_path / 'other.pth')
    (tmp_path / 'renamed.pth').write_bytes(content)
    fetch('toy-groupvit', tmp_path / 'renamed.pth')
    assert Predictor.from_pretrained('toy-groupvit', device='cpu').name == 'toy-groupvit'
    assert (tmp_path / 'renamed.pth').is_file()
    assert server.asked == []


def test_a_plan_writes_nothing_and_opens_no_socket(home: Path, server: Server, tmp_path: Path) -> None:
    add_groupvit(home, server, tmp_path)
    plan = plan_fetch('toy-groupvit')
    text = '\n'.join(plan.lines())
    for part in ('group_vit.pth', 'size not published', 'licence: MIT', str(home / 'toy-groupvit')):
        assert part in text
    assert server.asked == []
    assert left(home) == []


def test_plans_of_the_shipped_catalogue(home: Path) -> None:
    plan = plan_fetch('glip-l-microsoft')
    assert plan.size == pytest.approx(6896153761, rel=1e-3)  # and some of BERT's small files
    assert plan_fetch('glip-l').size is None
    assert plan.files[0].file.size == 6896153761
    assert '6.90 GB' in '\n'.join(plan.lines())
    lseg = plan_fetch('lseg-demo')
    assert [file.name for file in lseg.by_hand] == ['demo_e200.ckpt']
    assert [required.entry.name for required in lseg.requires] == ['clip-vit-b-32-openai']
    with pytest.raises(KeyError, match='did you mean lseg-demo'):
        plan_fetch('lseg-dem')


def test_the_list_tells_what_is_on_this_disk(home: Path, server: Server, tmp_path: Path) -> None:
    small, _ = add_groupvit(home, server, tmp_path)
    rows = {row.name: row for row in list_models()}
    assert not rows['toy-groupvit'].on_disk
    assert rows['groupvit-gcc-yfcc'].licence is not None
    fetch('toy-groupvit')
    Predictor.from_pretrained('toy-groupvit', device='cpu').save_pretrained(home / 'my-own')
    rows = {row.name: row for row in list_models()}
    assert rows['toy-groupvit'].on_disk
    assert rows['toy-groupvit'].size
    assert (rows['my-own'].kind, rows['my-own'].entry) == ('own', None)
    assert small.config.is_file()
