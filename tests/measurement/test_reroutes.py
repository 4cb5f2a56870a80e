"""Words about links that failed and were routed around."""

from types import SimpleNamespace

from testbed.measurement.reroutes import reroute_gaps, reroute_words


def trial(reroutes: list[dict], events: list[dict]) -> SimpleNamespace:
    return SimpleNamespace(manifest={"sdn": {"reroutes": reroutes}, "events": events})


DOWN = {"cause": "port_down a-b", "began_ns": 1_008_000_000, "t_ns": 1_010_500_000}
UP = {"cause": "port_up a-b", "began_ns": 2_000_000_000, "t_ns": 2_001_000_000}


def test_the_gap_counts_from_the_failure_not_from_the_message() -> None:
    cut = {"kind": "link_down", "link": "a-b", "t_ns": 1_000_000_000}
    later = {"kind": "link_up", "link": "a-b", "t_ns": 1_999_000_000}
    other = {"kind": "link_down", "link": "c-d", "t_ns": 1_007_000_000}
    assert reroute_gaps(trial([DOWN, UP], [cut, other, later])) == {"a-b": [0.0105]}
    assert reroute_gaps(trial([DOWN], [])) == {"a-b": [0.0025]}
    assert reroute_gaps(trial([DOWN], [{**cut, "t_ns": None}])) == {"a-b": [0.0025]}


def test_words_span_all_trials_and_say_nothing_without_a_failure() -> None:
    two = [trial([DOWN], []), trial([{**DOWN, "t_ns": 1_018_000_000}], [])]
    assert reroute_words(two) == ["a-b failed: re-routed after 2.5 to 10.0 ms (2 times)"]
    assert reroute_words(two[:1]) == ["a-b failed: re-routed after 2.5 ms"]
    assert reroute_words([trial([UP], []), SimpleNamespace(manifest={})]) == []
