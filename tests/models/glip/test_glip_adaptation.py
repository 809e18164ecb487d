"""Ways to adapt GLIP: other wordings, tuned prompts, a linear probe, rates by name, averaged weights."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper

from ovd.checkpoints.loading import load_for_inference, load_into, load_metadata
from ovd.checkpoints.reading import read_checkpoint
from ovd.checkpoints.writing import save_tensors
from ovd.config import load_config
from ovd.encoders.tokens.prompt_tuning import PromptTuning
from ovd.models.glip.detector import GLIP
from ovd.models.partial_training import evaluate_frozen, train_only
from ovd.training.options import prepare_training
from ovd.training.runner import build_runner
from tests.helpers import ROOT
from tests.toys.bert import write_bert
from tests.toys.glip import WORDS, add_truth, batch, images, toy_config, toy_glip
from tests.toys.runs import write_config

pytest.importorskip('transformers')

LINEAR_PROBE = load_config(ROOT / 'configs' / 'glip_shapes_linear_probe.py').model.trainable


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('glip') / 'bert'


def text(folder: Path, **changes: Any) -> dict[str, Any]:
    return {'encoder': {'model': str(write_bert(folder))}, 'vocabulary': WORDS} | changes


def detect(model: GLIP, **metainfo: Any) -> Any:
    with torch.no_grad():
        return model.eval().test_step(batch(images([(64, 96)]), **metainfo))[0].pred_instances


def steps(model: GLIP, count: int, lr: float = 0.05) -> None:
    """Train on one picture with the sentence of the vocabulary."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    for _ in range(count):
        data = add_truth(batch(images([(64, 96)])), [[[8, 8, 40, 40], [50, 10, 90, 60]]], [[0, 4]])
        loss, _ = model.parse_losses(model.train()(**model.data_preprocessor(data, True), mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_wordings_are_read_and_only_the_class_is_the_phrase(folder: Path) -> None:
    wordings = {'dog': {'name': 'cat', 'suffix': ' of a person'}, 'ring': {'prefix': 'big'}}
    model = toy_glip(folder, text=text(folder, wordings=wordings))
    (prompt,) = model._class_prompts
    assert prompt.text == 'red star. big ring. cat of a person. cart. car'
    assert prompt.names == tuple(WORDS)
    phrases = [prompt.text[start:end] for ((start, end),) in prompt.spans]
    assert phrases == ['red star', 'ring', 'cat', 'cart', 'car']
    found = detect(model)
    assert set(found.label_names) <= set(WORDS)
    listed = detect(model, text=[WORDS], wordings=[wordings])
    torch.testing.assert_close(listed.scores, found.scores)
    assert not torch.allclose(detect(toy_glip(folder)).scores[:5], found.scores[:5])
    model.set_vocabulary(['ring', 'bird'])
    assert model._class_prompts[0].text == 'big ring. bird'


def test_wrong_wordings_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match='cow'):
        toy_glip(folder, text=text(folder, wordings={'cow': {'name': 'dog'}}))
    with pytest.raises(ValueError, match='suffx'):
        toy_glip(folder, text=text(folder, wordings={'dog': {'suffx': 's'}}))
    with pytest.raises(ValueError, match='cow'):
        detect(toy_glip(folder), text=[('dog', 'cat')], wordings=[{'cow': {'name': 'dog'}}])


def tuned(folder: Path, **changes: Any) -> GLIP:
    return toy_glip(folder, text=text(folder, offset=True, **changes), trainable=['text_offset.rows'])


def test_a_tuned_prompt_begins_at_nothing_and_learns_alone(folder: Path) -> None:
    plain, model = toy_glip(folder), tuned(folder)
    before = detect(model)
    torch.testing.assert_close(before.scores, detect(plain).scores)
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if 'offset' not in name}
    steps(model, 3)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == [
        'text_offset.rows'
    ]
    for name, tensor in others.items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    rows = model.text_offset.rows
    assert rows.shape == (len(model._class_prompts[0].token_ids), 24)
    assert (rows.abs().sum(1) > 0).all()
    assert not torch.allclose(detect(model).scores[:5], before.scores[:5])
    # Other words are read as before.
    question = {'text': [('dog', 'cat')]}
    torch.testing.assert_close(detect(model, **question).scores, detect(plain, **question).scores)


def test_the_shift_is_added_to_both_features_of_its_sentence(folder: Path) -> None:
    model = tuned(folder)
    with torch.no_grad():
        model.text_offset.rows.copy_(torch.arange(len(model.text_offset.rows))[:, None].expand(-1, 24))
    model._prompts.tuning = None
    (plain,) = model._prompts.encode(model._class_prompts)
    model._prompts.forget()
    model._prompts.tuning = model.text_offset
    (shifted,) = model._prompts.encode(model._class_prompts)
    wanted = torch.arange(len(plain.hidden))[:, None].expand(-1, 24).float()
    torch.testing.assert_close(shifted.hidden - plain.hidden, wanted)
    torch.testing.assert_close(shifted.embedded - plain.embedded, wanted)


def test_a_tuned_prompt_is_a_file_of_its_own(folder: Path, tmp_path: Path) -> None:
    model, path = tuned(folder), tmp_path / 'run' / 'prompt.safetensors'
    weights = toy_glip(folder).state_dict()
    load_for_inference(model, weights | {'text_offset.rows': model.text_offset.rows})
    steps(model, 2)
    model.save_offset(path)
    assert path.stat().st_size < 20_000
    assert load_metadata(path)['format'] == 'ovd.prompt_offset'
    # The words come with the file, the weights from the checkpoint that the prompt was tuned with.
    words = {'encoder': {'model': str(folder)}, 'offset': str(path)}
    loaded = toy_glip(folder, text=words, trainable=['text_offset.rows'])
    load_for_inference(loaded, weights)
    assert loaded.vocabulary.names == tuple(WORDS)
    torch.testing.assert_close(detect(loaded).scores, detect(model).scores)
    assert not any('offset' in name for name, _ in loaded.named_parameters())
    with pytest.raises(ValueError, match=r'dog\. cat'):
        toy_glip(folder, text=text(folder, offset=path, vocabulary=['dog', 'cat']))
    with torch.no_grad():
        next(loaded.text.parameters()).add_(1.0)
    with pytest.raises(ValueError, match='encoder'):
        detect(loaded)


def test_wrong_use_of_tuned_prompts_is_named(folder: Path, tmp_path: Path) -> None:
    model = tuned(folder).train()
    data = add_truth(
        batch(images([(64, 96)]), text=['a dog'], tokens_positive=[[[[0, 5]]]]), [[[8, 8, 40, 40]]], [[0]]
    )
    with pytest.raises(ValueError, match='a dog'):
        model(**model.data_preprocessor(data, True), mode='loss')
    with pytest.raises(ValueError, match='the model has no tuned prompt'):
        toy_glip(folder).save_offset(tmp_path / 'prompt.safetensors')
    with pytest.raises(ValueError, match='no vocabulary'):
        toy_glip(folder, text={'encoder': {'model': str(folder)}, 'offset': True})
    with pytest.raises(FileNotFoundError, match='nowhere'):
        PromptTuning.load(tmp_path / 'nowhere.safetensors')
    save_tensors(tmp_path / 'other.safetensors', {'rows': torch.zeros(2, 2)})
    with pytest.raises(ValueError, match='other'):
        PromptTuning.load(tmp_path / 'other.safetensors')
    model.save_offset(tmp_path / 'good.safetensors')
    metadata = load_metadata(tmp_path / 'good.safetensors')
    save_tensors(tmp_path / 'bad.safetensors', {'rows': torch.zeros(2, 24)}, metadata)
    with pytest.raises(ValueError, match=r'bad\.safetensors'):
        PromptTuning.load(tmp_path / 'bad.safetensors')


def test_training_starts_from_published_pieces(folder: Path, tmp_path: Path) -> None:
    """A backbone's file and the folder of a BERT; or a whole file, whose model has no tuned prompt yet."""
    source = toy_glip(folder)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    save_tensors(tmp_path / 'backbone.safetensors', source.backbone.state_dict())
    pieces = write_bert(tmp_path / 'bert')
    save_tensors(pieces / 'model.safetensors', source.text.model.state_dict())
    backbone = toy_config(folder)['backbone'] | {
        'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'backbone.safetensors')}
    }
    encoder = {'model': str(pieces), 'pretrained': True}
    model = toy_glip(folder, backbone=backbone, text=text(folder, encoder=encoder))
    model.init_weights()
    for part in ('backbone', 'text'):
        for name, tensor in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], tensor), (part, name)
    report = load_into(tuned(folder), source.state_dict(), strict=False)
    assert report.missing == ('text_offset.rows',)
    assert not report.unexpected + report.mismatched


def test_a_linear_probe_trains_the_last_layers_only(folder: Path) -> None:
    model = toy_glip(folder, trainable=list(LINEAR_PROBE))
    steps(model, 1)
    wanted = {
        f'bbox_head.{name}'
        for name in (
            *('boxes.weight', 'boxes.bias', 'centerness.weight', 'centerness.bias', 'log_scale'),
            *('project_text.weight', 'project_text.bias', 'bias_text', 'bias'),
        )
    }
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == wanted
    assert model.training
    assert model.bbox_head.training
    for part in (model.backbone, model.neck, model.text, *model.bbox_head.blocks):
        assert not any(module.training for module in part.modules())


def test_a_part_is_named_by_patterns() -> None:
    model = torch.nn.ModuleDict(
        {
            'one': torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)),
            'two': torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()),
        }
    )
    train_only(model, ['two.*'])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ['two.0.weight', 'two.0.bias']
    evaluate_frozen(model)
    assert not model['one'][1].training
    assert model['two'][0].training
    with pytest.raises(ValueError, match='three'):
        train_only(model, ['two.*', 'three.*'])


def test_rates_and_decays_of_the_published_recipe(folder: Path) -> None:
    config = load_config(ROOT / 'configs' / 'glip_t_b_o365.py').optim_wrapper
    model = toy_glip(folder)
    wrapper = build_optim_wrapper(model, ConfigDict(config | {'type': 'OptimWrapper'}))
    found = {}
    for group in wrapper.optimizer.param_groups:
        found.update({id(parameter): (group['lr'], group['weight_decay']) for parameter in group['params']})
    assert len(found) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, rate, decay in (
        ('backbone.conv1.weight', 1e-4, 1e-4),
        ('neck.lateral_convs.0.conv.bias', 2e-4, 0.0),
        ('bbox_head.blocks.0.text.norm_out.bias', 2e-4, 0.0),
        ('bbox_head.blocks.0.text.query.weight', 1e-4, 1e-4),
        ('bbox_head.bias_text', 2e-4, 0.0),
        ('text.model.encoder.layer.0.output.dense.weight', 1e-5, 1e-4),
        ('text.model.encoder.layer.0.output.dense.bias', 2e-5, 0.0),
    ):
        assert found[id(model.get_parameter(name))] == pytest.approx((rate, decay)), name
    for changes, message in (
        ({'custom_keys': {'bert.': {'lr_mult': 0.1}}}, "begins with 'bert.'"),
        ({'norm_decay_mult': 0.0}, r"unknown keys \['norm_decay_mult'\]"),
    ):
        wrong = ConfigDict(config | {'type': 'OptimWrapper', 'paramwise_cfg': changes})
        with pytest.raises(ValueError, match=message):
            build_optim_wrapper(model, wrong)


def train(folder: Path, work_dir: Path, length: int, resume: bool = False) -> dict[str, Any]:
    """Train with averaged weights; the last checkpoint."""
    hooks = load_config(ROOT / 'configs' / '_base_' / 'schedules' / 'ema.py').custom_hooks
    folder.mkdir(exist_ok=True)
    config = load_config(write_config(folder, length=length, interval=4, extra=f'custom_hooks = {hooks!r}'))
    config.work_dir = str(work_dir)
    prepare_training(config, resume='auto' if resume else None)
    build_runner(config).train()
    return read_checkpoint(work_dir / 'latest.pth')  # type: ignore[no-any-return]


def test_averaged_weights_survive_a_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'tests'))
    undisturbed = train(tmp_path, tmp_path / 'whole', 12)
    train(tmp_path, tmp_path / 'halves', 8)
    resumed = train(tmp_path, tmp_path / 'halves', 12, resume=True)
    for part in ('state_dict', 'ema_state_dict'):
        for name, tensor in undisturbed[part].items():
            assert torch.equal(tensor, resumed[part][name]), (part, name)
    name = 'layers.0.weight'
    averaged, last = undisturbed['state_dict'][name], undisturbed['ema_state_dict'][f'module.{name}']
    assert not torch.allclose(averaged, last)


def test_dropout_of_a_trained_part_stays_on(folder: Path) -> None:
    model = toy_glip(folder, trainable=['text.*', 'bbox_head.blocks.1.*']).train()
    first, second = model.bbox_head.blocks
    for part, is_trained in ((model.text, True), (second, True), (first, False)):
        drops = [module for module in part.modules() if isinstance(module, torch.nn.Dropout)]
        assert {module.training for module in drops} == {is_trained}


def test_a_tuned_prompt_is_compared_with_its_encoder_once(folder: Path, tmp_path: Path) -> None:
    """The comparison hashes all weights: once for a state of them, not for each image."""
    model, path = tuned(folder), tmp_path / 'prompt.safetensors'
    model.save_offset(path)
    loaded = toy_glip(folder, text={'encoder': {'model': str(folder)}, 'offset': str(path)})
    loaded.text.load_state_dict(model.text.state_dict())
    with patch.object(PromptTuning, 'check_encoder') as check:
        for _ in range(3):
            detect(loaded)
    assert check.call_count == 1
