"""Crops: parity with Pillow and DetPro, every policy on hand-made images, bad boxes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovd.regions import crops as crops_module
from ovd.regions.crops import CLIP_MEAN, CropPolicy, crop_regions, crop_windows, join_scales
from tests.helpers import shared_path

MEAN_COLOUR = [round(255 * channel) for channel in CLIP_MEAN]


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Smooth random colours, uint8 [3, H, W]."""
    coarse = torch.randint(0, 256, (1, 3, 6, 6), generator=torch.Generator().manual_seed(seed)).float()
    large = F.interpolate(coarse, size=(height, width), mode='bicubic', align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)[0]


def pillow_resize(pixels: Tensor, height: int, width: int) -> Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def largest_difference(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('box', [(3, 5, 40, 44), (0, 0, 64, 48), (10, 10, 11, 30), (20, 7, 29, 16)])
@pytest.mark.parametrize('size', [7, 32, 50])
def test_exact_is_pillow_within_one_level(box: tuple[int, ...], size: int, channels_last: bool) -> None:
    noise = torch.randint(0, 256, (3, 48, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = noise.permute(1, 2, 0).contiguous().permute(2, 0, 1) if channels_last else noise
    x1, y1, x2, y2 = box
    found = crop_regions(image, torch.tensor([box]).float(), size, CropPolicy(scales=(1.0,)))
    assert largest_difference(found[0], pillow_resize(noise[:, y1:y2, x1:x2], size, size)) <= 1


def test_exact_without_uint8_kernels_is_pillow_within_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that devices other than CPUs take, run on the CPU."""
    image, boxes = picture(), torch.tensor([[3.0, 5, 40, 44], [20, 7, 29, 16]])
    expected = crop_regions(image, boxes, 24, CropPolicy())

    def two_float_passes(pixels: Tensor, height: int, width: int) -> Tensor:
        rows = crops_module._resize_bicubic_float(pixels, pixels.shape[1], width)
        return crops_module._resize_bicubic_float(rows, height, width)

    monkeypatch.setattr(crops_module, '_resize_bicubic', two_float_passes)
    found = crop_regions(image, boxes, 24, CropPolicy())
    assert largest_difference(found, expected) <= 1
    assert largest_difference(found[0], pillow_resize(image[:, 5:44, 3:40], 24, 24)) <= 1


def test_detpro_crops_and_embeddings() -> None:
    stored = np.load(shared_path('goldens/vild/crops_a.npz'))
    policy = CropPolicy(mode='center_crop', outside='black', rounding='detpro')
    image, boxes = torch.from_numpy(stored['image_chw_rgb']), torch.from_numpy(stored['boxes_xyxy'])
    found = crop_regions(image, boxes, 224, policy).unflatten(0, (3, 2))
    for scale, name in enumerate(('crops_1x_u8', 'crops_15x_u8')):
        assert largest_difference(found[:, scale], torch.from_numpy(stored[name])) <= 1
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pooled = F.adaptive_avg_pool2d((found.flatten(0, 1) / 255 - mean) / std, 8).flatten(1)
    features = pooled @ torch.from_numpy(stored['proj_192x512'])
    assert torch.allclose(features[::2], torch.from_numpy(stored['feat_1x']), atol=5e-3)
    joined = join_scales(features, 2)
    assert torch.allclose(joined, torch.from_numpy(stored['feat_sum_unit']), atol=1e-3)


def test_detpro_windows() -> None:
    """1x: floor(x - .001), ceil(x + .001); 1.5x: 1.25 x1 - .25 x2, not clamped."""
    policy = CropPolicy(rounding='detpro')
    windows = crop_windows(torch.tensor([[10.3, 12.7, 70.2, 60.9], [4.0, 40, 124, 56]]), (96, 128), policy)
    assert windows.tolist() == [[10, 12, 71, 61], [-5, 0, 86, 73], [3, 39, 125, 57], [-27, 35, 155, 61]]


def test_windows_of_the_other_rules() -> None:
    box = torch.tensor([[10.4, 12.0, 20.6, 14.0]])
    one = {'scales': (1.0,)}
    assert crop_windows(box, (48, 64), CropPolicy(**one)).tolist() == [[10, 12, 21, 14]]
    assert crop_windows(box, (48, 64), CropPolicy(**one, rounding='nearest')).tolist() == [[10, 12, 21, 14]]
    assert crop_windows(
        torch.tensor([[10.2, 12.0, 10.4, 14.0]]), (48, 64), CropPolicy(**one, rounding='nearest')
    ).tolist() == [[10, 12, 11, 14]]
    square = CropPolicy(**one, mode='square_context')
    assert crop_windows(box, (48, 64), square).tolist() == [[10, 8, 21, 19]]
    corner = torch.tensor([[0.0, 0.0, 20.0, 4.0]])
    assert crop_windows(corner, (48, 64), square).tolist() == [[0, -8, 20, 12]]
    clamped = CropPolicy(**one, mode='square_context', outside='clamp')
    assert crop_windows(corner, (48, 64), clamped).tolist() == [[0, 0, 20, 20]]
    assert crop_windows(torch.tensor([[0.0, 0, 64, 10]]), (48, 64), clamped).tolist() == [[0, 0, 64, 48]]
    grown = CropPolicy(scales=(1.5,), outside='clamp')
    assert crop_windows(torch.tensor([[0.0, 0, 40, 48]]), (48, 64), grown).tolist() == [[0, 0, 50, 48]]


def test_boxes_are_clipped_to_the_image_first() -> None:
    windows = crop_windows(torch.tensor([[-1e9, -5.0, 30.0, 1e9]]), (48, 64), CropPolicy(scales=(1.0,)))
    assert windows.tolist() == [[0, 0, 30, 48]]


@pytest.mark.parametrize('resize', ['exact', 'fast'])
@pytest.mark.parametrize(('outside', 'colour'), [('mean', MEAN_COLOUR), ('black', [0, 0, 0])])
def test_pixels_beyond_the_image(resize: str, outside: str, colour: list[int]) -> None:
    """The 1.5x crop of the whole image has a frame of a sixth of its side."""
    white = torch.full((3, 60, 60), 255, dtype=torch.uint8)
    policy = CropPolicy(scales=(1.5,), resize=resize, outside=outside)
    crop = crop_regions(white, torch.tensor([[0.0, 0, 60, 60]]), 90, policy)[0]
    assert crop[:, 5, 45].tolist() == colour
    assert crop[:, 45, 85].tolist() == colour
    assert crop[:, 45, 45].tolist() == [255, 255, 255]
    clamped = CropPolicy(scales=(1.5,), resize=resize, outside='clamp')
    assert crop_regions(white, torch.tensor([[0.0, 0, 60, 60]]), 90, clamped).min() == 255


def test_mean_colour_is_the_towers() -> None:
    white = torch.full((3, 60, 60), 255, dtype=torch.uint8)
    policy = CropPolicy(scales=(1.5,))
    crop = crop_regions(white, torch.tensor([[0.0, 0, 60, 60]]), 90, policy, mean=(0.5, 0.25, 0.0))[0]
    assert crop[:, 5, 45].tolist() == [128, 64, 0]


@pytest.mark.parametrize('resize', ['exact', 'fast'])
def test_modes_on_a_wide_box(resize: str) -> None:
    """A box of 40 x 10 whose left half is red and right half green, on blue."""
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    image[2] = 255
    image[:, 20:30, 10:50] = 0
    image[0, 20:30, 10:30] = 255
    image[1, 20:30, 30:50] = 255
    box = torch.tensor([[10.0, 20, 50, 30]])

    def crop(mode: str) -> Tensor:
        policy = CropPolicy(mode=mode, scales=(1.0,), resize=resize, outside='black')
        return crop_regions(image, box, 40, policy)[0]

    red, green, blue, black = [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]
    assert crop('warp')[:, 2, 5].tolist() == red
    assert crop('warp')[:, 37, 35].tolist() == green
    assert crop('center_crop')[:, 2, 5].tolist() == red
    assert crop('center_crop')[2, 2:-2].max() == 0
    assert crop('pad_square')[:, 2, 20].tolist() == black
    assert crop('pad_square')[:, 20, 10].tolist() == red
    assert crop('square_context')[:, 2, 20].tolist() == blue
    assert crop('square_context')[:, 20, 30].tolist() == green


@pytest.mark.parametrize('mode', ['warp', 'center_crop', 'pad_square', 'square_context'])
def test_fast_and_exact_agree(mode: str) -> None:
    """Cosine of what a linear tower makes of both, on boxes of many sizes, shrunk and enlarged."""
    image = picture(150, 200)
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(12, 2, generator=random) * 90
    boxes = torch.cat([corner, corner + 8 + 80 * torch.rand(12, 2, generator=random)], dim=1)
    projection = torch.randn(3 * 16 * 16, 64, generator=random)
    features = []
    for resize in ('exact', 'fast'):
        crops = crop_regions(image, boxes, 32, CropPolicy(mode=mode, resize=resize)).float()
        pooled = F.avg_pool2d(crops - crops.mean(dim=(1, 2, 3), keepdim=True), 2)
        features.append(join_scales(pooled.flatten(1) @ projection, 2))
    assert F.cosine_similarity(*features).min() > 0.99


@pytest.mark.parametrize('resize', ['exact', 'fast'])
def test_order_of_the_crops_and_no_boxes(resize: str) -> None:
    image, boxes = picture(), torch.tensor([[3.0, 5, 40, 44], [20, 7, 29, 16], [1, 1, 60, 20]])
    policy = CropPolicy(scales=(1.0, 1.5), resize=resize)
    together = crop_regions(image, boxes, 16, policy)
    assert together.dtype == torch.uint8
    for index in range(3):
        for scale in range(2):
            alone = crop_regions(
                image, boxes[index : index + 1], 16, CropPolicy(scales=(policy.scales[scale],), resize=resize)
            )
            assert torch.equal(together[2 * index + scale], alone[0])
    assert crop_regions(image, boxes[:0], 16, policy).shape == (0, 3, 16, 16)


def test_join_scales_sums_before_it_normalises() -> None:
    features = torch.tensor([[3.0, 0], [0, 1.0], [0, 2.0], [0, 2.0]])
    expected = torch.tensor([[3.0, 1.0], [0, 1.0]])
    assert torch.allclose(join_scales(features, 2), F.normalize(expected, dim=1))
    assert join_scales(features.half(), 2).dtype == torch.float32
    assert join_scales(features[:0], 2).shape == (0, 2)


@pytest.mark.parametrize(
    'box',
    [[5.0, 5, 5, 9], [9.0, 5, 5, 9], [70.0, 5, 90, 9], [float('nan'), 5, 9, 9], [0.0, 0, float('inf'), 5]],
)
def test_box_without_area_is_named(box: list[float]) -> None:
    boxes = torch.tensor([[1.0, 1, 9, 9], box])
    with pytest.raises(ValueError, match=r'1 =.*64.*48'):
        crop_regions(picture(), boxes, 16, CropPolicy())


def test_float_images_are_refused() -> None:
    with pytest.raises(ValueError, match='float32'):
        crop_regions(picture().float(), torch.zeros(0, 4), 16, CropPolicy())


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'mode': 'wrap'}, "'wrap'"),
        ({'resize': 'slow'}, "'slow'"),
        ({'outside': 'grey'}, "'grey'"),
        ({'rounding': 'up'}, "'up'"),
        ({'scales': ()}, 'scales must be positive'),
        ({'scales': (1.0, -1.5)}, 'scales must be positive'),
    ],
)
def test_bad_policies_are_refused(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CropPolicy(**options)


def test_hash_follows_every_setting() -> None:
    policies = [
        CropPolicy(),
        CropPolicy(mode='pad_square'),
        CropPolicy(scales=(1.0,)),
        CropPolicy(resize='fast'),
        CropPolicy(outside='black'),
        CropPolicy(rounding='detpro'),
    ]
    assert len({policy.hash for policy in policies}) == len(policies)
    assert CropPolicy(scales=[1, 1.5]).hash == CropPolicy().hash
    assert CropPolicy().to_dict()['version'] == 1
