"""LSeg zero-shot on COCO-20i: ResNet-101, each image asked for one class against 'others'.

    python tools/train.py configs/lseg_r101_coco20i.py
    python tools/test.py configs/lseg_r101_coco20i.py work_dirs/lseg_r101_coco20i/latest.pth

Li et al., ICLR 2022, Sec. 4.2: trained on the 60 classes outside the fold, tested on its 20 by name alone,
1,000 episodes; recipe and folds as in lseg_r101_pascal5i.py. Training draws episodes without end;
16,000 steps are four epochs of 80,000 episodes (estimate). About 40 GB on one GPU (estimate).
Published mIoU of folds 0 to 3: 22.1, 25.1, 24.9, 21.5, mean 23.4; a user who trained anew is 10 points short
(isl-org/lang-seg, issue 40). Not yet trained by us.
"""

_base_ = ['../../_base_/datasets/coco20i.py', '../../_base_/runtime.py']

fold = 0
default_scope = 'mmseg'
vocabulary = 'fewshot_coco'  # ovd/assets/vocabularies/fewshot_coco.json
needs = [
    *_base_.needs,
    dict(
        path='data/weights/clip_vit_b32',
        what="OpenAI's CLIP ViT-B/32",
        how='see data/README.md, section Weights',
    ),
]

model = dict(
    type='ovd.LSeg',
    text=dict(vocabulary=vocabulary, templates='raw_name', encoder=dict(model='data/weights/clip_vit_b32')),
    pair_with='others',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=32,
        seg_pad_val=-1,
    ),
    backbone=dict(
        type='ovd.ResNetPyramid',
        model='resnet101',
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/resnet101.pth'),
    ),
    neck=dict(
        type='ovd.DPTFusion',
        in_channels=(256, 512, 1024, 2048),
        out_channels=256,
        norm_cfg=dict(type='SyncBN'),
    ),
    head=dict(in_channels=256, embed_dim=512, temperature=0.07),
    align_corners=True,
    test_cfg=dict(mode='whole'),
)

train_dataloader = dict(batch_size=20, dataset=dict(vocabulary=vocabulary, fold=fold))
val_dataloader = dict(dataset=dict(vocabulary=vocabulary, fold=fold))
test_dataloader = dict(dataset=dict(vocabulary=vocabulary, fold=fold))

max_iters = 16000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.005, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'neck.': dict(lr_mult=10.0), 'head.': dict(lr_mult=10.0)}),
)
auto_scale_lr = dict(enable=False, base_batch_size=20)
default_hooks = dict(checkpoint=dict(interval=max_iters // 4, max_keep_ckpts=4))
sync_bn = 'torch'  # on several GPUs the ResNet's norms too
# The published decay is spread over 240 epochs, of which four are run.
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=60 * max_iters)]
