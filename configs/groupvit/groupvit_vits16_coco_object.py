"""GroupViT, ViT-S/16, without training on masks: COCO-Object, 80 classes and background.

    python tools/convert_checkpoint.py --from groupvit group_vit_gcc_yfcc_30e.pth groupvit.safetensors
    python tools/test.py configs/groupvit_vits16_coco_object.py groupvit.safetensors
    python tools/analyze_groups.py configs/groupvit_vits16_coco_object.py groupvit.safetensors

Xu et al., CVPR 2022. Weights: those that NVlabs/GroupViT publishes, for non-commercial use, or your own of
groupvit_vits16_gcc_yfcc.py. Windows of 448 pixels on images with a shorter side of 448; a group whose best
class scores below 0.95 is background. Published: 24.3 (weights GCC+YFCC), 27.5 (GCC+RedCaps) mIoU with
background, evaluated as in groupvit_vits16_coco_object_reference.py. Here the readout is ours: soft shares,
classes of the whole image, no group that has to be foreground. About 2 GB of GPU memory (estimate). Not yet
run by us, for want of weights.
Words for what surrounds objects compete with the classes if readout.background has names='stuff' too.
"""

_base_ = [
    '../_base_/models/groupvit_vits16.py',
    '../_base_/datasets/coco_object_seg.py',
    '../_base_/runtime.py',
]

default_scope = 'mmseg'
vocabulary = 'coco'  # ovd/assets/vocabularies/coco.json
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(2048, 448), keep_ratio=True),
    dict(type='ovd.LoadSegmentation'),
    dict(type='PackSegInputs'),
]

model = dict(
    text=dict(vocabulary=vocabulary),
    readout=dict(type='ovd.SoftReadout', background=dict(threshold=0.95)),
    test_cfg=dict(mode='slide', crop_size=448, stride=224),
)

train_dataloader = None
val_dataloader = None
val_evaluator = None
test_dataloader = dict(dataset=dict(vocabulary=vocabulary, pipeline=test_pipeline))
test_cfg = dict(type='TestLoop')

# For tools/calibrate_thresholds.py: pictures of the training set, seen as in the test.
calibration_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ovd.OpenVocabularySegDataset',
        data_root=_base_.data_root,
        data_prefix=dict(img_path='train2017', seg_map_path='stuffthingmaps/train2017'),
        vocabulary=vocabulary,
        pipeline=test_pipeline,
        test_mode=True,
        **_base_._labels,
    ),
)
