
"""Whatever stands in a file: a reader returns a trace or raises `InputError`, nothing else."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.traces import FORMATS, Trace
from testbed.traces.registry import read_source
from testbed.traces.rtt import read_rtt_source
from testbed.traces.source import Source, source_from_bytes

# per format: lines (or a document) that are right, to be damaged
SEEDS: dict[str, str] = {
    "csv": "# packet_bits=12000\nduration_ms,bits,delay_ms,loss\n100,12000,5,0.1\n20.5,0,0,0\n3,24000,1,0\n",
    "mahimahi": "0\n1\n1\n3\n20\n45\n",
    "columns": "0.0\t0.47\n5.0\t0.39\n10.5\t1e3\n",
    "ghent": "1450274031248 725 51.06 3.73 3263799 725\n1450274032248 1725 51.06 3.73 4226240 1000\n",
    "norway": "1285675666 310761 59.88 10.76 288648 1008\n1285675667 311771 NOFIX NOFIX 171588 1010\n",
    "gnettrack": "Timestamp,DL_bitrate,UL_bitrate,PINGAVG\n2020.02.14_09.38.22,5,6,-\n2020.02.14_09.38.23,-,6,8\n",
    "gophers": "protocol,carrier,num_tcp_conn,run_num,seq_num,throughput_mbps\nTCP,A,8,1,0,1\nTCP,A,8,1,1,2.5\n",
    "sabre": '[{"duration_ms": 1500, "bandwidth_kbps": 4000, "latency_ms": 75}, {"duration_ms": 1, "bandwidth_kbps": 0}]',
    "opennetlab": '{"uplink": {"trace_pattern": [{"duration": 200, "capacity": 1000, "loss": 0.2, "rtt": 300}]}}',
    "iperf3": '{"start": {}, "intervals": [{"sum": {"start": 0, "end": 1.0, "bytes": 1000, "omitted": false}}]}',
    "rtt": "rtt_ms,carrier,server_location\n40.0,A,B\n37.8,A,B\n",
}  # fmt: skip
NASTY = st.sampled_from(
    ["", "-", "-1", "nan", "inf", "-inf", "1e400", "1e308", "1e18", "9" * 30, "9" * 5000, "0", "0.0", "1e-320", "1_0",
     "٣", "½", "\x1f", "\x85", "\u2028", '"', "'", ",", "\t", " ", "#", "null", "{}", "[]", "true", "\ufeff", "- 5", "+7"]
)  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["duration_ms", "bandwidth_kbps", "latency_ms", "start", "intervals", "sum", "end",
                                       "bytes", "omitted", "uplink", "downlink", "trace_pattern", "duration", "capacity",
                                       "loss", "rtt", "error"]), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


def read_all(text: str, name: str | None, column: str | None, clip: float | None) -> None:
    try:
        trace = read_source(Source("fuzz", text), format=name, column=column, clip=clip)
    except InputError:
        return
    assert isinstance(trace, Trace) and trace.duration_ns > 0 and trace.total_bits > 0
    if clip is not None and trace.packet_bits is None:
        assert trace.rate_bps.max() <= clip * (1 + 1e-9) + 1e3


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A good text after a few random cuts, insertions and repetitions."""
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(text)))
        end = draw(st.integers(begin, min(len(text), begin + 12)))
        text = text[:begin] + draw(NASTY | st.text(max_size=4) | st.just(text[begin:end] * 3)) + text[end:]
    return text


@pytest.mark.parametrize("name", [known.name for known in FORMATS])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files(name: str, data: st.DataObject):
    text = data.draw(damaged(SEEDS[name]))
    column = data.draw(
        st.sampled_from([None, None, "uplink", "UL_bitrate", "A/TCP/8", "A/TCP/8/1", "sum", "x", "", "/"])
    )
    clip = data.draw(st.sampled_from([None, 1.0, 1e6, 1e12]))
    read_all(text, data.draw(st.sampled_from([name, None])), column, clip)


@pytest.mark.parametrize("name", [known.name for known in FORMATS])
@given(text=st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_as_any_format(name: str, text: str):
    read_all(text, name, None, None)


@pytest.mark.parametrize("name", ["sabre", "opennetlab", "iperf3"])
@given(document=JSON_VALUES, clip=st.sampled_from([None, 1e6]))
@settings(max_examples=150, deadline=None)
def test_any_json_document(name: str, document: object, clip: float | None):
    text = json.dumps(document)
    read_all(text, name, None, clip)
    read_all(text, None, None, clip)
    # the right frame around anything: deeper into the reader
    frames = {"sabre": [document], "opennetlab": {"uplink": {"trace_pattern": [document]}},
              "iperf3": {"start": {}, "intervals": [{"sum": document}]}}  # fmt: skip
    read_all(json.dumps(frames[name]), name, None, clip)


def test_deep_nesting_is_an_input_error():
    with pytest.raises(InputError):
        read_source(Source("x", "[" * 100_000), format="sabre")


@given(raw=st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_bytes(raw: bytes):
    for candidate in (raw, b"\x1f\x8b" + raw, gzip.compress(raw)[: len(raw) + 5]):
        try:
            source = source_from_bytes(candidate, "fuzz")
        except InputError:
            continue
        read_all(source.text, None, None, None)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_logs_of_round_trip_times(data: st.DataObject):
    seed = data.draw(
        st.sampled_from([SEEDS["rtt"], "40.1\n38\n", "PING x\n64 bytes: icmp_seq=1 time=4.2 ms\n"])
    )
    try:
        rtts = read_rtt_source(
            Source("fuzz", data.draw(damaged(seed))), column=data.draw(st.sampled_from([None, "A/B"]))
        )
    except InputError:
        return
    assert len(rtts) > 0 and (rtts >= 0).all() and (rtts < 3600).all()
