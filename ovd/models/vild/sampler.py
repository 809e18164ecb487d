"""Region sampling that does not depend on how a batch is distributed over processes."""

from typing import Any

import torch
from mmdet.models.task_modules.samplers import RandomSampler, SamplingResult
from mmengine.structures import InstanceData

from ...registry import TASK_UTILS


@TASK_UTILS.register_module()
class RepeatableSampler(RandomSampler):
    """mmdet's random sampler, with a generator of its own per image.

    The generator is seeded with ``draw_seed`` from the metainfo of the ground truth, which
    ``ovd.PackDetInputs`` draws each time an image is loaded. The sample therefore changes between epochs, but
    not with the number of processes, the order in the batch or other uses of the global generator. Without
    ``draw_seed`` this is the plain random sampler.
    """

    _generator: torch.Generator | None = None

    def sample(
        self, assign_result: Any, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        seed = gt_instances.metainfo.get('draw_seed')
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        return super().sample(assign_result, pred_instances, gt_instances, **kwargs)

    def random_choice(self, gallery: Any, num: int) -> Any:
        """Sample ``num`` of the indices in ``gallery`` without replacement."""
        if self._generator is None or not isinstance(gallery, torch.Tensor):
            return super().random_choice(gallery, num)
        order = torch.randperm(len(gallery), generator=self._generator)[:num]
        return gallery[order.to(gallery.device)]
