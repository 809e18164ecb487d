"""GroupViT ViT-S/16 on 25.9 million pairs of CC3M, CC12M and RedCaps12M, without noun prompts.

    torchrun --nproc-per-node 8 --nnodes 2 tools/train.py configs/groupvit_vits16_gcc_redcaps.py \
        --launcher pytorch --amp
    python tools/test.py configs/groupvit_vits16_voc.py work_dirs/groupvit_vits16_gcc_redcaps/latest.pth

Otherwise as groupvit_vits16_gcc_yfcc.py, in 189,780 steps; its authors found prompts to harm here. Published:
zero-shot ImageNet 51.6 %; mIoU 50.8 on VOC, 23.7 on Context, 27.5 on COCO objects. Not yet trained by us.
"""

_base_ = './groupvit_vits16_gcc_yfcc.py'

third = 'redcaps12m'
epoch = 25_914_635 // 4096  # steps
model = dict(multi_label=None)
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='ovd.CaptionPrompts', count=0),
    _base_.train_pipeline[2],
]
