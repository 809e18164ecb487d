"""Tar shards: every sample once, in any split; resuming; and everything that can be wrong with a shard."""

import gzip
import itertools
import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ovd.checkpoints.reading import read_checkpoint
from ovd.datasets.captions import shards as caption_shards
from ovd.datasets.captions.shard_reader import Part, ShardReader, expand_shards
from ovd.datasets.captions.shards import CaptionShards
from tests.cli.test_tools import equal, tool, tool_process, weights
from tests.toys.captions import caption_of, jpeg, write_shard, write_shards


def draw(results: dict[str, Any]) -> tuple[str, float, float]:
    """Name of a sample and random numbers, in place of a pipeline."""
    return results['img_path'].split('#')[1], float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def names(pattern: str, count: int, **options: Any) -> list[str]:
    dataset = CaptionShards(pattern, [lambda results: results['img_path'].split('#')[1]], **options)
    return list(itertools.islice(dataset, count))


def numbered(count: int, start: int = 0) -> list[str]:
    return [f'{index:06d}' for index in range(start, start + count)]


def test_samples_come_decoded_with_their_captions(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, shards=2, samples=3)
    dataset = CaptionShards(pattern, shuffle_buffer=0)
    samples = list(itertools.islice(dataset, 6))
    assert [sample['caption'] for sample in samples] == [caption_of(index) for index in range(6)]
    first = samples[0]
    assert first['img'].shape == (32, 32, 3)
    assert first['img'].dtype == np.uint8
    assert first['img_shape'] == first['ori_shape'] == (32, 32)
    assert first['img_path'] == f'{tmp_path}/00000.tar#000000'
    rgb = np.asarray(caption_shards.ShardReader().decode(next(dataset.reader.read(Part(dataset.shards[0])))))
    np.testing.assert_array_equal(first['img'], rgb[..., ::-1])  # BGR


def test_a_pass_gives_every_sample_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, shards=3, samples=4)
    for buffer in (1, 5, 1000):
        found = names(pattern, 24, shuffle_buffer=buffer)
        assert sorted(found[:12]) == sorted(found[12:]) == numbered(12)
        assert found[:12] != found[12:]
        assert found == names(pattern, 24, shuffle_buffer=buffer)
        assert found != names(pattern, 24, shuffle_buffer=buffer, seed=1)
    assert names(pattern, 24, shuffle_buffer=0) == numbered(12) * 2


@pytest.mark.parametrize('shards', [1, 2, 5])
@pytest.mark.parametrize(('ranks', 'workers'), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_ranks_and_workers_share_a_pass_without_repetition(
    tmp_path: Path, shards: int, ranks: int, workers: int
) -> None:
    pattern = write_shards(tmp_path, shards, samples=7)
    dataset = CaptionShards(pattern)
    loaders = ranks * workers
    sizes: Counter[int] = Counter()
    for number in range(3):
        found: list[str] = []
        for loader in range(loaders):
            mine = [pair.name.split('#')[1] for pair in dataset._pass((0, 0), number, loader, loaders)]
            sizes[loader] += len(mine)
            found += mine
        assert sorted(found) == numbered(7 * shards)
    if shards == 5 and loaders == 2:
        assert max(sizes.values()) - min(sizes.values()) <= 7  # 15 shards in three passes: 8 and 7


def loaded(pattern: str, rank: int, world_size: int, workers: int, count: int, **kwargs: Any) -> list[Any]:
    """``count`` batches of two from a real data loader."""
    dataset = CaptionShards(pattern, [draw], **kwargs)
    dataset.rank, dataset.world_size = rank, world_size
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list)
    return list(itertools.islice(loader, count))


def test_draws_do_not_depend_on_who_loads_a_sample(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, shards=4, samples=2)
    alone = {sample for batch in loaded(pattern, 0, 1, 0, 4) for sample in batch}
    assert len(alone) == 8
    assert {sample for batch in loaded(pattern, 0, 1, 2, 4) for sample in batch} == alone
    both = [batch for rank in (0, 1) for batch in loaded(pattern, rank, 2, 2, 2)]
    assert {sample for batch in both for sample in batch} == alone
    later = loaded(pattern, 0, 1, 0, 8)[4:]  # the second pass draws anew
    assert {sample[0] for batch in later for sample in batch} == {sample[0] for sample in alone}
    assert not {sample[1] for batch in later for sample in batch} & {sample[1] for sample in alone}


def test_loading_leaves_the_generators_of_the_process_alone(tmp_path: Path) -> None:
    stream = iter(CaptionShards(write_shards(tmp_path, 1, 3), [draw]))
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    next(stream)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('skipped', [1, 4, 7])
def test_a_resumed_stream_goes_on_where_it_was(tmp_path: Path, workers: int, skipped: int) -> None:
    pattern = write_shards(tmp_path, shards=3, samples=4)
    undisturbed = loaded(pattern, 0, 1, workers, 10)

    def resumed(**kwargs: Any) -> list[Any]:
        dataset = CaptionShards(pattern, [draw], **kwargs)
        dataset.skip(2 * skipped, batch_size=2)
        loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list)
        return list(itertools.islice(loader, 10 - skipped))

    again = resumed()
    assert again == undisturbed[skipped:]
    fresh = resumed(exact_resume=False)
    assert fresh != again
    assert len({sample[0] for batch in fresh[:3] for sample in batch}) == 6


def test_epochs_have_the_length_asked_for(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, shards=3, samples=4)
    dataset = CaptionShards(pattern, [draw], epoch_length=8)
    first, second = list(dataset), list(dataset)
    assert len(first) == len(second) == len(dataset) == 8
    assert first != second
    dataset.set_epoch(1)
    assert list(dataset) == second
    dataset.set_epoch(0)
    dataset.skip(12, batch_size=2)  # the first epoch and four samples
    assert list(dataset) == second[4:]
    loader = DataLoader(CaptionShards(pattern, [draw], epoch_length=8), batch_size=2, num_workers=2)
    assert sum(len(batch[0]) for batch in loader) == 8
    assert len(CaptionShards(pattern)) > 1 << 40  # endless


# --- what may be in a shard ---------------------------------------------------------------------------------


def good(key: str) -> list[tuple[str, bytes]]:
    return [(f'{key}.jpg', jpeg(1)), (f'{key}.txt', b'a dog')]


def test_captions_in_every_kind_of_member(tmp_path: Path) -> None:
    members = [
        ('a/1.PNG', jpeg(1)),  # the kind of image is read from its bytes
        ('a/1.text', b' a cat \n'),
        ('a/2.jpeg', jpeg(2)),
        ('a/2.json', json.dumps({'caption': 'a dog', 'url': 'x'}).encode()),
        ('__meta__.txt', b'not a sample'),
        ('a/2.npy', b'ignored'),
        ('README', b'no suffix'),
        ('a/3.webp', jpeg(3)),
        ('a/3.txt', 'ein Bäumchen'.encode()),
        ('a/3.json', json.dumps({'caption': 'from json'}).encode()),
    ]
    path = write_shard(tmp_path / 'x.tar', members)
    reader = ShardReader('refuse')
    pairs = list(reader.read(Part(str(path))))
    assert [pair.caption for pair in pairs] == ['a cat', 'a dog', 'ein Bäumchen']
    assert [pair.name.split('#')[1] for pair in pairs] == ['a/1', 'a/2', 'a/3']
    compressed = tmp_path / 'x.tar.gz'
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert [pair.caption for pair in reader.read(Part(str(compressed)))] == [pair.caption for pair in pairs]
    other = write_shard(tmp_path / 'y.tar', [('1.jpg', jpeg(1)), ('1.json', b'{"alt": "a cow"}')])
    assert next(ShardReader('refuse', 'alt').read(Part(str(other)))).caption == 'a cow'


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def spoil(path: Path, start: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b'\xff' * 64
    path.write_bytes(data)


JPEG_BLOCKS = -(-len(jpeg(1)) // 512) * 512
SECOND = 512 + JPEG_BLOCKS + 512 + 512  # where the second sample begins
DAMAGES = {
    'a member cut off': (lambda path: cut(path, SECOND + 700), r'member 2.jpg: unexpected end of data', 1),
    'the end cut off': (
        lambda path: cut(path, 3 * SECOND),
        r'member 3.txt: .*no end',
        3,
    ),
    'a header cut off': (lambda path: cut(path, SECOND + 100), r'member 1.txt: .*\(truncated header\)', 1),
    'a header spoiled': (lambda path: spoil(path, SECOND), r'member 1.txt: .*\(bad checksum\)', 1),
    'no tar at all': (lambda path: path.write_bytes(b'hello' * 200), r'start: damaged or truncated', 0),
    'an empty file': (lambda path: path.write_bytes(b''), r'start: damaged or truncated', 0),
    'a text': (lambda path: path.write_text('<html>404</html>'), r'start: damaged or truncated', 0),
}


@pytest.mark.parametrize(('damage', 'message', 'left'), DAMAGES.values(), ids=DAMAGES)
def test_damaged_shards_are_refused_or_skipped(
    tmp_path: Path, damage: Any, message: str, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = write_shard(tmp_path / 'bad.tar', [*good('1'), *good('2'), *good('3')])
    damage(bad)
    write_shard(tmp_path / 'good.tar', [*good('8'), *good('9')])
    with pytest.raises(ValueError, match=rf'^shard {bad}, {message}') as error:
        list(ShardReader('refuse').read(Part(str(bad))))
    assert '\n' not in str(error.value)
    dataset = CaptionShards([str(bad), str(tmp_path / 'good.tar')], [draw], shuffle_buffer=0)
    found = [sample[0] for sample in itertools.islice(dataset, left + 2)]
    assert found == [*'123'[:left], '8', '9']
    assert dict(dataset.reader.skipped.counts) == {'broken shards': 1}


MEMBERS = {
    'no image': ([('2.txt', b'a dog')], 'samples without image', r'#2 has no image \(jpg'),
    'no caption': ([('2.jpg', jpeg(2))], 'samples without caption', r'#2 has no caption \(txt'),
    'no field': (
        [('2.jpg', jpeg(2)), ('2.json', b'{"a": 1}')],
        'samples without caption',
        r"'caption' in json",
    ),
    'blank': ([('2.jpg', jpeg(2)), ('2.txt', b' \n')], 'empty captions', r"#2 has the caption ' \\n'"),
    'a number': (
        [('2.jpg', jpeg(2)), ('2.json', b'{"caption": 7}')],
        'empty captions',
        r'#2 has the caption 7',
    ),
    'no JSON': ([('2.jpg', jpeg(2)), ('2.json', b'{')], 'unreadable captions', r'caption of sample .*#2: '),
    'no UTF-8': ([('2.jpg', jpeg(2)), ('2.txt', b'\xff\xfe')], 'unreadable captions', r'caption of .*#2: '),
    'no pixels': (
        [('2.jpg', b'<html>'), ('2.txt', b'a dog')],
        'broken images',
        r'#2 is .*damaged',
    ),
    'half an image': (
        [('2.jpg', jpeg(2)[:400]), ('2.txt', b'a dog')],
        'broken images',
        r'#2 cannot be decoded',
    ),
    'no bytes': ([('2.jpg', b''), ('2.txt', b'a dog')], 'broken images', r'#2 is empty'),
    'repeated': (
        [*good('2'), ('2.txt', b'a cat')],
        'repeated members',
        r'x.tar, member 2.txt: duplicate file name$',
    ),
}


@pytest.mark.parametrize(('members', 'kind', 'message'), MEMBERS.values(), ids=MEMBERS)
def test_bad_samples_are_refused_or_skipped(
    tmp_path: Path, members: list[tuple[str, bytes]], kind: str, message: str
) -> None:
    path = write_shard(tmp_path / 'x.tar', [*good('1'), *members, *good('3')])
    with pytest.raises(ValueError, match=message) as error:
        list(itertools.islice(CaptionShards(str(path), [draw], broken='refuse'), 3))
    assert '\n' not in str(error.value)
    dataset = CaptionShards(str(path), [draw], shuffle_buffer=0)
    found = [sample[0] for sample in itertools.islice(dataset, 2)]
    assert found == ['1', '3' if kind != 'repeated members' else '2']
    assert dict(dataset.reader.skipped.counts) == {kind: 1}


def test_what_is_skipped_is_logged_at_growing_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmengine.logging.MMLogger.warning', lambda self, message: said.append(message))
    path = write_shard(tmp_path / 'x.tar', [*good('1'), *[(f'b{i}.txt', b'x') for i in range(12)]])
    next(iter(CaptionShards(str(path), [draw], shuffle_buffer=0)))
    assert said == []
    list(itertools.islice(CaptionShards(str(path), [draw], shuffle_buffer=0), 2))
    assert len(said) == 2
    assert 'parts of shards skipped by this loader so far: 1 samples without image; the last: ' in said[0]
    assert '10 samples without image' in said[1]


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path / 'x.tar', [('1.jpg', jpeg(1)), ('1.json', b'{"text": "a dog"}')])
    with pytest.raises(ValueError, match=r'x.tar.*\(100'):
        next(iter(CaptionShards(str(path), [draw])))
    many = [(f'{index}.txt', b'x') for index in range(1001)]
    path = write_shard(tmp_path / 'y.tar', [*many, *good('z')])
    with pytest.raises(ValueError, match=r'1000'):
        next(iter(CaptionShards(str(path), [draw])))


# --- which shards -------------------------------------------------------------------------------------------


def test_patterns_name_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=3, samples=1)
    every = [f'{tmp_path}/{index:05d}.tar' for index in range(3)]
    assert expand_shards(f'{tmp_path}/{{00000..00002}}.tar') == every
    assert expand_shards(f'{tmp_path}/*.tar') == every
    assert expand_shards([every[2], f'{tmp_path}/0000[01].tar']) == [every[2], *every[:2]]
    assert expand_shards('https://x.org/{0..1}.tar') == ['https://x.org/0.tar', 'https://x.org/1.tar']
    with pytest.raises(FileNotFoundError, match=r'/\*.tgz'):
        expand_shards(f'{tmp_path}/*.tgz')
    with pytest.raises(ValueError, match=r'00000.tar'):
        expand_shards([f'{tmp_path}/*.tar', every[0]])
    with pytest.raises(ValueError):
        expand_shards([])


def test_absent_shards_are_refused_or_logged(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=2, samples=1)
    pattern = f'{tmp_path}/{{00000..00004}}.tar'
    with pytest.raises(FileNotFoundError, match=r'00002.tar.*3.*5'):
        CaptionShards(pattern, broken='refuse')
    assert len(CaptionShards(pattern).shards) == 2
    with pytest.raises(FileNotFoundError, match=r'2.*2'):
        CaptionShards(f'{tmp_path}/none{{0..1}}.tar')
    with pytest.raises(ValueError, match=r"'skip'.*'refuse'.*'stop'"):
        CaptionShards(pattern, broken='stop')


def test_a_pipe_that_the_user_names_is_read(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, shards=1, samples=2)
    assert names(f'pipe:cat {expand_shards(pattern)[0]}', 2, shuffle_buffer=0) == numbered(2)


# --- through the tools --------------------------------------------------------------------------------------

CONFIG = """
custom_imports = dict(imports=['tests.toys.captions'])
default_scope = 'mmseg'
model = dict(type='mmengine.ToyMatcher')
train_dataloader = dict(
    batch_size=2, num_workers={workers}, sampler=None,
    dataset=dict(
        type='ovd.CaptionShards', shards={shards!r}, shuffle_buffer=5, broken={broken!r},
        pipeline=[
            dict(type='ovd.TimmAugment', size=16),
            dict(type='ovd.CaptionPrompts', count=1,
                 nouns=dict(backend='vocabulary', vocabulary=['dog', 'fruit', 'star'])),
            dict(type='ovd.PackCaptions')]{options}))
{loop}
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
randomness = dict(seed=3)
custom_hooks = [{hook}]
"""
BY_ITERATION = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=12, val_interval=1000)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=4),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3))
log_processor = dict(by_epoch=False)
"""
BY_EPOCH = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
"""


def write_config(
    folder: Path,
    shards: str,
    workers: int = 0,
    broken: str = 'refuse',
    loop: str = BY_ITERATION,
    hook: str = '',
    options: str = '',
) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / 'stream.py'
    path.write_text(
        CONFIG.format(shards=shards, workers=workers, broken=broken, loop=loop, hook=hook, options=options)
    )
    return path


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / 'data', shards=3, samples=5)
    config = write_config(tmp_path, shards, workers=2)
    assert tool('train', config, '--work-dir', tmp_path / 'undisturbed') == 0
    killed = write_config(tmp_path / 'killed', shards, workers=2, hook="dict(type='ToyKill', at=11)")
    killed.write_text(
        killed.read_text().replace("['tests.toys.captions']", "['tests.toys.captions', 'tests.toys.runs']")
    )
    run = tool_process('train', killed, '--work-dir', tmp_path / 'run')
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert read_checkpoint(tmp_path / 'run' / 'latest.pth')['meta']['iter'] == 9
    assert tool('train', config, '--work-dir', tmp_path / 'run', '--resume') == 0
    assert equal(weights(tmp_path / 'run'), weights(tmp_path / 'undisturbed'))


def test_a_run_by_epochs_resumes_to_the_same_weights(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / 'data', shards=3, samples=5)
    config = write_config(tmp_path, shards, loop=BY_EPOCH, options=', epoch_length=8')
    assert tool('train', config, '--work-dir', tmp_path / 'undisturbed') == 0
    half = ('--cfg-options', 'train_cfg.max_epochs=2')
    assert tool('train', config, '--work-dir', tmp_path / 'run', *half) == 0
    assert read_checkpoint(tmp_path / 'run' / 'latest.pth')['meta']['iter'] == 8
    assert tool('train', config, '--work-dir', tmp_path / 'run', '--resume') == 0
    assert equal(weights(tmp_path / 'run'), weights(tmp_path / 'undisturbed'))


def test_a_bad_shard_ends_a_run_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_shards(tmp_path / 'data', shards=2, samples=5)
    bad = tmp_path / 'data' / '00001.tar'
    cut(bad, 3000)
    assert tool('train', write_config(tmp_path, shards, workers=1), '--work-dir', tmp_path / 'run') == 2
    assert capsys.readouterr().err.strip().startswith(f'error: shard {bad}, member 0000')
    config = write_config(tmp_path, shards, broken='skip')
    assert tool('train', config, '--work-dir', tmp_path / 'skip') == 0
    assert '1 broken shards; the last: shard' in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_stream_without_repetition(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / 'data', shards=3, samples=8)
    config = write_config(tmp_path, shards, workers=1, hook="dict(type='ToyRecord')")
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    run = tool_process(
        'train', config, '--work-dir', tmp_path / 'run', '--launcher', 'pytorch', launch=launch
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / 'run' / 'iter_12.pth').exists()
    seen = [(tmp_path / 'run' / f'seen_{rank}.txt').read_text().split() for rank in (0, 1)]
    assert sorted(seen[0] + seen[1]) == sorted(numbered(24) * 2)  # 12 steps of 2 x 2 are two passes
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    (tmp_path / 'again' / 'latest.pth').unlink()
    (tmp_path / 'again' / 'latest.pth').symlink_to('iter_6.pth')
    run = tool_process(
        *('train', config, '--work-dir', tmp_path / 'again', '--launcher', 'pytorch', '--resume'),
        launch=launch,
    )
    assert run.returncode == 0, run.stderr
    assert equal(weights(tmp_path / 'again'), weights(tmp_path / 'run'))
