"""LSeg on ADE20K with ViT-L/16 and the words of CLIP RN50x16, the best of the paper.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_rn50x16_ade20k.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_rn50x16_ade20k.py CHECKPOINT

The text tower alone differs from lseg_vitl16_ade20k.py: joint width 768. Recipe and memory as there.
Published: 82.78 pixAcc, 47.25 mIoU (recalled). Not yet trained by us.
"""

_base_ = './lseg_vitl16_ade20k.py'

clip = dict(model='data/weights/clip_rn50x16')
model = dict(head=dict(embed_dim=768))
