"""Projection heads into the joint space, with batch statistics over all processes."""

import torch
from torch import Tensor, nn

from ...layers.gather import sum_over_processes, world_size
from ...registry import MODELS
from .grouping import Mlp


class JointBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of rows [N, C] synchronised over processes, on any device.

    ``nn.SyncBatchNorm`` requires an accelerator. Processes may have different numbers of rows.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, rows: Tensor) -> Tensor:
        """[N, C] -> [N, C], float32; uses running statistics in evaluation."""
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.float()
            if self.training and world_size() == 1 and len(rows) < 2:
                raise ValueError(
                    'batch normalisation needs at least two images per step: increase batch_size, or drop an '
                    'incomplete last batch with drop_last=True'
                )
            if not self.training or world_size() == 1:
                return super().forward(rows)
            sums = sum_over_processes(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
            mean, count = sums[:-1] / sums[-1], sums[-1].detach()
            centered = rows - mean
            variance = sum_over_processes(centered.square().sum(0)) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
            normalized = centered * (variance + self.eps).rsqrt()
            return normalized * self.weight + self.bias if self.affine else normalized


@MODELS.register_module()
class ProjectionHead(nn.Module):
    """Linear, batch norm, ReLU, linear; outputs are not normalised.

    Args:
        dim: C of the features.
        embed_dim: D of the joint space.
        hidden_dim: width of the normalised layer.

    Source: Xu et al., GroupViT, CVPR 2022, Sec. 4.1.
    """

    def __init__(self, dim: int, embed_dim: int, hidden_dim: int = 4096) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm = JointBatchNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D]; batch statistics are over all leading axes."""
        rows = self.norm(self.fc1(features.flatten(0, -2)))
        return self.fc2(rows.relu()).unflatten(0, features.shape[:-1])


@MODELS.register_module()
class NormProjection(nn.Module):
    """Layer norm, linear, GELU, linear; independent of the batch.

    Args:
        dim, embed_dim, hidden_dim: see ``ProjectionHead``.
    """

    def __init__(self, dim: int, embed_dim: int, hidden_dim: int = 4096) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim, embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D], not normalised."""
        return self.mlp(self.norm(features))
