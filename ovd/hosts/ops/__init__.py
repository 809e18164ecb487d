"""mmcv's compiled operators, implemented with torch and torchvision for CPU and CUDA.

``OPERATORS`` is the content of the module ``mmcv._ext`` (see :mod:`ovd.hosts.import_hooks`). mmcv's Python
wrappers, with their checks and autograd functions, stay in use. As in the compiled module, most operators
write to buffers that the caller allocates.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from .nms import bbox_overlaps, nms, nms_match, softnms
from .roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward

REMEDY = (
    'pip install --no-deps --force-reinstall --no-build-isolation --no-binary onedl-mmcv onedl-mmcv '
    '(needs a C++ compiler)'
)


def compiler() -> str:
    """Result of mmcv's ``get_compiler_version``."""
    return 'none (operators by ovd)'


OPERATORS: dict[str, Callable[..., Any]] = {
    'bbox_overlaps': bbox_overlaps,
    'deform_conv_backward_input': deform_conv_backward_input,
    'deform_conv_backward_parameters': deform_conv_backward_parameters,
    'deform_conv_forward': deform_conv_forward,
    'get_compiler_version': compiler,
    'get_compiling_cuda_version': compiler,
    'modulated_deform_conv_backward': modulated_deform_conv_backward,
    'modulated_deform_conv_forward': modulated_deform_conv_forward,
    'ms_deform_attn_backward': ms_deform_attn_backward,
    'ms_deform_attn_forward': ms_deform_attn_forward,
    'nms': nms,
    'nms_match': nms_match,
    'roi_align_backward': roi_align_backward,
    'roi_align_forward': roi_align_forward,
    'roi_pool_backward': roi_pool_backward,
    'roi_pool_forward': roi_pool_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'softmax_focal_loss_backward': softmax_focal_loss_backward,
    'softmax_focal_loss_forward': softmax_focal_loss_forward,
    'softnms': softnms,
}


def missing_operator(name: str) -> Callable[..., NoReturn]:
    """A function that raises when called, for an operator that we do not provide.

    mmcv looks up all its operators on import, so the look-up must not fail.
    """
    if name.startswith('__'):
        raise AttributeError(f'mmcv._ext has no attribute {name!r}')

    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'mmcv was installed without its compiled operators, and ovd does not replace {name!r}: '
            f'build mmcv with them by: {REMEDY}'
        )

    operator.__name__ = name
    return operator
