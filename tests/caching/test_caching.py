"""Caching: right rows, and the same bytes after kills, with other ranks and on a disk that was full."""

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovd.caching.clip_regions import (
    CacheImage,
    RegionCaching,
    cache_regions,
    read_cache_images,
    region_header,
)
from ovd.datasets.images import read_image
from ovd.regions import shard as region_shard
from ovd.regions.crops import CropPolicy, crop_regions
from ovd.regions.embedding import encode_crops
from ovd.regions.store import RegionStore, RegionStoreWriter
from ovd.training.options import prepare_training
from tests.helpers import ROOT, shared_path
from tests.toys.regions import DIM, HEIGHT, WIDTH, contents, run_tool, write_config, write_task

KILLS = int(os.environ.get('OVD_KILLS', '20'))


def cache(section: dict[str, Any], ranks: int = 1, **options: Any) -> RegionStore:
    """Run the ranks one after the other in this process."""
    for rank in range(ranks):
        caching = RegionCaching(section, limit=options.get('limit'))
        caching.run(*caching.start(rank, ranks), workers=options.get('workers', 0))
    return RegionStore(section['store'])


@pytest.fixture(scope='module')
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A task and its undisturbed store."""
    section = write_task(tmp_path_factory.mktemp('task'))
    cache(section)
    return section, contents(Path(section['store']))


def elsewhere(reference: Any, folder: Path) -> dict[str, Any]:
    return {**reference[0], 'store': str(folder / 'store')}


def test_rows_are_what_the_tower_says_of_the_crops(reference: Any) -> None:
    section, _ = reference
    caching, store = RegionCaching(section), RegionStore(section['store'])
    assert store.image_ids.tolist() == list(range(1, 14))
    assert len(store.read(3).scores) == 0
    assert store.count(1) == 5
    for image_id in (1, 7, 13):
        rows = store.read(image_id)
        path = Path(section['dataset']['images']) / f'{image_id - 1:06d}.png'
        boxes = torch.from_numpy(rows.boxes.copy())
        crops = crop_regions(torch.from_numpy(read_image(path)).permute(2, 0, 1), boxes, 32, CropPolicy())
        features = caching.encoder.encode(caching.encoder.normalize(crops))
        expected = F.normalize(features[0::2] + features[1::2], dim=1)
        assert torch.allclose(torch.from_numpy(rows.embeddings.astype(np.float32)), expected, atol=2e-3)
        assert (np.diff(rows.scores) <= 0).all()
        assert rows.scores.max() <= 1, 'the small box must be gone'


def test_header_says_what_the_rows_depend_on(reference: Any) -> None:
    section, _ = reference
    header = RegionStore(section['store']).header
    caching = RegionCaching(section)
    assert header['clip_fingerprint'] == caching.encoder.fingerprint
    assert header['embed_dim'] == DIM
    assert header['max_regions'] == 5
    assert header['image_count'] == 13
    assert header['crops'] == CropPolicy().to_dict()
    assert header['crops_hash'] == CropPolicy().hash
    assert header['proposals']['source'] == 'file'
    assert len(header['proposals']['sha256']) == 64
    assert header['made_with']['code_version']


@pytest.mark.parametrize('ranks', [2, 3])
def test_ranks_give_the_same_bytes(reference: Any, tmp_path: Path, ranks: int) -> None:
    section = elsewhere(reference, tmp_path)
    cache(section, ranks)
    assert contents(tmp_path / 'store') == reference[1]


def test_decoding_ahead_gives_the_same_bytes(reference: Any, tmp_path: Path) -> None:
    cache(elsewhere(reference, tmp_path), workers=3)
    assert contents(tmp_path / 'store') == reference[1]


def test_limit_then_the_rest_gives_the_same_bytes(reference: Any, tmp_path: Path) -> None:
    section = elsewhere(reference, tmp_path)
    assert len(cache(section, limit=5)) == 5
    assert len(cache(section)) == 13
    assert contents(tmp_path / 'store') == reference[1]
    with pytest.raises(ValueError, match=r'13.*5'):
        cache(section, limit=5)


class NoisyTower:
    """A tower whose last bits depend on the batch size, as those of matrix products do."""

    image_size, mean, embed_dim, fingerprint = 8, (0.5, 0.5, 0.5), 4, 'noisy'

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.float()

    def encode(self, pixels: Tensor) -> Tensor:
        assert len(pixels) % 32 == 0
        return pixels.flatten(1)[:, :4] + 1 + 0.1 * len(pixels)


def test_batches_never_depend_on_other_shards(tmp_path: Path, reference: Any) -> None:
    """Even with a tower for which every batch size gives other numbers: killed, any ranks, same bytes."""
    images, _ = read_cache_images(reference[0]['dataset'])
    caching, tower = RegionCaching(reference[0]), NoisyTower()

    def fill(folder: Path, ranks: int, stop: int | None = None) -> dict[str, bytes]:
        for rank in range(ranks):
            header = region_header(tower, CropPolicy(), caching.proposals, images_per_shard=5)
            writer = RegionStoreWriter(folder, header, rank, ranks)
            pending = set(writer.pending([image.image_id for image in images]))
            todo = [image for image in images if image.image_id in pending][:stop]
            cache_regions(todo, caching.proposals, tower, CropPolicy(), writer, batch_size=64)
        return contents(folder)

    expected = fill(tmp_path / 'one', 1)
    assert fill(tmp_path / 'two', 2) == expected
    fill(tmp_path / 'again', 1, stop=5)
    assert fill(tmp_path / 'again', 1) == expected


@pytest.mark.parametrize('count', [0, 1, 32, 33])
def test_batches_are_filled_up(count: int) -> None:
    crops = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    found = encode_crops(NoisyTower(), crops)
    filled = max(32, 32 * -(-count // 32)) if count else 0
    assert torch.allclose(found, crops.float().flatten(1)[:, :4] + 1 + 0.1 * filled)


def run_and_kill(section: dict[str, Any], delay: float) -> bool:
    """Cache in a forked process; kill -9 it after ``delay`` seconds. Whether it was killed."""
    caching = RegionCaching(section)
    child = os.fork()
    if child == 0:
        try:
            caching.run(*caching.start())
            os._exit(0)
        except BaseException:
            os._exit(3)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3), 'the job failed by itself'
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded')
def test_kills_at_random_moments_change_nothing(tmp_path: Path, reference: Any) -> None:
    """``OVD_KILLS`` kills; a new store whenever one gets finished."""
    torch.set_num_threads(1)
    section, store = elsewhere(reference, tmp_path), tmp_path / 'store'
    caching = RegionCaching({**section, 'store': str(tmp_path / 'timed')})
    start = time.monotonic()
    caching.run(*caching.start())
    duration = time.monotonic() - start
    moments = random.Random(0)
    killed = finished = attempts = 0
    while killed < KILLS and attempts < 20 * KILLS:
        attempts += 1
        killed += run_and_kill(section, moments.uniform(0, 0.7 * duration))
        if (store / 'manifest.json').exists():
            assert contents(store) == reference[1]
            shutil.rmtree(store)
            finished += 1
    assert killed == KILLS
    cache(section)
    assert contents(store) == reference[1]


def test_full_disk_is_one_line_and_loses_nothing(
    reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, store = elsewhere(reference, tmp_path), tmp_path / 'store'
    flush = os.fsync

    def no_space(handle: int) -> None:
        if (store / 'shard-000002.safetensors').exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(region_shard.os, 'fsync', no_space)
    with pytest.raises(OSError, match=r'shard-000003.*3.*7') as info:
        cache(section)
    assert '\n' not in str(info.value)
    monkeypatch.undo()
    cache(section)
    assert contents(store) == reference[1]


def test_tool_says_sizes_and_is_idempotent(reference: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, elsewhere(reference, tmp_path))
    first = run_tool('cache_clip_regions.py', config)
    assert first.returncode == 0, first.stderr
    assert '13 images, at most 61 regions of 2 crops and 4.8 kB; 0 of 7 shards are done' in first.stdout
    assert 'is complete: 13 images, 60 regions' in first.stdout
    assert 'caching: 100%' in first.stderr
    assert contents(tmp_path / 'store') == reference[1]
    writer, pending = RegionCaching(elsewhere(reference, tmp_path)).start()
    assert pending == []
    assert writer.num_finished == 7
    assert contents(tmp_path / 'store') == reference[1]


def test_tool_with_a_limited_file_size_ends_in_one_line(reference: Any, tmp_path: Path) -> None:
    """The system refuses to write: a real error of the kernel, not a patched function."""
    section = elsewhere(reference, tmp_path)
    config = write_config(tmp_path, section)
    result = run_tool(
        'cache_clip_regions.py', config, launcher=('sh', '-c', 'ulimit -f 2; exec "$0" "$@"', sys.executable)
    )
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith('error: no space left for '), result.stderr
    assert 'Traceback' not in result.stderr
    cache(section)
    assert contents(tmp_path / 'store') == reference[1]


def test_two_processes_of_torchrun_give_the_same_bytes(reference: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, elsewhere(reference, tmp_path))
    launcher = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    result = run_tool('cache_clip_regions.py', config, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('is complete: 13 images') >= 1
    assert contents(tmp_path / 'store') == reference[1]


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'stroe': 'x'}, "unknown key 'stroe', did you mean 'store'"),
        ({'crops': {'modus': 'warp'}}, "region_cache.crops has an unknown key 'modus'"),
        ({'crops': 'warp'}, "region_cache.crops is 'warp', expected a dict"),
        ({'dataset': {'ann_file': 'x.json'}}, "region_cache.dataset lacks 'images'"),
        ({'image_encoder': {}}, "region_cache.image_encoder lacks 'model'"),
        ({'proposals': {'top': 5}}, 'proposals need a file'),
        ({'proposals': {'config': 'x.py'}}, 'x.py and None'),
    ],
)
def test_bad_sections_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RegionCaching(write_task(tmp_path, 2, **changes))


def test_all_problems_of_a_section_come_at_once(tmp_path: Path) -> None:
    section = write_task(tmp_path, 2, stroe='x', crops={'mod': 1})
    with pytest.raises(ValueError, match=r"'stroe'.*; .*'mod'"):
        RegionCaching(section)
    with pytest.raises(ValueError, match='region_cache'):
        RegionCaching(None)  # type: ignore[arg-type]


def test_broken_images_are_named_and_work_before_them_is_kept(tmp_path: Path) -> None:
    section = write_task(tmp_path, 5)
    path = Path(section['dataset']['images']) / '000003.png'
    good = path.read_bytes()
    path.write_bytes(good[:100])
    with pytest.raises(ValueError, match=r'000003\.png'):
        cache(section)
    assert (tmp_path / 'store' / 'shard-000000.safetensors').exists()
    Image.new('RGB', (WIDTH, HEIGHT + 1)).save(path)
    with pytest.raises(ValueError, match=r'4.*64.*49.*64.*48'):
        cache(section)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'000003\.png'):
        cache(section)
    path.write_bytes(good)
    assert len(cache(section)) == 5


def test_store_of_another_tower_or_policy_is_not_continued(reference: Any) -> None:
    section, expected = reference
    other = {**section, 'image_encoder': {**section['image_encoder'], 'pretrained': 'random:1'}}
    with pytest.raises(ValueError, match='clip_fingerprint'):
        cache(other)
    with pytest.raises(ValueError, match=r'pad_square'):
        cache({**section, 'crops': {'mode': 'pad_square'}})
    with pytest.raises(ValueError, match=r'max_regions.*5.*4'):
        cache({**section, 'proposals': {**section['proposals'], 'top': 4}})
    assert contents(Path(section['store'])) == expected


def test_tower_that_overflows_is_refused(tmp_path: Path, reference: Any) -> None:
    class Overflowing(NoisyTower):
        def encode(self, pixels: Tensor) -> Tensor:
            return super().encode(pixels) * float('inf')

    images, _ = read_cache_images(reference[0]['dataset'])
    caching = RegionCaching(reference[0])
    writer = RegionStoreWriter(tmp_path, region_header(Overflowing(), CropPolicy(), caching.proposals))
    writer.pending([image.image_id for image in images])
    with pytest.raises(ValueError, match=r'image 1.*embeddings'):
        cache_regions(images, caching.proposals, Overflowing(), CropPolicy(), writer)


def test_image_files_of_lvis_and_nested_folders(tmp_path: Path) -> None:
    content = {
        'images': [
            {'id': 9, 'height': 4, 'width': 5, 'coco_url': 'http://host/train2017/000000000009.jpg'},
            {'id': 8, 'height': 4, 'width': 5, 'file_name': 'a/b/8.jpg'},
        ],
        'annotations': [],
        'categories': [],
    }
    (tmp_path / 'lvis.json').write_text(json.dumps(content))
    images, boxes = read_cache_images({'ann_file': tmp_path / 'lvis.json', 'images': 'coco'})
    assert boxes is None
    assert images == [
        CacheImage(9, Path('coco/train2017/000000000009.jpg'), (4, 5)),
        CacheImage(8, Path('coco/a/b/8.jpg'), (4, 5)),
    ]


def test_ground_truth_of_novel_classes_is_left_out(tmp_path: Path) -> None:
    section = write_task(tmp_path, 4)
    _, everything = read_cache_images(section['dataset'], with_boxes=True)
    assert everything is not None
    assert sorted(everything) == [1, 2, 3, 4]
    assert everything[1].tolist() == [[5, 6, 35, 26]]
    vocabulary = {'names': ['one', 'two'], 'novel': ['two']}
    _, base = read_cache_images({**section['dataset'], 'vocabulary': vocabulary}, with_boxes=True)
    assert base is not None
    assert sorted(base) == [1, 3]
    _, known = read_cache_images({**section['dataset'], 'vocabulary': ['two']}, with_boxes=True)
    assert known is not None
    assert sorted(known) == [2, 4], 'classes outside the vocabulary have no boxes in training either'


def test_annotation_without_a_box_is_named(tmp_path: Path) -> None:
    section = write_task(tmp_path, 2)
    path = Path(section['dataset']['ann_file'])
    content = json.loads(path.read_text())
    content['annotations'][1]['bbox'] = [1, 2, 3]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'2.*\[1.*2.*3\]'):
        read_cache_images(section['dataset'], with_boxes=True)


def test_ground_truth_alone_and_with_proposals(tmp_path: Path) -> None:
    section = write_task(tmp_path, 4)
    both = cache({**section, 'proposals': {**section['proposals'], 'ground_truth': True, 'nms': 0.7}})
    rows = both.read(1)
    assert rows.boxes[0].tolist() == [5, 6, 35, 26]
    assert rows.scores[0] == 1
    assert both.header['max_regions'] == 6
    assert both.read(3).boxes.tolist() == [[5, 6, 35, 26]]
    alone = cache({**section, 'store': str(tmp_path / 'alone'), 'proposals': {'ground_truth': True}})
    assert [alone.count(image_id) for image_id in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert alone.header['proposals']['source'] == 'ground truth'


def test_real_photographs(tmp_path: Path) -> None:
    """COCO pictures of every size through the real path, ground truth as proposals."""
    data = shared_path('data/coco_mini')
    section = write_task(tmp_path, 1)
    section['dataset'] = {
        'ann_file': str(data / 'annotations/instances_val2017.json'),
        'images': str(data / 'val2017'),
        'vocabulary': 'coco',
        'split': 'coco48_17',
    }
    section['proposals'] = {'ground_truth': True}
    store = cache(section, limit=6)
    norms = np.concatenate(
        [
            np.linalg.norm(store.read(i).embeddings.astype(np.float32), axis=1)
            for i in store.image_ids.tolist()
        ]
    )
    assert len(norms) == store.num_rows > 6
    assert np.abs(norms - 1).max() < 2e-3


def test_help_of_the_tools() -> None:
    for name in ('cache_clip_regions.py', 'region_store.py'):
        if (ROOT / 'tools' / name).exists():
            assert run_tool(name, '--help').returncode == 0


def test_training_reads_a_store_only_if_it_was_made_by_the_section(reference: Any, tmp_path: Path) -> None:
    section = reference[0]

    def config(read: str, **changes: Any) -> Config:
        steps = [{'type': 'ovd.LoadImage'}, {'type': 'ovd.LoadRegionEmbeddings', 'store': read}]
        dataset = {'type': 'RepeatDataset', 'dataset': {'pipeline': steps}}
        return Config({'region_cache': {**section, **changes}, 'train_dataloader': {'dataset': dataset}})

    prepare_training(config(section['store']))
    with pytest.raises(ValueError, match=r'pad_square'):
        prepare_training(config(section['store'], crops={'mode': 'pad_square'}))
    prepare_training(config('imported', crops={'mode': 'pad_square'}))
    absent = str(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match=r'cache_clip_regions.py'):
        prepare_training(config(absent, store=absent))
