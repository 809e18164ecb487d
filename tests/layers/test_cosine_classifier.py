"""Words against regions, the distillation loss, the score ensemble: values by hand, gradients by formula."""

import math

import pytest
import torch
from torch import Tensor

from ovd.layers.cosine_classifier import CosineClassifier, l2_normalize, remove_classes, zero_classes
from ovd.models.vild.distillation import distillation_loss
from ovd.models.vild.score_ensemble import geometric_mean, standardized_logits, text_weights


def identity_classifier(**options: object) -> CosineClassifier:
    classifier = CosineClassifier(2, 2, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        classifier.project.weight.copy_(torch.eye(2))
        classifier.project.bias.zero_()
        if classifier.background is not None:
            classifier.background.copy_(torch.tensor([0.0, -3.0]))
    return classifier


def test_logits_are_cosines_over_temperature_with_background_last() -> None:
    classifier = identity_classifier(temperature=0.5)
    regions = classifier.embed(torch.tensor([[3.0, 4.0]]))
    assert regions[0].tolist() == pytest.approx([0.6, 0.8])
    logits = classifier(regions, torch.tensor([[10.0, 0.0], [0.0, 2.0]]))
    assert logits[0].tolist() == pytest.approx([1.2, 1.6, -1.6])


def test_without_background_there_is_one_column_per_class() -> None:
    classifier = identity_classifier(with_background=False)
    assert classifier.background is None
    assert classifier(torch.zeros(0, 2), torch.eye(2)[:1]).shape == (0, 1)


def test_test_temperature_holds_in_evaluation_only() -> None:
    classifier = identity_classifier(temperature=0.1, test_temperature=0.05)
    regions, words = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert classifier.train()(regions, words)[0, 0].item() == pytest.approx(10)
    assert classifier.eval()(regions, words)[0, 0].item() == pytest.approx(20)


def test_permuting_words_permutes_logits_and_a_new_word_leaves_the_others_alone() -> None:
    classifier = CosineClassifier(6, 8)
    regions, words = classifier.embed(torch.randn(5, 6)), torch.randn(4, 8)
    logits = classifier(regions, words)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(classifier(regions, words[order])[:, :4], logits[:, order])
    more = classifier(regions, torch.cat([words, torch.randn(1, 8)]))
    torch.testing.assert_close(more[:, [0, 1, 2, 3, 5]], logits)


def test_logits_stay_float32_under_mixed_precision() -> None:
    classifier = CosineClassifier(16, 32)
    features, words = torch.randn(4, 16), torch.randn(3, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        regions = classifier.embed(features)
        logits = classifier(regions, words)
    assert regions.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits[:, :3], 100 * regions @ l2_normalize(words).T)


def test_zero_features_have_zero_cosines() -> None:
    assert l2_normalize(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_refuses_words_of_another_width() -> None:
    with pytest.raises(ValueError, match=r'5.* 8'):
        CosineClassifier(4, 8)(torch.zeros(1, 8), torch.zeros(2, 5))


def plain_loss(features: Tensor, weight: Tensor, background: Tensor, words: Tensor, label: int) -> Tensor:
    """Cross-entropy of one region written out from the paper, without any of our functions."""
    region = features @ weight.T
    region = region / region.pow(2).sum().sqrt()
    cosines = [region @ (word / word.pow(2).sum().sqrt()) for word in [*words, background]]
    exponentials = torch.stack(cosines).div(0.01).exp()
    return exponentials.sum().log() - exponentials[label].log()


def test_gradients_equal_those_of_the_written_out_formula() -> None:
    torch.manual_seed(1)
    classifier = CosineClassifier(5, 7).double()
    assert classifier.background is not None
    with torch.no_grad():
        classifier.project.bias.zero_()
        classifier.background.normal_()
    features, words = torch.randn(5, dtype=torch.double), torch.randn(3, 7, dtype=torch.double)
    logits = classifier(classifier.embed(features[None]), words)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1])).backward()
    weight = classifier.project.weight.detach().clone().requires_grad_()
    background = classifier.background.detach().clone().requires_grad_()
    plain_loss(features, weight, background, words, 1).backward()
    torch.testing.assert_close(classifier.project.weight.grad, weight.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(classifier.background.grad, background.grad, atol=1e-4, rtol=1e-3)


def test_removed_classes_get_no_probability_and_no_gradient() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    removed = remove_classes(logits, torch.tensor([False, True]))
    probs = removed.softmax(-1)
    assert probs[0].tolist() == pytest.approx([1 / (1 + math.e**2), 0, math.e**2 / (1 + math.e**2)])
    torch.nn.functional.cross_entropy(removed, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad.isfinite().all()


def test_removed_classes_change_nothing_against_their_absence() -> None:
    logits = torch.randn(6, 5)
    labels = torch.tensor([0, 2, 4, 0, 2, 4])
    removed = torch.tensor([False, True, False, True])
    kept = torch.tensor([0, 2, 4])
    absent = torch.nn.functional.cross_entropy(logits[:, kept], labels // 2)
    present = torch.nn.functional.cross_entropy(remove_classes(logits, removed), labels)
    torch.testing.assert_close(present, absent)


def test_zeroed_classes_still_add_one_to_the_sum() -> None:
    logits = torch.tensor([[1.0, 7.0, 0.5]])
    probs = zero_classes(logits, torch.tensor([False, True])).softmax(-1)
    total = math.e + 1 + math.e**0.5
    assert probs[0].tolist() == pytest.approx([math.e / total, 1 / total, math.e**0.5 / total])


def test_refuses_a_mask_of_another_length() -> None:
    with pytest.raises(RuntimeError, match='must match'):
        remove_classes(torch.zeros(1, 6), torch.zeros(3))


def test_distillation_sums_dimensions_and_averages_valid_rows() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 9.0]])
    rows = [0.0, 0.6 + 0.2, 2.0]
    assert distillation_loss(student, teacher).item() == pytest.approx(sum(rows) / 3)
    valid = torch.tensor([True, True, False])
    assert distillation_loss(student, teacher, valid).item() == pytest.approx(0.4)
    assert distillation_loss(student, teacher, valid, avg_factor=4.0).item() == pytest.approx(0.2)


def test_distillation_gradient_is_the_sign_over_the_count() -> None:
    student = l2_normalize(torch.randn(4, 6)).requires_grad_()
    teacher = torch.randn(4, 6).half()
    valid = torch.tensor([True, False, True, True])
    distillation_loss(student, teacher, valid).backward()
    expected = (student.detach() - l2_normalize(teacher)).sign() * valid[:, None] / 3
    torch.testing.assert_close(student.grad, expected)


def test_distillation_without_valid_rows_is_zero_with_a_zero_gradient() -> None:
    student = l2_normalize(torch.randn(2, 3)).requires_grad_()
    loss = distillation_loss(student, torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
    assert distillation_loss(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


def test_ensemble_trusts_text_for_base_and_the_image_for_novel_classes() -> None:
    weights = text_weights(torch.tensor([False, True]))
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 3])
    text, image = torch.tensor([[0.8, 0.1]]), torch.tensor([[0.1, 0.9]])
    expected = [0.8 ** (2 / 3) * 0.1 ** (1 / 3), 0.1 ** (1 / 3) * 0.9 ** (2 / 3)]
    assert geometric_mean(text, image, weights)[0].tolist() == pytest.approx(expected)


def test_standardized_logits_divide_by_the_unbiased_deviation() -> None:
    logits = standardized_logits(torch.tensor([[0.1, 0.3]]))
    deviation = math.sqrt(2 * 0.1**2)
    assert logits[0].tolist() == pytest.approx([0.4 / deviation, 1.2 / deviation])
    assert standardized_logits(torch.tensor([[0.5]])).item() == pytest.approx(2)
