import pytest
import torch

from lissom.calibrate import token_windows
from lissom.errors import DataError
from lissom.evaluate import METRICS, compare

PERPLEXITY = METRICS["perplexity"]


def load(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def stories(root):
    return load(root / "lissom" / "demo")


@pytest.fixture
def windows():
    return torch.randint(3, 2048, (5, 24))


def test_the_oracle(stories, windows):
    """The log probability of each token, looked up one by one in the model's output on the whole window."""
    model, _ = stories
    with torch.no_grad():
        logs = model(windows).logits.log_softmax(-1)
    expected = [sum(logs[n, t, windows[n, t + 1]].item() for t in range(23)) / 23 for n in range(5)]
    assert PERPLEXITY.scores(model, windows) == pytest.approx(expected, rel=1e-5)


def test_a_noisy_model_is_compared(stories, windows):
    from copy import deepcopy

    model, _ = stories
    noisy = deepcopy(model)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight += 0.02 * torch.randn_like(weight)
    found = compare(model, noisy, windows, "perplexity")
    ratio = found.compressed.value / found.original.value
    assert found.drop.value == pytest.approx(ratio - 1, rel=1e-4)
    assert found.flips is None
    assert found.kl is not None
    assert found.kl.value > 0
    assert found.same_top1 is not None
    assert 0 < found.same_top1.value < 1


@pytest.mark.parametrize(
    "batch", [torch.ones(2, 8), torch.ones(8, dtype=torch.long), (torch.ones(2, 8), torch.ones(2))]
)
def test_what_is_no_text_is_refused(stories, batch):
    with pytest.raises(DataError, match="give windows of tokens"):
        PERPLEXITY.scores(stories[0], batch)


@pytest.mark.parametrize(
    ("model", "text", "count", "published"),
    [("wikilm", "wikitext2/plain/test.txt", 24, 33.870), ("stories", "tinystories/test.txt", 24, 11.48)],
)
def test_known_models_have_their_known_perplexity(shared, model, text, count, published):
    """On the first windows only: the published figure must lie within the interval, which is a narrow one."""
    loaded, tokenizer = load(shared / "models" / model)
    characters = (shared / "data" / text).read_text()[: 8000 * count]
    windows = token_windows(characters, tokenizer, 512)[:count]
    estimate = PERPLEXITY.summary(PERPLEXITY.scores(loaded, windows))
    assert estimate.n == count
    assert estimate.low < published < estimate.high
    assert estimate.high / estimate.low < 1.4
