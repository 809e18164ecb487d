"""LSeg zero-shot on PASCAL-5i: ResNet-101, each image asked for one class against 'others'.

    python tools/train.py configs/lseg_r101_pascal5i.py
    python tools/test.py configs/lseg_r101_pascal5i.py work_dirs/lseg_r101_pascal5i/latest.pth

Li et al., ICLR 2022, Sec. 4.2: trained on the 15 classes outside the fold, tested on its five by name alone;
images squeezed to 480 x 480, queries and supports both trained on. Other folds: --cfg-options fold=1.
The authors swept the learning rate for each data set, unpublished, and stopped within four epochs
(isl-org/lang-seg, issues 34 and 36). 20 episodes of two pictures to a step, about 40 GB on one GPU
(estimate); SyncBN and a smaller train_dataloader.batch_size spread them over several. The ImageNet weights go
to data/weights, see data/README.md, section Weights; testing needs none.
Published mIoU of folds 0 to 3: 52.8, 53.8, 44.4, 38.5, mean 47.4; users who trained anew report 17.9 to 28 on
fold 0 (issues 19 and 32). Not yet trained by us.
"""

_base_ = ['../../_base_/datasets/pascal5i.py', '../../_base_/runtime.py']

fold = 0
default_scope = 'mmseg'
vocabulary = 'fewshot_pascal'  # ovd/assets/vocabularies/fewshot_pascal.json
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

max_iters = 2280  # four epochs of fold 0: 11,394 episodes in batches of 20
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
