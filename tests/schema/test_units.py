"""Units: what people write, and what they get told when it is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.schema.units import parse_duration_s, parse_fraction, parse_rate_bps, parse_size_bytes


@pytest.mark.parametrize(("text", "seconds"), [("25ms", 0.025), ("1.5s", 1.5), ("2min", 120.0), ("10us", 1e-5), (0, 0.0), ("0", 0.0)])
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "bps"), [("5mbit", 5_000_000), ("1.5 Gbit/s", 1_500_000_000), ("64kbps", 64_000)])
def test_rates_are_decimal_bits_per_second(text: str, bps: int) -> None:
    assert parse_rate_bps(text) == bps


@pytest.mark.parametrize(("text", "size"), [("200KB", 200_000), ("64KiB", 65_536), ("3B", 3)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), (0.2, 0.2), (1, 1.0)])
def test_fractions(text: object, share: float) -> None:
    assert parse_fraction(text) == pytest.approx(share)


@pytest.mark.parametrize(("parse", "text", "says"), [
    (parse_duration_s, 25, "no unit"), (parse_duration_s, "25mbit", "unknown unit 'mbit'"),
    (parse_duration_s, "-3ms", "at least zero"), (parse_duration_s, True, "not a duration"),
    (parse_rate_bps, "5", "no unit"), (parse_rate_bps, "fast", "not a rate"), (parse_rate_bps, [5], "not a rate"),
    (parse_size_bytes, "5ms", "unknown unit"), (parse_fraction, "120%", "between 0 and 1"), (parse_fraction, "x", "fraction"),
])
def test_wrong_quantities_say_why_and_what_would_be_right(parse, text, says) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says) as caught:
        parse(text)
    problem, bar, remedy = str(caught.value).partition("|")
    assert problem and bar and remedy


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_whatever_is_written_gives_a_value_or_a_value_error(text: object) -> None:
    for parse in (parse_duration_s, parse_rate_bps, parse_size_bytes, parse_fraction):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "|" in str(error)
