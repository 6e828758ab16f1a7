import pytest
import torch

from lissom.evaluate import agreement
from lissom.evaluate.agreement import divergence, same_top1


def test_divergence_is_kl_averaged_over_predictions():
    original, compressed = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    p, q = original.double().softmax(-1), compressed.double().softmax(-1)
    for n in range(3):
        expected = sum((p[n, t] * (p[n, t] / q[n, t]).log()).sum().item() for t in range(5)) / 5
        assert divergence(original, compressed)[n].item() == pytest.approx(expected, rel=1e-5)


def test_some_predictions_at_a_time_are_told_as_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    original, compressed = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    whole = divergence(original, compressed)
    for logits in (1, 14, 50):
        monkeypatch.setattr(agreement, "AT_ONCE", logits)
        torch.testing.assert_close(divergence(original, compressed), whole)


def test_a_classifier_predicts_once_per_example():
    original, compressed = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.allclose(divergence(original, compressed), divergence(original[:, None], compressed[:, None]))
    assert same_top1(torch.eye(4), torch.eye(4).flip(0)).tolist() == [0, 0, 0, 0]


def test_a_model_agrees_with_itself():
    logits = torch.randn(4, 6, 3)
    assert divergence(logits, logits).abs().max() == 0
    assert same_top1(logits, logits).tolist() == [1, 1, 1, 1]


def test_the_share_of_predictions_that_agree():
    original = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    compressed = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    assert same_top1(original, compressed).tolist() == [0.75]
