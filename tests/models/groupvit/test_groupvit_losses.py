"""GroupViT's losses: the stored reference values, values worked out by hand, and two processes as one."""

import ovd  # noqa: F401  (a spawned process has no conftest, and the stand-ins come before the hosts)

# isort: split
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from ovd.layers.contrastive import MultiLabelLoss, caption_loss
from ovd.layers.gather import gather_rows, joint_mean, joint_rows
from ovd.models.groupvit.projection_head import JointBatchNorm, ProjectionHead
from tests.helpers import ROOT, leave_group
from tests.toys.groupvit import toy_batch, toy_groupvit

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


def load_golden() -> dict[str, Tensor]:
    """Stored losses of the released code; empty where they are not beside this checkout."""
    path = ROOT.parent / 'shared' / 'goldens' / 'groupvit' / 'nvlabs_losses.npz'
    if not path.exists():
        return {}
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture
def golden() -> dict[str, Tensor]:
    return load_golden() or pytest.skip('the stored losses are not beside this checkout')


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


def test_two_processes_equal_the_reference(golden: dict[str, Tensor], ranks: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(ranks):
        result = results['golden']
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
    with pytest.raises(ValueError, match='noun_mask'):
        MultiLabelLoss(fillers='ignored')(unit(2, 3), unit(2, 1, 3), torch.zeros(()))
    with pytest.raises(ValueError, match='noun_ids'):
        MultiLabelLoss(same_noun='positive')(unit(2, 3), unit(2, 1, 3), torch.zeros(()))
    with pytest.raises(ValueError, match='formula'):
        MultiLabelLoss(formula='sum')


# --- two processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed of its share of the batch."""
    folder = tmp_path_factory.mktemp('ranks')
    mp.start_processes(worker, (str(folder),), nprocs=2, start_method='spawn')
    return [torch.load(folder / f'rank{rank}.pth', weights_only=True) for rank in range(2)]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    batch, golden = joint_batch(), load_golden()
    share = batch['images'][SHARES[rank]]
    place = joint_rows(len(share), torch.device('cpu'))
    result = {
        'losses': backward(batch, SHARES[rank], 2),
        'gathered': gather_rows(share, place),
        'mean': joint_mean(share[:, 0]),
        'model': train_step(SHARES[rank], 2),
        'golden': reference_step(golden, rank) if golden else {},
    }
    torch.save(result, f'{folder}/rank{rank}.pth')
    leave_group()


def reference_step(golden: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    leaves = [golden[name][rank].requires_grad_() for name in ('image', 'text', 'text_multi')]
    image, text, prompts = (F.normalize(leaf, dim=-1) for leaf in leaves)
    loss = caption_loss(image, text, golden['logit_scale_param'])
    multi = MultiLabelLoss()(image, prompts, golden['multi_label_logit_scale_param'])
    ((loss + multi) / 2).backward()
    result = {f'grad_{i}': leaf.grad for i, leaf in enumerate(leaves)}
    return {**result, 'loss': loss.detach(), 'multi_label_loss': multi.detach()}


def train_step(share: slice, world: int) -> dict[str, Tensor]:
    """Losses, gradients (up to some hundred) and statistics of a whole GroupViT on a share of the images."""
    options = {'multi_label': {'fillers': 'ignored'}, 'image_encoder': {'assignment': {'gumbel': False}}}
    model: Any = toy_groupvit(**options).train()
    with torch.no_grad():  # features that differ, so that batch norm does not magnify the last digit
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    batch = toy_batch(IMAGES)
    losses = wrapped(batch['inputs'][share], batch['data_samples'][share], mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    values = {name: value.detach() for name, value in losses.items() if 'loss' in name}
    return values | {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())


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
    heads = torch.nn.ModuleList(ProjectionHead(WIDTH, 4, 8) for _ in range(2))
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


def test_two_processes_equal_one(ranks: list[dict[str, Any]]) -> None:
    batch = joint_batch()
    expected = backward(batch, slice(None), 1)
    for name, value in expected.items():
        parts = [rank['losses'][name] for rank in ranks]
        if name in ('caption', *OPTIONS):
            torch.testing.assert_close(sum(parts) / 2, value, atol=1e-5, rtol=0)
        elif name in ('grad_images', 'grad_texts', 'grad_prompts'):
            torch.testing.assert_close(torch.cat(parts), value, atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(parts, [value] * 2, atol=1e-5, rtol=0)
    torch.testing.assert_close([rank['gathered'] for rank in ranks], [batch['images']] * 2)
    torch.testing.assert_close(sum(rank['mean'] for rank in ranks) / 2, batch['images'][:, 0].mean())


def test_a_model_in_two_processes_equals_one(ranks: list[dict[str, Any]]) -> None:
    expected = train_step(slice(None), 1)
    assert {'loss_caption', 'loss_multi_label'} <= set(expected)
    for name, value in expected.items():
        parts = [rank['model'][name] for rank in ranks]
        if name.startswith('loss_'):
            torch.testing.assert_close(sum(parts) / 2, value, atol=0, rtol=1e-5)
        else:
            torch.testing.assert_close(parts, [value] * 2, atol=1e-3, rtol=1e-4, msg=name)


def test_batch_norm_equals_that_of_torch_in_one_process() -> None:
    ours, theirs = JointBatchNorm(6), torch.nn.BatchNorm1d(6)
    rows = torch.randn(5, 6) * 3 + 1
    torch.testing.assert_close(ours(rows), theirs(rows))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(rows), theirs.eval()(rows))


def test_projection_head_takes_any_number_of_axes() -> None:
    head = ProjectionHead(6, 4, 8).eval()
    features = torch.randn(2, 3, 6)
    torch.testing.assert_close(head(features)[1, 2], head(features[1, 2:])[0])


def test_a_batch_of_one_is_refused_in_training() -> None:
    model = toy_groupvit().train()
    with pytest.raises(ValueError, match='batch_size'):
        model.loss(**toy_batch(count=1))
    assert model.eval().predict(**toy_batch(count=1))
