from hypothesis import given
from hypothesis import strategies as st

from jaxforget.engine.errors import did_you_mean
from jaxforget.engine.tree import flatten, matches, merge, split, unflatten

names = st.text("abcdef", min_size=1, max_size=3)
trees = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=4),
    max_leaves=12,
)
nested = st.dictionaries(names, trees, min_size=1, max_size=4)


@given(nested)
def test_unflatten_undoes_flatten(tree):
    assert unflatten(flatten(tree)) == tree


@given(nested)
def test_the_two_parts_of_a_split_merge_to_the_whole(tree):
    chosen, others = split(tree, matches("a"))
    assert all("a" in path for path in flatten(chosen))
    assert not any("a" in path for path in flatten(others))
    assert merge(others, chosen) == tree


def test_merge_puts_leaves_beside_and_over():
    base = {"q": {"w": 1, "b": 2}}
    assert merge(base, {"q": {"w": 3, "lora_a": 4}}) == {"q": {"w": 3, "b": 2, "lora_a": 4}}


def test_did_you_mean_names_the_closest_and_all():
    assert did_you_mean("stesp", ["steps", "epochs"]).startswith("Did you mean 'steps'?")
    assert "Did you mean" not in did_you_mean("zzz", ["steps", "epochs"])
