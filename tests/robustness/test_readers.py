"""Annotation files with one damaged field give the right result, or one line with file and id."""

import copy
import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovd.datasets.annotations import read_annotations
from ovd.datasets.captions.shard_reader import Part, ShardReader
from ovd.datasets.detection.base_novel import OpenVocabularyDataset

RIGHT: dict[str, Any] = {
    'images': [{'id': 901, 'file_name': 'a.png', 'height': 40, 'width': 50}],
    'categories': [{'id': 902, 'name': 'cat'}],
    'annotations': [
        {
            'id': 903,
            'image_id': 901,
            'category_id': 902,
            'bbox': [5, 6, 10, 12],
            'area': 120,
            'iscrowd': 0,
            'segmentation': [[5, 6, 15, 6, 15, 18]],
        }
    ],
}
FIELDS = [(kind, key) for kind, (item, *_) in RIGHT.items() for key in item]
MISSING = '__missing__'
VALUES = st.one_of(
    st.just(MISSING),
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.floats(), st.integers(-9, 99), st.none(), st.text(max_size=2)), max_size=8),
    st.lists(st.lists(st.floats(), max_size=9), max_size=2),
    st.dictionaries(st.sampled_from(['size', 'counts', 'x']), st.lists(st.integers(-9, 2000), max_size=3)),
)


def with_shape(results: dict[str, Any]) -> dict[str, Any]:
    """The shape of the image, as if it were loaded."""
    return {**results, 'ori_shape': (40, 50)}


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_one_damaged_field(tmp_path: Path, field: tuple[str, str], value: Any) -> None:
    content = copy.deepcopy(RIGHT)
    kind, key = field
    if value == MISSING:
        del content[kind][0][key]
    else:
        content[kind][0][key] = value
    file = tmp_path / 'damaged.json'
    file.write_text(json.dumps(content))
    pipeline = [with_shape, {'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    try:
        dataset = OpenVocabularyDataset(
            ann_file=str(file), pipeline=pipeline, missing_images='unchecked', serialize_data=False
        )
    except ValueError as error:
        message = str(error)
        assert 'damaged.json' in message
        assert '\n' not in message
        assert any(name in message for name in ('901', '902', '903', f'{kind}[0]', repr(value)))
        return
    (instance,) = dataset[0]['instances'] or [{'bbox': None}]
    if key != 'bbox' and instance['bbox'] is not None:
        assert instance['bbox'] == [5, 6, 15, 18]


def test_deeply_nested_file(tmp_path: Path) -> None:
    file = tmp_path / 'deep.json'
    file.write_text('[' * 100_000)
    with pytest.raises(ValueError, match=r'deep\.json'):
        read_annotations(file)


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, 'w') as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = 'elsewhere' if kind != tarfile.REGTYPE else ''
    return info, data


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_bad_members_cost_their_sample_only(tmp_path: Path, kind: bytes) -> None:
    shard = write_tar(
        tmp_path / 'shard.tar',
        [
            *(member('1.jpg', b'', kind), member('1.txt', b'one')),
            *(member('2.jpg', b'x'), member('2.json', b'[' * 100_000)),
            *(member('3.jpg', b'x' * 999), member('3.txt', b'three')),
            *(member('4.jpg', b'x'), member('4.txt', b'four')),
        ],
    )
    reader = ShardReader(max_member_bytes=100_000)
    assert [pair.caption for pair in reader.read(Part(str(shard)))] == ['three', 'four']
    reader = ShardReader(max_member_bytes=500)
    assert [pair.caption for pair in reader.read(Part(str(shard)))] == ['four']
    with pytest.raises(ValueError, match=r'1\.jpg'):
        list(ShardReader('refuse').read(Part(str(shard))))


def test_large_extended_header_is_not_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / 'shard.tar', [member('a', b'x' * (2 << 20), tarfile.XHDTYPE)])
    with pytest.raises(ValueError, match='extended'):
        list(ShardReader('refuse').read(Part(str(shard))))
