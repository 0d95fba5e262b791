import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsbench.norms import ACTIVATIONS, WEIGHTS, NormSpec, SpecError
from wsbench.norms.registry import Registry


@st.composite
def specs(draw: st.DrawFn) -> NormSpec:
    act = draw(st.sampled_from(sorted(ACTIVATIONS)))
    groups = draw(st.none() | st.integers(1, 512)) if ACTIVATIONS[act].takes_groups else None
    weight = draw(st.none() | st.sampled_from(sorted(WEIGHTS)))
    if weight is None:
        return NormSpec(act, groups)
    variant = draw(st.none() | st.sampled_from(sorted(WEIGHTS[weight].variants) or [None]))
    semantics = draw(st.none() | st.sampled_from(sorted(WEIGHTS[weight].semantics) or [None]))
    return NormSpec(act, groups, weight, variant, semantics)


@given(specs())
def test_round_trip(spec: NormSpec) -> None:
    text = str(spec)
    assert NormSpec.parse(text) == spec
    assert str(NormSpec.parse(text)) == text
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(specs())
def test_text_needs_no_quoting(spec: NormSpec) -> None:
    assert not set(str(spec)) - set("abcdefghijklmnopqrstuvwxyz0123456789+-@")


@given(st.text(max_size=20))
def test_anything_else_is_refused_or_canonical(text: str) -> None:
    try:
        spec = NormSpec.parse(text)
    except SpecError:
        return
    assert NormSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gn+ws", NormSpec("gn", None, "ws")),
        ("gn16+ws", NormSpec("gn", 16, "ws")),
        ("bn", NormSpec("bn")),
        ("ln+wn", NormSpec("ln", None, "wn")),
        ("gn+ws-mo", NormSpec("gn", None, "ws", "mo")),
        ("gn+ws@authors", NormSpec("gn", None, "ws", None, "authors")),
        (" GN+WS ", NormSpec("gn", None, "ws")),
        ("gn+none", NormSpec("gn")),
        ("gn+ws@paper", NormSpec("gn", None, "ws")),
        ("gn8+ws-af@timm", NormSpec("gn", 8, "ws", "af", "timm")),
    ],
)
def test_parse(text: str, expected: NormSpec) -> None:
    assert NormSpec.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("xn", ["'xn'", "bn", "gn", "ln", "in", "sn", "none"]),
        ("gn+xs", ["'xs'", "wn, ws"]),
        ("gn+ws-xx", ["'xx'", "af, do, mo"]),
        ("gn+ws@xx", ["'xx'", "authors, bit, timm"]),
        ("gn+wn-mo", ["'wn'", "'mo'", "none"]),
        ("bn4", ["'bn'", "groups", "gn"]),
        ("gn0", ["at least 1"]),
        ("gn@authors", ["authors", "gn+ws@authors"]),
        ("gn ws", ["'gn ws'", "gn+ws-mo"]),
        ("", ["''"]),
        ("gn+ws+wn", ["gn16+ws"]),
    ],
)
def test_wrong_spec_names_the_choices(text: str, names: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        NormSpec.parse(text)
    for name in names:
        assert name in str(error.value)


def test_registration_refuses_what_the_grammar_could_not_parse() -> None:
    registry: Registry[int] = Registry("thing")
    with pytest.raises(ValueError, match="lower-case letters"):
        registry.add("g2", 1)
    registry.add("a", 1)
    with pytest.raises(ValueError, match="registered already"):
        registry.add("a", 2)
