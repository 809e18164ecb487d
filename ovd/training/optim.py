"""Mixed precision on any device; rates and decays by the names of the parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Run the forward pass under bfloat16 autocast; weights, gradients and the optimizer stay float32.

    bfloat16 has float32's range, so losses need no scaling. mmengine's ``AmpOptimWrapper`` refuses to be
    built without an accelerator; this one works on CPU as well. Arguments are those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on the device the model's parameters live on."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NamedGroupsConstructor(DefaultOptimWrapperConstructor):
    """Groups parameters by rate and decay, where several rules may apply to one; frozen ones are left out.

    mmengine's own constructor forgets the rule for biases where one of ``custom_keys`` applies, and leaves
    the biases of norms out of it. Here the factors of all rules are multiplied.

    Args:
        optim_wrapper_cfg: as mmengine's.
        paramwise_cfg: ``custom_keys``, beginnings of names -> ``lr_mult`` and ``decay_mult``; and
            ``bias_lr_mult`` and ``bias_decay_mult``, for names whose last part contains 'bias'.
    Raises:
        ValueError: another setting, or a beginning that no parameter has.

    Source: the solver of microsoft/GLIP, for what counts as a bias.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append the groups of a model's parameters to ``params``."""
        settings = dict(self.paramwise_cfg)
        rules = settings.pop('custom_keys', {})
        bias = {key: settings.pop(f'bias_{key}', 1.0) for key in ('lr_mult', 'decay_mult')}
        if settings:
            raise ValueError(f'unknown keys {sorted(settings)} of paramwise_cfg')
        named = dict(module.named_parameters())
        for start in rules:
            if not any(name.startswith(start) for name in named):
                raise ValueError(f'no parameter has a name that begins with {start!r}, a key of custom_keys')
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            if parameter.requires_grad:
                factors = [rule for start, rule in rules.items() if name.startswith(start)]
                factors += [bias] if 'bias' in name.rpartition('.')[2] else []
                rate, decay = self.base_lr, self.base_wd or 0.0
                for rule in factors:
                    rate, decay = rate * rule.get('lr_mult', 1.0), decay * rule.get('decay_mult', 1.0)
                groups.setdefault((rate, decay), []).append(parameter)
        params += [{'params': own, 'lr': lr, 'weight_decay': decay} for (lr, decay), own in groups.items()]
