"""Mixed precision on any device; learning rate and weight decay by parameter name."""

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

    bfloat16 has the range of float32, so losses need no scaling. Unlike mmengine's ``AmpOptimWrapper``, this
    works on a CPU, too. Arguments are those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on the device of the model's parameters."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NamedGroupsConstructor(DefaultOptimWrapperConstructor):
    """Groups trainable parameters by learning rate and weight decay; several rules may apply to one.

    mmengine's constructor ignores the rule for biases if one of ``custom_keys`` applies, and for biases of
    norms. Here the factors of all matching rules are multiplied.

    Args:
        optim_wrapper_cfg: as mmengine's.
        paramwise_cfg: ``custom_keys``, name prefixes -> ``lr_mult`` and ``decay_mult``; and ``bias_lr_mult``
            and ``bias_decay_mult``, for names whose last part contains 'bias'.
    Raises:
        ValueError: another setting, or a prefix that matches no parameter.

    Source: the solver of microsoft/GLIP, for the definition of a bias.
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
                raise ValueError(f'custom_keys: no parameter name begins with {start!r}')
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            if parameter.requires_grad:
                factors = [rule for start, rule in rules.items() if name.startswith(start)]
                factors += [bias] if 'bias' in name.rpartition('.')[2] else []
                rate, decay = self.base_lr, self.base_wd or 0.0
                for rule in factors:
                    rate, decay = rate * rule.get('lr_mult', 1.0), decay * rule.get('decay_mult', 1.0)
                groups.setdefault((rate, decay), []).append(parameter)
        params += [
            {'params': group, 'lr': lr, 'weight_decay': decay} for (lr, decay), group in groups.items()
        ]
