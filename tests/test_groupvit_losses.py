"""GroupViT's losses: the stored reference values, values worked out by hand, and two processes as one."""

import ovd  # noqa: F401  (a spawned process has no conftest, and the stand-ins come before the hosts)

# isort: split
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import shared_path
from torch import Tensor
from torch.nn import functional as F

from ovd.losses.contrastive import MultiLabelLoss, caption_loss
from ovd.losses.gather import gather_rows, joint_mean, joint_rows
from ovd.models.projection_head import JointBatchNorm, ProjectionHead

IMAGES, NOUNS, WIDTH = 5, 2, 6
SHARES = (slice(0, 2), slice(2, 5))  # of the images, by process; of different sizes on purpose
OPTIONS: dict[str, dict[str, Any]] = {
    'reference': {},
    'paper': {'formula': 'log_of_sum'},
    'masked': {'fillers': 'ignored'},
    'shared_nouns': {'fillers': 'ignored', 'same_noun': 'positive'},
    'ignored_nouns': {'same_noun': 'ignored', 'weight': 0.5},
}


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- reference values -----------------------------------------------------------------------------------


@pytest.fixture
def golden() -> dict[str, Tensor]:
    with np.load(shared_path('goldens/groupvit/nvlabs_losses.npz')) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def test_losses_and_gradients_equal_the_reference(golden: dict[str, Tensor]) -> None:
    image, text = golden['image'].flatten(0, 1), golden['text'].flatten(0, 1)
    prompts = golden['text_multi'].flatten(0, 1)
    leaves = [image, text, prompts, golden['logit_scale_param'], golden['multi_label_logit_scale_param']]
    for leaf in leaves:
        leaf.requires_grad_()
    image, text, prompts = (F.normalize(leaf, dim=-1) for leaf in leaves[:3])
    loss = caption_loss(image, text, leaves[3])
    multi = MultiLabelLoss()(image, prompts, leaves[4])
    torch.testing.assert_close(loss, golden['world1_loss'])
    torch.testing.assert_close(multi, golden['world1_multi_label_loss'])
    (loss + multi).backward()
    names = ('image', 'text', 'text_multi', 'logit_scale', 'multi_label_logit_scale')
    for name, leaf in zip(names, leaves):
        torch.testing.assert_close(leaf.grad, golden[f'world1_grad_{name}'], atol=1e-5, rtol=1e-4)


def golden_worker(rank: int, golden: dict[str, Tensor], folder: str) -> None:
    meet(rank, folder)
    leaves = [golden[name][rank].requires_grad_() for name in ('image', 'text', 'text_multi')]
    image, text, prompts = (F.normalize(leaf, dim=-1) for leaf in leaves)
    loss = caption_loss(image, text, golden['logit_scale_param'])
    multi = MultiLabelLoss()(image, prompts, golden['multi_label_logit_scale_param'])
    ((loss + multi) / 2).backward()
    result = {'loss': loss.detach(), 'multi_label_loss': multi.detach()}
    result |= {f'grad_{i}': leaf.grad for i, leaf in enumerate(leaves)}
    finish(rank, folder, result)


def test_two_processes_equal_the_reference(golden: dict[str, Tensor], tmp_path: Path) -> None:
    mp.start_processes(golden_worker, (golden, str(tmp_path)), nprocs=2, start_method='spawn')
    for rank, result in enumerate(results(tmp_path)):
        for name in ('loss', 'multi_label_loss'):
            torch.testing.assert_close(result[name], golden[f'world2_{name}'][rank])
        for i, name in enumerate(('image', 'text', 'text_multi')):
            expected = golden[f'world2_grad_{name}'][rank]
            torch.testing.assert_close(result[f'grad_{i}'], expected, atol=1e-5, rtol=1e-4)


# --- by hand --------------------------------------------------------------------------------------------


def test_caption_loss_of_orthogonal_pairs() -> None:
    pairs = torch.eye(3)
    loss = caption_loss(pairs, pairs, torch.tensor(2.0).log())
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 2) - 2)
    swapped = caption_loss(pairs, pairs[[1, 0, 2]], torch.tensor(2.0).log())
    assert swapped.item() == pytest.approx(math.log(math.exp(2) + 2) - 2 / 3)


def two_images() -> tuple[Tensor, Tensor, Tensor]:
    """Two images; prompts: image 0 has nouns 7 and 8, image 1 has noun 7 and a filler."""
    a, b = torch.eye(2)
    images = torch.stack([a, b])
    prompts = torch.stack([torch.stack([a, b]), torch.stack([a, b])])
    return images, prompts, torch.tensor([[7, 8], [7, -1]])


E = math.e
ROW = math.log(2 * E + 2)  # of an image over the prompts a, b, a, b


@pytest.mark.parametrize(
    ('options', 'of_images', 'of_prompts'),
    [
        # Targets of image 0 are prompts a and b of its own, with logits 1 and 0; of image 1 likewise.
        ({}, ROW - 0.5, math.log(E + 1) - 0.5),
        ({'formula': 'log_of_sum'}, math.log(2), math.log(E + 1) - 0.5),
        # Without the filler image 1 has the columns a, b, a and the target a, with logit 0.
        (
            {'fillers': 'ignored'},
            (math.log(2 * E + 1) - 0.5 + math.log(E + 2)) / 2,
            math.log(E + 1) - 1 / 3,
        ),
        # Noun 7 of the other image becomes a target: image 0 has a, b, a; image 1 has a, a; b of the other
        # stays a negative. Both prompts of noun 7 belong to both images.
        (
            {'fillers': 'ignored', 'same_noun': 'positive'},
            (math.log(2 * E + 1) - 2 / 3 + math.log(E + 2)) / 2,
            (2 * (math.log(E + 1) - 0.5) + math.log(E + 1)) / 3,
        ),
        # Or it is left out: image 0 sees a, b; image 1 sees b and its own a. Prompts of noun 7 see one image.
        (
            {'fillers': 'ignored', 'same_noun': 'ignored'},
            (math.log(E + 1) - 0.5 + math.log(E + 1)) / 2,
            (0 + math.log(E + 1) + 0) / 3,
        ),
    ],
)
def test_multi_label_loss_by_hand(options: dict[str, Any], of_images: float, of_prompts: float) -> None:
    images, prompts, nouns = two_images()
    loss = MultiLabelLoss(**options)(images, prompts, torch.zeros(()), nouns >= 0, nouns)
    factor = 1 if options.get('formula') == 'log_of_sum' else 0.5
    assert loss.item() == pytest.approx(factor * (of_images + of_prompts))


def test_loss_is_zero_without_any_noun_and_still_trains() -> None:
    images, prompts = unit(2, 4).requires_grad_(), unit(2, 3, 4).requires_grad_()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = MultiLabelLoss(fillers='ignored')(images, prompts, torch.zeros(()), mask)
    loss.backward()
    assert loss == 0
    assert not images.grad.any()


def test_permuting_the_images_changes_nothing() -> None:
    images, prompts = unit(IMAGES, WIDTH), unit(IMAGES, NOUNS, WIDTH, seed=1)
    nouns = torch.randint(-1, 4, (IMAGES, NOUNS))
    order = torch.randperm(IMAGES)
    for options in OPTIONS.values():
        loss = MultiLabelLoss(**options)
        scale = torch.tensor(1.0)
        torch.testing.assert_close(
            loss(images, prompts, scale, nouns >= 0, nouns),
            loss(images[order], prompts[order], scale, nouns[order] >= 0, nouns[order]),
        )


def test_logits_stay_in_float32_under_autocast() -> None:
    images, texts = unit(8, 16), unit(8, 16, seed=1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = caption_loss(images, texts, torch.tensor(100.0).log())
    torch.testing.assert_close(
        loss, caption_loss(images, texts, torch.tensor(100.0).log()), rtol=1e-6, atol=0
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r'images \(2, 3\) and texts \(3, 3\)'):
        caption_loss(unit(2, 3), unit(3, 3), torch.zeros(()))
    with pytest.raises(ValueError, match=r'prompts \[b, N, D\]'):
        MultiLabelLoss()(unit(2, 3), unit(3, 1, 3), torch.zeros(()))
    with pytest.raises(ValueError, match=r"fillers='ignored' needs noun_mask"):
        MultiLabelLoss(fillers='ignored')(unit(2, 3), unit(2, 1, 3), torch.zeros(()))
    with pytest.raises(ValueError, match=r"same_noun='positive' needs noun_ids"):
        MultiLabelLoss(same_noun='positive')(unit(2, 3), unit(2, 1, 3), torch.zeros(()))
    with pytest.raises(ValueError, match=r'noun_ids has shape \(2, 2\), expected \(2, 1\)'):
        MultiLabelLoss(same_noun='positive')(
            unit(2, 3), unit(2, 1, 3), torch.zeros(()), noun_ids=torch.zeros(2, 2)
        )
    with pytest.raises(ValueError, match="formula of the multi-label loss is 'sum'"):
        MultiLabelLoss(formula='sum')


# --- two processes ----------------------------------------------------------------------------------------


def joint_batch() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        'images': torch.randn(IMAGES, WIDTH),
        'texts': torch.randn(IMAGES, WIDTH),
        'prompts': torch.randn(IMAGES, NOUNS, WIDTH),
        'nouns': torch.tensor([[0, 1], [2, -1], [1, 0], [-1, -1], [2, 3]]),
    }


def backward(batch: dict[str, Tensor], share: slice, world: int) -> dict[str, Tensor]:
    """Losses of a share of the batch through the projection heads, and averaged gradients of all leaves."""
    torch.manual_seed(7)
    heads = torch.nn.ModuleList(ProjectionHead(WIDTH, 8, 4) for _ in range(2))
    leaves = {name: batch[name][share].clone().requires_grad_() for name in ('images', 'texts', 'prompts')}
    nouns = batch['nouns'][share]
    images = F.normalize(heads[0](leaves['images']), dim=-1)
    texts = heads[1](torch.cat([leaves['texts'][:, None], leaves['prompts']], dim=1))
    texts = F.normalize(texts, dim=-1)
    scale = torch.tensor(2.0, requires_grad=True)
    losses = {'caption': caption_loss(images, texts[:, 0], scale)}
    for name, options in OPTIONS.items():
        losses[name] = MultiLabelLoss(**options)(images, texts[:, 1:], scale, nouns >= 0, nouns)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {f'grad_{name}': leaf.grad / world for name, leaf in leaves.items()}
    shared = {f'heads.{name}': weight.grad for name, weight in heads.named_parameters()}
    shared['scale'] = scale.grad
    for gradient in shared.values():
        if world > 1:
            dist.all_reduce(gradient)
            gradient /= world
    return (
        {name: loss.detach() for name, loss in losses.items()}
        | gradients
        | shared
        | dict(heads.named_buffers())
    )


def meet(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)


def finish(rank: int, folder: str, result: dict[str, Tensor]) -> None:
    torch.save(result, f'{folder}/rank{rank}.pth')
    dist.destroy_process_group()


def results(folder: Path) -> list[dict[str, Tensor]]:
    return [torch.load(folder / f'rank{rank}.pth', weights_only=True) for rank in range(2)]


def worker(rank: int, folder: str) -> None:
    meet(rank, folder)
    batch = joint_batch()
    result = backward(batch, SHARES[rank], 2)
    place = joint_rows(len(batch['images'][SHARES[rank]]), torch.device('cpu'))
    result['gathered'] = gather_rows(batch['images'][SHARES[rank]], place)
    result['mean'] = joint_mean(batch['images'][SHARES[rank], 0])
    finish(rank, folder, result)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method='spawn')
    ranks, batch = results(tmp_path), joint_batch()
    expected = backward(batch, slice(None), 1)
    for name in ['caption', *OPTIONS]:
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, expected[name], atol=1e-5, rtol=0)
    for name in ('grad_images', 'grad_texts', 'grad_prompts'):
        whole = torch.cat([rank[name] for rank in ranks])
        torch.testing.assert_close(whole, expected[name], atol=1e-5, rtol=0)
    for name in (
        set(expected) - {'caption', *OPTIONS} - {f'grad_{kind}' for kind in ('images', 'texts', 'prompts')}
    ):
        for rank in ranks:
            torch.testing.assert_close(rank[name], expected[name], atol=1e-5, rtol=0)
    for rank in ranks:
        torch.testing.assert_close(rank['gathered'], batch['images'])
    mean = (ranks[0]['mean'] + ranks[1]['mean']) / 2
    torch.testing.assert_close(mean, batch['images'][:, 0].mean())


def test_batch_norm_equals_that_of_torch_in_one_process() -> None:
    ours, theirs = JointBatchNorm(6), torch.nn.BatchNorm1d(6)
    rows = torch.randn(5, 6) * 3 + 1
    torch.testing.assert_close(ours(rows), theirs(rows))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(rows), theirs.eval()(rows))


def test_projection_head_takes_any_number_of_axes() -> None:
    head = ProjectionHead(6, 8, 4).eval()
    features = torch.randn(2, 3, 6)
    torch.testing.assert_close(head(features)[1, 2], head(features[1, 2:])[0])
