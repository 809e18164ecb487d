"""ViLD on LVIS v1 as the official TensorFlow code does it, where that differs from vild_r50_lvis.py.

    torchrun --nproc-per-node 8 tools/train.py configs/vild_r50_lvis_reference_tf.py --launcher pytorch --amp

Novel logits are zeroed instead of removed; boxes count their last pixel; box loss per matched coordinate;
one sample per RoI bin without the half-pixel shift, from levels P2 to P6; P6 by a convolution; normalised
fully connected layers; its constants of batch normalisation; all 300 regions, kept as long as one coordinate
is positive. Left out: batch normalisation in its RPN, whose loss it sums over levels (and the FPN here
normalises its lateral convolutions too); weight decay on kernels alone; its double flip of the cached boxes,
which is a mistake.
Source: tensorflow/tpu: models/official/detection/projects/vild.
"""

_base_ = './vild_r50_lvis.py'

_coder = dict(type='ovd.InclusiveBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
_norm = dict(type='SyncBN', eps=1e-4, momentum=0.003)
_levels = dict(roi_layer=dict(sampling_ratio=1, aligned=False), featmap_strides=[4, 8, 16, 32, 64])
model = dict(
    backbone=dict(norm_cfg=_norm),
    neck=dict(add_extra_convs='on_output', norm_cfg=_norm),
    rpn_head=dict(bbox_coder=dict(type='ovd.InclusiveBoxCoder')),
    roi_head=dict(
        bbox_roi_extractor=_levels,
        mask_roi_extractor=_levels,
        bbox_head=dict(
            novel_logits='zeroed',
            box_average='positives',
            bbox_coder=_coder,
            trunk=dict(norm_cfg=_norm, fc_norm_cfg=_norm),
        ),
        mask_head=dict(norm_cfg=_norm),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *_base_.train_pipeline[:-1],
            dict(
                type='ovd.LoadRegionEmbeddings',
                store=_base_.region_store,
                num_regions=300,
                border=1,
                drop_hidden=False,
            ),
            _base_.train_pipeline[-1],
        ]
    )
)
