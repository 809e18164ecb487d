"""Drawing regions to train on, the same way however a batch is dealt to processes."""

from typing import Any

import torch
from mmdet.models.task_modules.samplers import RandomSampler, SamplingResult
from mmengine.structures import InstanceData

from ...registry import TASK_UTILS


@TASK_UTILS.register_module()
class RepeatableSampler(RandomSampler):
    """mmdet's random sampler, whose draws depend on the picture alone.

    ``ovd.PackDetInputs`` gives every loaded picture a number, ``draw_seed`` in the metainfo of its ground
    truth; the draws start from it. So they differ from visit to visit, but not with the number of processes,
    the order in the batch or other uses of the global generator. Without the number this is the plain random
    sampler.
    """

    _generator: torch.Generator | None = None

    def sample(
        self, assign_result: Any, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        seed = gt_instances.metainfo.get('draw_seed')
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        return super().sample(assign_result, pred_instances, gt_instances, **kwargs)

    def random_choice(self, gallery: Any, num: int) -> Any:
        """``num`` different members of ``gallery``, a tensor of indices."""
        if self._generator is None or not isinstance(gallery, torch.Tensor):
            return super().random_choice(gallery, num)
        order = torch.randperm(len(gallery), generator=self._generator)[:num]
        return gallery[order.to(gallery.device)]
