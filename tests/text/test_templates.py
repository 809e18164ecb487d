"""Prompt templates: exact lists, spelling and article rules, refusals."""

import hashlib
import json

import open_clip.zero_shot_metadata as open_clip_templates
import pytest

from ovd.text.templates import TEMPLATES, PromptSet, expand, get_templates
from tests.helpers import shared_path


def digest(prompts: list[str]) -> str:
    return hashlib.sha256('\n'.join(sorted(prompts)).encode()).hexdigest()


@pytest.mark.parametrize('name', ['vild63', 'detpro74'])
def test_lists_equal_the_reference(name: str) -> None:
    for word, wanted in json.loads(shared_path('goldens/vild/prompt_hashes.json').read_text())[name].items():
        prompts = expand(word, name)
        assert len(prompts) == wanted['count']
        assert digest(prompts) == wanted['sha256'], word
        if 'sha256_without_this_is' in wanted:
            plain = [prompt.removeprefix('This is ') for prompt in prompts]
            assert digest(plain) == wanted['sha256_without_this_is'], word


def test_lists_equal_the_reference_hashes_kept_here() -> None:
    vild = expand('airplane', 'vild63')
    assert digest(vild) == 'a0a9da0a96479fecde1b32fc57ce8b8413e0f6e0b83adc06aa3263d58b19080e'
    assert (
        digest(expand('person', 'detpro74'))
        == 'bd28f7b18f4ea6aaf9a6dd79badbe7ff2563ddb4d23d816a84f45e49da9ed7d2'
    )


def test_clip_lists_equal_those_of_open_clip() -> None:
    for name, functions in (
        ('clip80', open_clip_templates.OPENAI_IMAGENET_TEMPLATES),
        ('clip7', open_clip_templates.SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert sorted(expand('dog', name)) == sorted(function('dog') for function in functions)


@pytest.mark.parametrize(
    ('name', 'count'),
    [('single', 1), ('vild63', 63), ('detpro74', 74), ('clip7', 7), ('clip80', 80), ('a', 1), ('name', 1)],
)
def test_sets_have_their_size_and_no_repetition(name: str, count: int) -> None:
    assert len(TEMPLATES[name]) == count == len(set(TEMPLATES[name].templates))


def test_this_is_leads_in_58_of_the_63() -> None:
    prompts = expand('cat', 'vild63')
    assert sum(prompt.startswith('This is ') for prompt in prompts) == 58
    assert all(prompt.endswith('.') for prompt in prompts)


def test_spelling_and_article() -> None:
    assert expand('umbrella', 'single') == ['a photo of an umbrella.']
    assert expand('CD_player', 'single') == ['a photo of a cd player.']
    assert expand('Other/Shoes.', 'single') == ['a photo of a other or shoes.']
    assert expand('bow_(weapon)', 'a') == ['a bow (weapon)']
    assert expand('aerosol_can', 'detpro74')[0] == 'There is a aerosol_can'
    assert expand('Orange', ['see {article} {}']) == ['see an Orange']
    assert expand('{article} {}', 'name') == ['{article} {}']


def test_custom_templates_keep_their_order() -> None:
    prompts = get_templates(['two {}', 'one {}'])
    assert prompts == PromptSet('custom', ('two {}', 'one {}'))
    assert expand('cat', prompts) == ['two cat', 'one cat']
    assert expand('cat', 'the {}') == ['the cat']


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('vild36', "unknown prompt templates 'vild36'; known sets: a, clip7"),
        ([], "prompt set 'custom' holds no template"),
        (['a {}', 'a photo'], "template 1 'a photo' must hold exactly one {}"),
        (['{} and {}'], "template 0 '{} and {}' must hold exactly one {}"),
        (['a {} {color}'], "template 0 'a {} {color}' may hold no braces but"),
        ([3], 'template 0 is 3, expected a string'),
    ],
)
def test_bad_templates_are_refused(spec: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        get_templates(spec)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_unknown_spelling_is_refused() -> None:
    with pytest.raises(ValueError, match="spelling 'upper'"):
        PromptSet('mine', ('{}',), 'upper')
