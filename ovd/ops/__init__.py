"""mmcv's compiled operators on torchvision and torch, for CPU and CUDA, under their compiled names.

``OPERATORS`` fills the module ``mmcv._ext`` (see :mod:`ovd.compat`); mmcv's own Python wrappers, with their
autograd functions, stay in use. As in the compiled module, outputs are buffers which the caller allocated.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from .nms import nms
from .roi import roi_align_backward, roi_align_forward

OPERATORS: dict[str, Callable[..., Any]] = {
    'nms': nms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
}


def missing_operator(name: str) -> Callable[..., NoReturn]:
    """A callable that refuses to run, for an operator we do not provide; dunder names are not operators."""
    if name.startswith('__'):
        raise AttributeError(f'module mmcv._ext has no attribute {name!r}')

    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'operator {name!r} of mmcv is not among those ovd provides without a compiler; install mmcv with '
            'its compiled operators (MMCV_WITH_OPS=1 pip install --no-binary onedl-mmcv --no-build-isolation onedl-mmcv)'
        )

    return operator
