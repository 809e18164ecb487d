"""As groupvit_vits16_gcc_yfcc.py, with the weight decay of the released code on scales, positions and tokens.

    torchrun --nproc-per-node 8 --nnodes 2 tools/train.py configs/groupvit_vits16_gcc_yfcc_reference.py \
        --launcher pytorch --amp
"""

_base_ = './groupvit_vits16_gcc_yfcc.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True)))
