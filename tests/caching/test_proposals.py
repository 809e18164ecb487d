"""Proposal files and filters, the detector as a source, and the importers: right boxes, nothing executed."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovd.caching.clip_regions import RegionCaching
from ovd.encoders.loading import load_clip
from ovd.models.proposals import DetectorProposals, Proposals, build_proposals, select_proposals
from ovd.regions.importers import DETPRO_CROPS, import_detpro, import_oadp
from ovd.regions.proposal_files import read_proposals
from ovd.regions.store import RegionStore
from tests.helpers import ROOT
from tests.toys.regions import contents, run_tool, write_task
from tools import region_store

IDS = [4, 2, 9]
BOXES = {
    4: [[0.0, 0, 10, 10, 0.9], [5, 5, 30, 30, 0.8]],
    2: [],
    9: [[1.5, 2, 11, 22.5, 0.7]],
}


def arrays() -> list[np.ndarray]:
    return [np.array(BOXES[image_id], np.float32).reshape(-1, 5) for image_id in IDS]


def write(folder: Path, kind: str) -> Path:
    path = folder / f'proposals.{kind}'
    if kind == 'json':
        results = [
            {'image_id': i, 'category_id': 1, 'bbox': [x1, y1, x2 - x1, y2 - y1], 'score': score}
            for i, rows in BOXES.items()
            for x1, y1, x2, y2, score in rows
        ]
        path.write_text(json.dumps(results))
    elif kind == 'npz':
        joined = np.concatenate(arrays())
        counts = [len(array) for array in arrays()]
        np.savez(path, image_ids=IDS, counts=counts, boxes=joined[:, :4], scores=joined[:, 4])
    else:
        path.write_bytes(pickle.dumps(arrays()))
    return path


@pytest.mark.parametrize('kind', ['json', 'npz', 'pkl'])
def test_formats_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    table = read_proposals(write(tmp_path, kind), IDS)
    for image_id, expected in zip(IDS, arrays()):
        boxes, scores = table.rows(image_id)
        assert boxes.dtype == scores.dtype == np.float32
        assert np.array_equal(boxes, expected[:, :4])
        assert np.array_equal(scores, expected[:, 4])
        assert table.count(image_id) == len(expected)
    assert len(table.sha256) == 64


@pytest.mark.parametrize('protocol', range(6))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / 'p.pkl'
    path.write_bytes(pickle.dumps([array[:, :4] for array in arrays()], protocol=protocol))
    boxes, scores = read_proposals(path, IDS).rows(9)
    assert boxes.tolist() == [[1.5, 2, 11, 22.5]]
    assert scores.tolist() == [1.0]


def test_image_missing_from_a_file(tmp_path: Path) -> None:
    assert read_proposals(write(tmp_path, 'json'), IDS).count(77) == 0
    with pytest.raises(KeyError, match=r'proposals\.npz.*77'):
        read_proposals(write(tmp_path, 'npz'), IDS).rows(77)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f'open({str(self.path)!r}, "w").close()',)


@pytest.mark.parametrize('place', ['list', 'array'])
def test_trapped_pickle_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    trap = Trap(tmp_path / 'sprung')
    content = [trap] if place == 'list' else [np.array([trap], dtype=object)]
    (tmp_path / 'p.pkl').write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r'p.pkl: refused.*builtins.exec'):
        read_proposals(tmp_path / 'p.pkl', [1])
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize('name', ['system', 'load', 'memmap', 'fromfile'])
def test_numpy_functions_are_not_reachable(tmp_path: Path, name: str) -> None:
    """A hand-written pickle that calls numpy.<name>('x')."""
    (tmp_path / 'p.pkl').write_bytes(f'cnumpy\n{name}\n(Vx\ntR.'.encode())
    with pytest.raises(ValueError, match=f'numpy.{name}'):
        read_proposals(tmp_path / 'p.pkl', [1])


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('p.json', b'{"a": 1}', 'p.json'),
        ('p.json', b'[1', 'p.json'),
        ('p.json', b'[{"image_id": 4}]', "'bbox'"),
        ('p.json', b'[{"image_id": 4, "bbox": [1, 2]}]', 'p.json'),
        ('p.json', b'[{"image_id": 4, "bbox": [1, 2, NaN, 4]}]', '4'),
        ('p.json', b'[{"image_id": 77, "bbox": [1, 2, 3, 4]}]', 'p.json'),
        ('p.npz', b'nothing', 'p.npz'),
        ('p.txt', b'', 'p.txt'),
        ('p.pkl', b'\x80\x04K', r'p.pkl.*pickle|p.pkl'),
        (
            'p.pkl',
            pickle.dumps(arrays()[:2]),
            r'3.*2',
        ),
        ('p.pkl', pickle.dumps({'a': 1}), 'dict'),
        ('p.pkl', pickle.dumps([np.zeros((2, 3))] * 3), r'4.*float64 \[2.*3\]'),
        ('p.pkl', pickle.dumps([np.array(['a'], dtype=object)] * 3), 'numpy.dtype'),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_proposals(tmp_path / name, IDS)


def test_npz_that_contradicts_itself_or_hides_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / 'p.npz', image_ids=IDS, counts=[1, 1, 1], boxes=np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r'3.*3.*2.*2'):
        read_proposals(tmp_path / 'p.npz', IDS)
    np.savez(tmp_path / 'q.npz', image_ids=np.array([Trap(tmp_path / 'sprung')], dtype=object))
    with pytest.raises(ValueError, match=r'q\.npz'):
        read_proposals(tmp_path / 'q.npz', IDS)
    assert not (tmp_path / 'sprung').exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'x.json'):
        read_proposals(tmp_path / 'x.json', IDS)


def test_selection_by_hand() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 20, 20],  # overlaps the next by 18 / 22 > 0.7
            [0.0, 0, 20, 18],
            [30.0, 30, 90, 90],  # clipped to 20 x 20
            [0.0, 0, 7.9, 20],  # too small
            [45.0, 10, 90, 30],  # too small once clipped
            [20.0, 0, 40, 20],
        ]
    )
    scores = torch.tensor([0.5, 0.6, 0.9, 1.0, 1.0, 0.5])
    found, kept = select_proposals(boxes, scores, (50, 50), 10, 0.7, 8)
    assert found.tolist() == [[30, 30, 50, 50], [0, 0, 20, 18], [20, 0, 40, 20]]
    assert kept.tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert len(select_proposals(boxes, scores, (50, 50), 2, 0.7, 8)[0]) == 2
    assert len(select_proposals(boxes, scores, (50, 50), 10, None, 8)[0]) == 4
    assert len(select_proposals(boxes[:0], scores[:0], (50, 50), 10, 0.7, 8)[0]) == 0


def test_ties_keep_their_order() -> None:
    boxes = torch.arange(200.0)[:, None] * 10 + torch.tensor([0.0, 0, 9, 9])
    found, _ = select_proposals(boxes, torch.full((200,), 0.5), (3000, 3000), 50, 0.7, 8)
    assert torch.equal(found, boxes[:50])


def test_ground_truth_comes_first_and_suppresses() -> None:
    def detector(images: list[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (torch.tensor([[0.0, 0, 20, 19], [30, 30, 45, 45]]), torch.tensor([0.9, 0.3])) for _ in images
        ]

    truth = {1: np.array([[0, 0, 20, 20], [1, 0, 20, 20]], np.float32)}
    proposals = Proposals(detector=detector, ground_truth=truth, top=4, min_side=8)  # type: ignore[arg-type]
    image = np.zeros((50, 50, 3), np.uint8)
    (boxes, scores), (without, _) = proposals([(1, image), (2, image)])
    assert boxes.tolist() == [[0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 45, 45]]
    assert scores.tolist() == pytest.approx([1, 1, 0.3])
    assert without.tolist() == [[0, 0, 20, 19], [30, 30, 45, 45]]
    assert proposals.max_regions == 6
    assert proposals.max_rows([1, 2]) == 10


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({}, 'proposals need a file'),
        ({'table': 1, 'detector': 1}, 'not both'),
    ],
)
def test_bad_rules_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Proposals(**options)


DETECTOR = """
default_scope = 'mmdet'
neck = dict(type='FPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3)
backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, out_indices=(1, 2, 3))
rpn_head = dict(
    type='RPNHead', in_channels=16, feat_channels=16,
    anchor_generator=dict(type='AnchorGenerator', scales=[3], ratios=[1.0], strides=[8, 16, 32]))
rpn = dict(nms_pre=100, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
test_pipeline = [
    dict(type='ovd.LoadImage'), dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs')]
test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=test_pipeline))
_preprocessor = dict(
    type='DetDataPreprocessor', mean=[100.0, 110, 120], std=[50.0, 50, 50], bgr_to_rgb=True,
    pad_size_divisor=32)
"""
ONE_STAGE = """
model = dict(type='RPN', data_preprocessor=_preprocessor, backbone=backbone, neck=neck, rpn_head=rpn_head,
             train_cfg=None, test_cfg=dict(rpn=rpn))
"""
TWO_STAGE = """
model = dict(
    type='FasterRCNN', data_preprocessor=_preprocessor, backbone=backbone, neck=neck, rpn_head=rpn_head,
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=3), out_channels=16,
            featmap_strides=[8, 16, 32]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=8, roi_feat_size=3, num_classes=2)),
    train_cfg=None, test_cfg=dict(rpn=rpn,
    rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)))
"""


@pytest.fixture(params=[ONE_STAGE, TWO_STAGE], ids=['rpn', 'two_stage'])
def detector_files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A config and random weights."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from ovd.registry import MODELS

    path = tmp_path / 'detector.py'
    path.write_text(DETECTOR + request.param)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(path).model)
    torch.save(model.state_dict(), tmp_path / 'detector.pth')
    return path, tmp_path / 'detector.pth'


def test_detector_gives_boxes_in_original_pixels(detector_files: tuple[Path, Path]) -> None:
    detector = DetectorProposals(*detector_files)
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    boxes, scores = detector([small])[0]
    assert boxes.shape == (len(scores), 4)
    assert 0 < len(scores) <= 20
    assert boxes[:, 0::2].max() <= 64
    assert boxes[:, 1::2].max() <= 48
    assert boxes[:, 2].max() > 48, 'boxes must be in original pixels'
    again, _ = DetectorProposals(*detector_files)([small])[0]
    assert torch.equal(boxes, again)


def test_detector_with_merged_norms_is_the_model(detector_files: tuple[Path, Path]) -> None:
    """The config's model with statistics that are not trivial, run by hand, image by image."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from ovd.registry import MODELS

    config, checkpoint = detector_files
    weights = torch.load(checkpoint)
    for name in weights:
        if name.endswith(('running_mean', 'running_var')):
            weights[name] = 0.5 + torch.rand_like(weights[name])
    torch.save(weights, checkpoint)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (96, 96, 3), dtype=np.uint8), np.full((64, 96, 3), 90, np.uint8)]
    found = DetectorProposals(config, checkpoint)([images[0], images[1], images[0]])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model: Any = MODELS.build(Config.fromfile(config).model).eval()
    model.load_state_dict(weights)
    for image, (boxes, scores) in zip(images, found):
        inputs = torch.from_numpy(image).permute(2, 0, 1).float()
        inputs = (inputs - torch.tensor([100.0, 110, 120]).view(3, 1, 1)) / 50
        meta = {'img_shape': image.shape[:2], 'ori_shape': image.shape[:2], 'scale_factor': (1.0, 1.0)}
        head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
        with torch.no_grad():
            outputs = head(model.extract_feat(inputs[None]))
            expected = head.predict_by_feat(*outputs, batch_img_metas=[meta], rescale=True)[0]
        assert torch.allclose(scores, expected.scores, atol=1e-4)
        assert torch.allclose(boxes, expected.bboxes, atol=1e-2)
    assert torch.allclose(found[0][0], found[2][0], atol=1e-3)


def test_detector_sees_the_channels_in_the_order_of_training(detector_files: tuple[Path, Path]) -> None:
    """The pipeline gets BGR, as from a file; the preprocessor turns it to RGB."""
    detector, seen = DetectorProposals(*detector_files), []
    detector.model.data_preprocessor.register_forward_hook(
        lambda module, args, output: seen.append(output['inputs'])
    )
    detector([np.tile(np.array([200, 110, 70], np.uint8), (96, 96, 1))])
    assert seen[0][0, :, 48, 48].tolist() == [2.0, 0.0, -1.0]


def test_detector_as_the_source_of_a_store(detector_files: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = detector_files
    section = write_task(
        tmp_path, 3, proposals={'config': str(config), 'checkpoint': str(checkpoint), 'top': 4, 'min_side': 2}
    )
    for rank in (0, 1):
        caching = RegionCaching(section)
        caching.run(*caching.start(rank, 2))
    store = RegionStore(section['store'])
    assert store.header['proposals']['source'] == 'detector'
    assert store.header['max_regions'] == 4
    assert 0 < store.num_rows <= 12
    two_ranks = contents(tmp_path / 'store')
    again = RegionCaching({**section, 'store': str(tmp_path / 'again')})
    again.run(*again.start())
    assert contents(tmp_path / 'again') == two_ranks


def test_detector_without_weights_or_of_another_model(
    detector_files: tuple[Path, Path], tmp_path: Path
) -> None:
    config, checkpoint = detector_files
    with pytest.raises(FileNotFoundError, match=r'x.pth'):
        build_proposals({'config': str(config), 'checkpoint': 'x.pth'}, [1], None)
    torch.save({'weight': torch.zeros(3)}, checkpoint)
    with pytest.raises(ValueError, match=r'detector.pth'):
        DetectorProposals(config, checkpoint)


def test_store_as_the_source_of_another(tmp_path: Path) -> None:
    section = write_task(tmp_path, 4)
    caching = RegionCaching(section)
    caching.run(*caching.start())
    other = {
        **section,
        'store': str(tmp_path / 'other'),
        'crops': {'scales': [1.0]},
        'proposals': {'file': section['store'], 'top': 5, 'nms': None},
    }
    caching = RegionCaching(other)
    caching.run(*caching.start())
    first, second = RegionStore(section['store']), RegionStore(other['store'])
    for image_id in first.image_ids.tolist():
        assert np.array_equal(first.read(image_id).boxes, second.read(image_id).boxes)
        assert np.array_equal(first.read(image_id).scores, second.read(image_id).scores)


def write_detpro(folder: Path, zipped: bool) -> Path:
    """Tensors [n, 8] of norm 2 for the boxes above."""
    for image_id, array in zip(IDS, arrays()):
        target = folder / 'train2017' / f'{image_id:012d}.pth'
        target.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(image_id)
        torch.save(2 * torch.nn.functional.normalize(torch.randn(len(array), 8, generator=generator)), target)
    if not zipped:
        return folder
    with zipfile.ZipFile(folder / 'all.zip', 'w') as archive:
        for path in (folder / 'train2017').iterdir():
            archive.write(path, f'lvis_clip_image_embedding/train2017/{path.name}')
    return folder / 'all.zip'


@pytest.mark.parametrize('zipped', [False, True])
def test_detpro_import(tmp_path: Path, zipped: bool) -> None:
    table = read_proposals(write(tmp_path, 'pkl'), IDS)
    manifest = import_detpro(tmp_path / 'store', write_detpro(tmp_path, zipped), table, IDS, 'abcd')
    assert manifest is not None
    store = RegionStore(tmp_path / 'store')
    store.check(clip_fingerprint='abcd', crops=DETPRO_CROPS, embed_dim=8, max_regions=2)
    for image_id, array in zip(IDS, arrays()):
        rows = store.read(image_id)
        assert np.array_equal(rows.boxes, array[:, :4])
        stored = torch.load(tmp_path / 'train2017' / f'{image_id:012d}.pth')
        assert np.allclose(rows.embeddings, stored / 2, atol=1e-3)


def test_detpro_import_notices_what_does_not_fit(tmp_path: Path) -> None:
    folder = write_detpro(tmp_path, zipped=False)
    table = read_proposals(write(tmp_path, 'pkl'), sorted(IDS))
    with pytest.raises(ValueError, match=r'4.*2.*0'):
        import_detpro(tmp_path / 'store', folder, table, IDS, 'abcd')
    table = read_proposals(write(tmp_path, 'pkl'), IDS)
    (folder / 'train2017' / f'{9:012d}.pth').unlink()
    with pytest.raises(KeyError, match='9'):
        import_detpro(tmp_path / 'store2', folder, table, IDS, 'abcd')
    with pytest.raises(FileNotFoundError):
        import_detpro(tmp_path / 'store3', tmp_path / 'nowhere', table, IDS, 'abcd')
    with pytest.raises(ValueError):
        import_detpro(tmp_path / 'store4', tmp_path / 'proposals.pkl', table, IDS, 'abcd')


def test_trapped_embedding_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = write_detpro(tmp_path, zipped=False)
    torch.save(Trap(tmp_path / 'sprung'), folder / 'train2017' / f'{4:012d}.pth')
    table = read_proposals(write(tmp_path, 'pkl'), IDS)
    with pytest.raises(ValueError, match=r'000000000004.pth: refused'):
        import_detpro(tmp_path / 'store', folder, table, IDS, 'abcd')
    assert not (tmp_path / 'sprung').exists()


def test_oadp_import(tmp_path: Path) -> None:
    for image_id, array in zip(IDS, arrays()):
        torch.save(
            {
                'embeddings': torch.ones(len(array), 6).half(),
                'bboxes': torch.from_numpy(array[:, :4]).half(),
                'objectness': torch.from_numpy(array[:, 4]).half(),
            },
            tmp_path / f'{image_id:012d}.pth',
        )
    import_oadp(tmp_path / 'store', tmp_path, IDS, 'abcd')
    store = RegionStore(tmp_path / 'store')
    assert store.read(9).boxes.tolist() == [[1.5, 2, 11, 22.5]]
    assert store.read(4).scores.tolist() == pytest.approx([0.9, 0.8], abs=1e-3)
    assert np.allclose(store.read(4).embeddings, 6**-0.5, atol=1e-3)
    torch.save({'embeddings': torch.ones(2, 6)}, tmp_path / f'{4:012d}.pth')
    with pytest.raises(ValueError, match=r'image 4.*bboxes'):
        import_oadp(tmp_path / 'store2', tmp_path, IDS, 'abcd')


def test_region_store_tool(tmp_path: Path) -> None:
    section = write_task(tmp_path, 4)
    caching = RegionCaching(section)
    caching.run(*caching.start())
    shown = run_tool('region_store.py', 'info', section['store'])
    assert shown.returncode == 0, shown.stderr
    assert '"clip_fingerprint"' in shown.stdout
    assert '4 images, 15 regions, 2 shards' in shown.stdout
    good = run_tool('region_store.py', 'verify', section['store'])
    assert '2 of 2 shards checked, all intact' in good.stdout
    path = Path(section['store']) / 'shard-000001.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'\x55')
    bad = run_tool('region_store.py', 'verify', section['store'])
    assert bad.returncode == 2
    assert bad.stdout == ''
    last = bad.stderr.strip().splitlines()[-1]
    assert last.startswith('error: 1 of 2 shards are bad: region shard')
    assert 'shard-000001.safetensors is damaged' in last


def test_import_by_the_tool(tmp_path: Path) -> None:
    section = write_task(tmp_path, 3)
    annotations = json.loads(Path(section['dataset']['ann_file']).read_text())
    for image, image_id in zip(annotations['images'], IDS):
        image['id'] = image_id
    annotations['annotations'] = []
    (tmp_path / 'ann.json').write_text(json.dumps(annotations))
    command = [
        'import-detpro', write_detpro(tmp_path / 'files', True), write(tmp_path, 'pkl'),
        tmp_path / 'ann.json', tmp_path / 'imported', '--clip', section['image_encoder']['model'], 'random:0',
    ]  # fmt: skip
    result = run_tool('region_store.py', *command)
    assert result.returncode == 0, result.stderr
    assert 'is complete: 3 images, 3 regions' in result.stdout
    fingerprint = RegionCaching(section).encoder.fingerprint
    RegionStore(tmp_path / 'imported').check(clip_fingerprint=fingerprint)


def test_import_takes_the_clip_as_a_folder(tmp_path: Path) -> None:
    annotations = write_task(tmp_path, 1)['dataset']['ann_file']
    (tmp_path / 'files').mkdir()
    rows = {'embeddings': torch.ones(2, 6), 'bboxes': torch.ones(2, 4), 'objectness': torch.ones(2)}
    torch.save({key: value.half() for key, value in rows.items()}, tmp_path / 'files' / '1.pth')
    clip = ROOT / 'ovd/assets/clip_tiny_shapes'
    command = ['import-oadp', str(tmp_path / 'files'), annotations, str(tmp_path / 'store')]
    command += ['--clip', str(clip)]
    region_store.main(command)
    RegionStore(tmp_path / 'store').check(clip_fingerprint=load_clip(clip).fingerprint)
    with pytest.raises(ValueError, match=r'--clip'):
        region_store.main([*command, 'x', 'y'])
