"""GLIP on OV-Shapes: both towers of the tiny CLIP, captions with phrases and class lists, its schedule."""

_base_ = '../schedules/shapes.py'

data_root = 'data/shapes/'
nouns = (
    'circle, star, cross, ring, house, tree, flower, key, crown, fork, comb, window, sun, umbrella, hammer, '
    'bone, heart, crescent, fish, anchor, butterfly, spiral, magnet, cactus'
)
clip = 'clip_tiny_shapes'
needs = [
    dict(
        path=data_root + 'annotations',
        what='OV-Shapes',
        how='ovd data shapes (tools/make_shapes.py)',
    ),
]

model = dict(
    type='ovd.GLIP',
    text=dict(
        vocabulary=nouns,
        encoder=dict(type='clip', model=clip, features='phrases', templates='a photo of {article} {}.'),
    ),
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[122.77, 116.75, 104.09],
        std=[68.5, 66.63, 70.32],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='ovd.ClipResNet', model=clip, out_indices=(1, 2, 3)),
    neck=dict(type='FPN', in_channels=[128, 256, 512], out_channels=64, num_outs=3),
    bbox_head=dict(
        channels=64,
        num_blocks=2,
        fusion=dict(embed_dims=128, num_heads=4, dropout=0.0, initial_scale=0.5),
        text_layer=dict(num_heads=4, hidden_channels=192, dropout=0.0),
        dyhead=dict(deformable=False),
        strides=(8, 16, 32),
        anchor_scale=4.0,
        log_scale=-1.5,
    ),
    test_cfg=dict(score_thr=0.01, nms_pre=200, max_per_img=100),
)

meta_keys = tuple(
    'img_id img_path ori_shape img_shape scale_factor text tokens_positive tokens_ignored prompt'.split()
)
phrase_steps = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='ovd.BuildPrompt'),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
# Class lists: all nouns; or those with boxes of base classes alone, whose novel names are never drawn.
class_list_file = 'annotations/instances_train_all.json'
class_list_words = nouns
class_list_masks = False
class_list_keys = meta_keys
tokenizer = clip
class_list_steps = [
    dict(type='ovd.LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, **(dict(with_mask=True) if class_list_masks else {})),
    dict(type='ovd.SampleClassNames', vocabulary=class_list_words, tokenizer=tokenizer, max_names=24),
    dict(type='ovd.BuildPrompt'),
    dict(type='PackDetInputs', meta_keys=class_list_keys),
]
phrases_train = dict(
    type='ovd.GroundingDataset',
    data_root=data_root,
    ann_file='annotations/phrases_train.jsonl',
    data_prefix=dict(img='train'),
    pipeline=phrase_steps,
)
test_pipeline = [
    dict(type='ovd.LoadImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        ignore_keys=(
            'classes base_classes novel_classes category_ids split ann_file vocabulary_hash'.split()
        ),
        datasets=[
            phrases_train,
            dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='ovd.OpenVocabularyDataset',
                    data_root=data_root,
                    ann_file=class_list_file,
                    data_prefix=dict(img='train'),
                    vocabulary=class_list_words,
                    pipeline=class_list_steps,
                ),
            ),
        ],
    ),
)
_tests = {
    split: dict(
        batch_size=16,
        num_workers=1,
        drop_last=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='ovd.GroundingDataset',
            data_root=data_root,
            ann_file=f'annotations/phrases_{split}.jsonl',
            data_prefix=dict(img=split),
            pipeline=test_pipeline,
            test_mode=True,
        ),
    )
    for split in ('val', 'test')
}
val_dataloader = _tests['val']
test_dataloader = _tests['test']
val_evaluator = dict(type='ovd.PhraseRecall')
test_evaluator = val_evaluator
# Detection by class list on the test images.
detection_test = dict(
    _delete_=True,
    type='ovd.OpenVocabularyDataset',
    data_root=data_root,
    ann_file='annotations/instances_test.json',
    data_prefix=dict(img='test'),
    vocabulary='shapes',
    pipeline=[
        dict(type='ovd.LoadImage'),
        dict(type='Resize', scale=(128, 128), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=meta_keys[:5]),
    ],
    test_mode=True,
)
clip_text = dict(type='clip', model=clip, features='phrases', templates='a photo of {article} {}.')
max_iters = 400
max_norm = 1.0
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.3)}))
channels_last = True  # convolutions on a CPU are faster so
