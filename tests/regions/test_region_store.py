"""RegionStore: layout, resume, ranks, and the refusal of every damaged, foreign or mismatching file."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ovd.regions import shard as region_shard
from ovd.regions.proposal_files import read_proposals
from ovd.regions.store import RegionStore, RegionStoreWriter, images_per_shard

DIM, MOST, PER_SHARD = 8, 5, 3
IDS = [7, 3, 90, 12, 5, 41, 8, 66, 2, 30]


def header(**changes: Any) -> dict[str, Any]:
    return {
        'clip_fingerprint': 'abcd',
        'embed_dim': DIM,
        'max_regions': MOST,
        'crops': {'mode': 'warp'},
        'proposals': {'sha256': '11'},
        'images_per_shard': PER_SHARD,
        **changes,
    }


def rows_of(image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that depend on the id only; image 12 has none, as an image without proposals does."""
    random = np.random.default_rng(image_id)
    count = 0 if image_id == 12 else 1 + image_id % MOST
    boxes = random.random((count, 4), np.float32) * 100
    return boxes, random.random(count, np.float32), random.standard_normal((count, DIM)).astype(np.float16)


def write(
    folder: Path, ids: list[int] = IDS, stop: int | None = None, ranks: int = 1, **changes: Any
) -> None:
    """Fill a store, rank after rank; ``stop`` ends each rank after so many images, as a kill would."""
    for rank in range(ranks):
        writer = RegionStoreWriter(folder, header(**changes), rank, ranks)
        for image_id in writer.pending(ids)[:stop]:
            writer.add(image_id, *rows_of(image_id))
        writer.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / 'store')
    return tmp_path / 'store'


def test_rows_come_back_as_written(store: Path) -> None:
    reader = RegionStore(store)
    assert len(reader) == len(IDS)
    assert reader.image_ids.tolist() == IDS
    assert 90 in reader
    assert 91 not in reader
    for image_id in IDS:
        for got, given in zip(reader.read(image_id), rows_of(image_id)):
            assert got.dtype == given.dtype
            assert got.shape == given.shape
            assert (got == given).all()
        assert reader.count(image_id) == len(rows_of(image_id)[1])
    assert reader.num_rows == sum(reader.count(image_id) for image_id in IDS)


def test_rows_are_read_only_views_of_the_file(store: Path) -> None:
    rows = RegionStore(store).read(7)
    assert not rows.embeddings.flags.writeable
    assert not rows.embeddings.flags.owndata


def test_header_tells_settings_and_counts(store: Path) -> None:
    found = RegionStore(store).header
    assert found['image_count'] == 10
    assert found['rows'] == RegionStore(store).num_rows
    assert {key: found[key] for key in header()} == header()


def test_one_image_without_regions_is_a_store(tmp_path: Path) -> None:
    write(tmp_path / 'store', ids=[12])
    rows = RegionStore(tmp_path / 'store').read(12)
    assert rows.boxes.shape == (0, 4)
    assert rows.embeddings.shape == (0, DIM)
    assert RegionStore(tmp_path / 'store').verify() == 1


def test_shards_are_plain_safetensors(store: Path) -> None:
    tensors = load_file(store / 'shard-000001.safetensors')
    assert tensors['image_ids'].tolist() == IDS[3:6]
    assert tensors['first_row'].tolist() == [0, 0, 1, 3]


def test_tensors_are_accepted(tmp_path: Path) -> None:
    writer = RegionStoreWriter(tmp_path / 'store', header())
    writer.pending([4])
    writer.add(4, *(torch.from_numpy(array) for array in rows_of(4)))
    assert writer.close() is not None
    assert (RegionStore(tmp_path / 'store').read(4).embeddings == rows_of(4)[2]).all()


def test_default_shard_size() -> None:
    assert images_per_shard(300) == 27
    assert images_per_shard(16) == 512
    assert images_per_shard(100_000) == 1


@pytest.mark.parametrize('ranks', [2, 3, 7])
def test_files_do_not_depend_on_the_number_of_ranks(tmp_path: Path, store: Path, ranks: int) -> None:
    write(tmp_path / 'many', ranks=ranks)
    assert contents(tmp_path / 'many') == contents(store)


@pytest.mark.parametrize('stop', [0, 1, 3, 4, 8])
def test_interrupted_store_is_continued_to_the_same_bytes(tmp_path: Path, store: Path, stop: int) -> None:
    target = tmp_path / 'again'
    write(target, stop=stop)
    with pytest.raises(ValueError, match='unfinished'):
        RegionStore(target)
    (target / '.shard-000001.safetensors.rank0.tmp').write_bytes(b'half a shard')
    (target / '.shard-000002.safetensors.rank5.tmp').write_bytes(b'half a shard')
    assert RegionStoreWriter(target, header()).pending(IDS) == IDS[stop // PER_SHARD * PER_SHARD :]
    write(target)
    assert contents(target) == contents(store)


def test_damaged_shard_of_an_interrupted_store_is_named_with_the_remedy(tmp_path: Path, store: Path) -> None:
    target = tmp_path / 'again'
    write(target, stop=6)
    shard = target / 'shard-000001.safetensors'
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r'shard-000001\.safetensors'):
        write(target)
    shard.unlink()
    write(target)
    assert contents(target) == contents(store)


def test_interrupted_ranks_are_continued_by_other_ranks(tmp_path: Path, store: Path) -> None:
    write(tmp_path / 'again', stop=3, ranks=3)
    write(tmp_path / 'again', ranks=2)
    assert contents(tmp_path / 'again') == contents(store)


def test_finished_store_has_nothing_pending(store: Path) -> None:
    before = contents(store)
    write(store, stop=0)
    assert contents(store) == before


def test_store_of_the_first_images_is_extended(tmp_path: Path, store: Path) -> None:
    target = tmp_path / 'grown'
    write(target, ids=IDS[:4])
    assert len(RegionStore(target)) == 4
    writer = RegionStoreWriter(target, header())
    assert writer.pending(IDS) == IDS[3:]
    writer.close()
    with pytest.raises(ValueError, match='unfinished'):
        RegionStore(target)
    write(target)
    assert contents(target) == contents(store)


def test_store_is_never_shrunk(store: Path) -> None:
    before = contents(store)
    with pytest.raises(ValueError, match=r'10.*4'):
        write(store, ids=IDS[:4])
    assert contents(store) == before


def test_other_images_are_refused(store: Path) -> None:
    with pytest.raises(ValueError):
        write(store, ids=IDS[::-1])


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'clip_fingerprint': 'ffff'}, r"clip_fingerprint.*'abcd'.*'ffff'"),
        ({'crops': {'mode': 'pad_square'}}, 'pad_square'),
        ({'proposals': {'sha256': '22'}}, 'proposals is'),
    ],
)
def test_store_of_other_settings_is_not_continued(store: Path, changes: dict[str, Any], match: str) -> None:
    before = contents(store)
    with pytest.raises(ValueError, match=match):
        write(store, **changes)
    assert contents(store) == before


def test_what_made_the_store_is_recorded_but_not_compared(tmp_path: Path) -> None:
    write(tmp_path / 'store', stop=3, made_with={'code_version': '1'})
    write(tmp_path / 'store', made_with={'code_version': '2'})
    assert RegionStore(tmp_path / 'store').header['made_with'] == {'code_version': '1'}


def test_check_lists_every_difference(store: Path) -> None:
    reader = RegionStore(store)
    reader.check(clip_fingerprint='abcd', crops={'mode': 'warp'}, embed_dim=DIM)
    with pytest.raises(ValueError, match=r"clip_fingerprint.*'abcd'.*'dcba'.*embed_dim.*8.*9"):
        reader.check(clip_fingerprint='dcba', embed_dim=9)


def test_missing_image_is_named(store: Path) -> None:
    with pytest.raises(KeyError, match='1234'):
        RegionStore(store).read(1234)


def test_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RegionStore(tmp_path / 'nowhere')


def refused(store: Path, image_id: int, match: str) -> None:
    """Reading, verifying and continuing must all name the bad shard."""
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        RegionStore(store).read(image_id)
    with pytest.raises(ValueError, match=match):
        RegionStore(store).verify()


@pytest.mark.parametrize('keep', [0, 5, 100, -1])
def test_truncated_shard_is_refused(store: Path, keep: int) -> None:
    path = store / 'shard-000002.safetensors'
    path.write_bytes(path.read_bytes()[:keep])
    refused(store, 8, 'shard-000002.safetensors')
    with pytest.raises(ValueError, match='shard-000002'):
        write(store)
    assert RegionStore(store).read(7) is not None


def test_every_single_bit_flip_is_found(store: Path) -> None:
    path = store / 'shard-000002.safetensors'
    good = path.read_bytes()
    for byte in np.random.default_rng(0).permutation(len(good))[:200].tolist():
        bad = bytearray(good)
        bad[byte] ^= 1 << (byte % 8)
        path.write_bytes(bad)
        with pytest.raises(ValueError, match='shard-000002'):
            RegionStore(store).verify()


def test_flipped_row_is_refused_on_first_read(store: Path) -> None:
    path = store / 'shard-000002.safetensors'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'shard-000002.*image 2'):
        RegionStore(store).read(2)
    assert len(RegionStore(store).read(8).scores) == 4
    assert len(RegionStore(store, check_rows=False).read(2).scores) == 3
    with pytest.raises(ValueError, match=r'shard-000002'):
        write(store)


def test_foreign_shard_is_refused(tmp_path: Path, store: Path) -> None:
    write(tmp_path / 'other', clip_fingerprint='ffff')
    name = 'shard-000001.safetensors'
    (store / name).write_bytes((tmp_path / 'other' / name).read_bytes())
    refused(store, 5, f'{name} belongs to another store')
    with pytest.raises(ValueError, match=f'{name}'):
        write(store)


def test_swapped_shards_are_refused(store: Path) -> None:
    first, second = (store / region_shard.shard_name(index) for index in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    refused(store, 7, 'shard-000000.safetensors belongs to another store')


def test_file_that_is_no_shard_is_refused(store: Path) -> None:
    (store / 'shard-000000.safetensors').write_bytes((store / 'index.safetensors').read_bytes())
    refused(store, 7, 'shard-000000.safetensors')


def test_missing_and_additional_shards_are_reported(store: Path) -> None:
    (store / 'shard-000009.safetensors').write_bytes((store / 'shard-000000.safetensors').read_bytes())
    (store / 'shard-000001.safetensors').unlink()
    with pytest.raises(ValueError, match=r'shard-000001.*missing.*shard-000009.*not'):
        RegionStore(store).verify()


@pytest.mark.parametrize('name', ['manifest.json', 'index.safetensors'])
def test_damaged_tables_are_refused(store: Path, name: str) -> None:
    (store / name).write_bytes((store / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=f'{name}'):
        RegionStore(store)


def test_sampled_verification(store: Path) -> None:
    assert RegionStore(store).verify(sample=0.5) == 2


def test_reader_survives_pickling_with_open_shards(store: Path) -> None:
    reader = RegionStore(store)
    reader.read(7)
    copy = pickle.loads(pickle.dumps(reader))
    assert (copy.read(7).embeddings == rows_of(7)[2]).all()


class StoreDataset(torch.utils.data.Dataset):
    def __init__(self, folder: Path):
        self.reader = RegionStore(folder)
        self.reader.read(IDS[0])

    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, index: int) -> float:
        return float(self.reader.read(IDS[index]).embeddings.astype(np.float64).sum())


def test_reader_works_in_forked_workers(store: Path) -> None:
    dataset = StoreDataset(store)
    loaded = torch.cat(list(torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2)))
    assert loaded.tolist() == [dataset[index] for index in range(len(IDS))]


def test_number_of_mapped_shards_is_bounded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ovd.regions.store._OPEN_SHARDS', 2)
    reader = RegionStore(store)
    for image_id in IDS * 2:
        assert (reader.read(image_id).embeddings == rows_of(image_id)[2]).all()
        assert len(reader._open) <= 2


@pytest.mark.parametrize(
    ('position', 'value', 'match'),
    [
        (0, np.zeros((2, 3)), r'7.*\[m.*4\]'),
        (2, np.zeros((3, 9)), '7'),
        (2, np.full((3, DIM), np.nan), '7'),
        (2, np.full((3, DIM), 1e6), r'7.*float16'),
        (1, np.zeros(2), '7'),
    ],
)
@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
def test_bad_rows_are_refused(tmp_path: Path, position: int, value: np.ndarray, match: str) -> None:
    writer = RegionStoreWriter(tmp_path / 'store', header())
    writer.pending(IDS)
    rows = [np.zeros((3, 4)), np.zeros(3), np.zeros((3, DIM))]
    rows[position] = value
    with pytest.raises(ValueError, match=match):
        writer.add(7, *rows)


def test_too_many_rows_and_wrong_order_are_refused(tmp_path: Path) -> None:
    writer = RegionStoreWriter(tmp_path / 'store', header())
    writer.pending(IDS)
    with pytest.raises(ValueError, match='m <= 5'):
        writer.add(7, np.zeros((6, 4)), np.zeros(6), np.zeros((6, DIM)))
    with pytest.raises(ValueError, match=r'3.*7'):
        writer.add(3, *rows_of(3))


def test_bad_plans_and_headers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        RegionStoreWriter(tmp_path / 'store', header()).pending([1, 2, 1])


def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip('fcntl')
    first = RegionStoreWriter(tmp_path / 'store', header())
    with pytest.raises(ValueError):
        RegionStoreWriter(tmp_path / 'store', header())
    first.close()
    RegionStoreWriter(tmp_path / 'store', header()).close()


def test_full_disk_keeps_what_is_there(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / 'full'
    flush = os.fsync

    def no_space(handle: int) -> None:
        if (target / 'shard-000001.safetensors').exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(region_shard.os, 'fsync', no_space)
    with pytest.raises(OSError, match=r'shard-000002.*2.*4'):
        write(target)
    monkeypatch.undo()
    assert not list(target.glob('.*'))
    write(target)
    assert contents(target) == contents(store)


def test_manifest_is_plain_json(store: Path) -> None:
    manifest = json.loads((store / 'manifest.json').read_text())
    assert [entry['images'] for entry in manifest['shards']] == [3, 3, 3, 1]
    assert manifest['format'] == 'ovd.region_store/1'


def test_a_store_may_have_more_shards_than_a_process_may_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('ovd.regions.store._OPEN_SHARDS', 8)
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/dev/fd')) + 20, hard))
    try:
        ids = list(range(1, 41))
        write(tmp_path / 'store', ids, images_per_shard=1)
        assert len(read_proposals(tmp_path / 'store', ids).boxes) == RegionStore(tmp_path / 'store').num_rows
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
