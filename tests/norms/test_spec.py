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
    known, variant = set(ACTIVATIONS[act].semantics), None
    if weight is not None:
        known |= set(WEIGHTS[weight].semantics)
        variant = draw(st.sampled_from([None, *sorted(WEIGHTS[weight].variants)]))
    semantics = draw(st.sampled_from([None, *sorted(known)]))
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
        ("sn@authors", NormSpec("sn", semantics="authors")),
        ("SN+none@Authors", NormSpec("sn", semantics="authors")),
        ("sn@paper", NormSpec("sn")),
        ("sn+ws", NormSpec("sn", None, "ws")),
        ("sn+ws@authors", NormSpec("sn", None, "ws", None, "authors")),
        ("sn+ws-mo@authors", NormSpec("sn", None, "ws", "mo", "authors")),
        ("sn+ws@timm", NormSpec("sn", None, "ws", None, "timm")),
        ("sn+wn@authors", NormSpec("sn", None, "wn", None, "authors")),
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
        (
            "gn@authors",
            ["'gn' has no semantics 'authors'", "'sn' has authors", "'ws' has authors, bit, timm", "gn+ws@authors"],
        ),
        ("gn@paper", ["'gn' has no semantics 'paper'", "'sn' has authors"]),
        ("sn@timm", ["'sn' has no semantics 'timm'", "'sn' has authors", "sn+ws@timm"]),
        ("sn@xx", ["'sn' has no semantics 'xx'", "'sn' has authors"]),
        ("gn+wn@authors", ["neither 'gn' nor 'wn' has semantics 'authors'", "'sn' has authors", "'ws' has authors"]),
        ("sn+wn@timm", ["neither 'sn' nor 'wn' has semantics 'timm'"]),
        ("gn ws", ["'gn ws'", "gn+ws-mo"]),
        ("sn-mo", ["'sn-mo'", "gn+ws-mo"]),
        ("", ["''"]),
        ("gn+ws+wn", ["gn16+ws"]),
    ],
)
def test_wrong_spec_names_the_choices(text: str, names: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        NormSpec.parse(text)
    for name in names:
        assert name in str(error.value)


def test_which_part_has_the_semantics() -> None:
    """Each part that knows the name follows it; the others keep their own definition."""
    parts = {
        text: (NormSpec.parse(text).act_semantics, NormSpec.parse(text).weight_semantics)
        for text in ("sn", "sn+ws", "sn@authors", "sn+ws@authors", "sn+ws@timm", "sn+wn@authors", "gn+ws@authors")
    }
    assert parts == {
        "sn": (None, None), "sn+ws": (None, None), "sn@authors": ("authors", None),
        "sn+ws@authors": ("authors", "authors"), "sn+ws@timm": (None, "timm"), "sn+wn@authors": ("authors", None),
        "gn+ws@authors": (None, "authors"),
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"variant 'mo' belongs to a weight normalization.*sn\+ws-mo"):
        NormSpec("sn", variant="mo")
    with pytest.raises(SpecError, match="unknown weight normalization 'xs'"):
        NormSpec("sn", weight="xs", semantics="authors")


def test_registration_refuses_what_the_grammar_could_not_parse() -> None:
    registry: Registry[int] = Registry("thing")
    with pytest.raises(ValueError, match="lower-case letters"):
        registry.add("g2", 1)
    registry.add("a", 1)
    with pytest.raises(ValueError, match="registered already"):
        registry.add("a", 2)
