"""What a step may say."""

import pytest

from lissom.errors import RecipeError
from lissom.statistics import Gram, Moments
from lissom.techniques.contract import check, knobs, needs
from lissom.types import Recipe, Step


def test_statistics_are_read_off_the_signature() -> None:
    assert needs("magnitude") == ()
    assert needs("wanda") == (Moments,)
    assert needs("gptq") == (Gram,)


def test_knobs_are_read_off_the_signature() -> None:
    assert knobs("gptq")["group"] == ((int,), 128)
    assert set(knobs("wanda")["keep"][0]) == {int, type(None)}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"technique": "gtpq"}, "unknown technique 'gtpq'; there are magnitude, wanda"),
        ({"technique": "gptq", "bit": 4}, "gptq has no knob 'bit'; its knobs are bits, group"),
        ({"technique": "gptq", "bits": "4"}, "bits='4' is no int"),
        ({"technique": "gptq", "clip": 1}, "clip=1 is no bool"),
        ({"technique": "wanda", "sparsity": True}, "sparsity=True is no float"),
        ({"technique": "binary", "bits": 1}, "its knobs are group, rounds, damp"),
    ],
)
def test_a_wrong_step_is_refused_by_name(step: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(Step.of(step))


def test_an_integer_will_do_for_a_fraction() -> None:
    check(Step.of({"technique": "wanda", "sparsity": 0}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": []}, "unknown entry 'step'"),
        ({"steps": "gptq"}, "found str where a list"),
        ({"steps": ["gptq"]}, "'gptq' is no step"),
        ({"steps": [{"technique": "rtn", "layers": ["a"]}]}, "must be one shell wildcard"),
        (None, "found NoneType"),
    ],
)
def test_a_wrong_recipe_is_refused(given: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.of(given)


def test_a_recipe_reads_back_what_it_wrote() -> None:
    recipe = Recipe(name="both", steps=(Step(technique="wanda", knobs={"sparsity": 0.5}), Step(technique="rtn")))
    assert Recipe.of(recipe.as_dict()) == recipe
