"""Settings written as TOML read back the same."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from overlay.demo.toml import merge, render

KEYS = st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
# TOML has no place for surrogates, which Python strings may hold.
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
SCALARS = (
    TEXTS
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = SCALARS | st.lists(TEXTS, max_size=4)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_round_trip(settings: dict[str, dict[str, object]]) -> None:
    assert tomllib.loads(render(settings)) == settings  # type: ignore[arg-type]


def test_later_layers_win() -> None:
    assert merge({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}, "b": {}}) == {"a": {"x": 3, "y": 2}, "b": {}}
