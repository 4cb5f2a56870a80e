
"""Every format: a small file, the trace it means, and that no other format claims it."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.traces import FORMATS, Trace, load_trace, save_trace
from testbed.traces.registry import detect, read_source
from testbed.traces.source import Source

S = 10**9
MS = 10**6

# format, column, text -> (length in ns, bits) of each segment
EXAMPLES: list[tuple[str, str | None, str, list[tuple[int, int]]]] = [
    ("mahimahi", None, "2\n2\n5\n", [(MS, 0), (MS, 24_000), (2 * MS, 0), (MS, 12_000)]),
    ("mahimahi", None, "0\n1\n", [(1, 12_000), (MS - 1, 12_000)]),  # stamp 0: the first nanosecond
    ("mahimahi", None, "1\r\n", [(MS, 12_000)]),  # Mahimahi's own example of a fixed 12 Mbit/s
    ("csv", None, "# made by hand\nduration_ms,rate_bps\n100,5000000\n20.5,0\n", [(100 * MS, 500_000), (20_500_000, 0)]),
    ("csv", None, "duration_ms,bits\n0.000001,7\n", [(1, 7)]),
    # Pensieve: a row's rate holds since the row before; the first only sets the origin
    ("columns", None, "1.0\t9\n1.5\t2.0\n3.5\t4.0\n", [(S // 2, 1_000_000), (2 * S, 8_000_000)]),
    ("columns", None, "0 9\n1 3\n", [(S, 3_000_000)]),
    # bytes since the row before over ms since the row before, for the interval that ends at the row
    ("ghent", None, "1450274031248 725 51.0 3.7 1000 725\n1450274032248 1725 51.0 3.7 500 1000\n",
     [(725 * MS, 8_000), (S, 4_000)]),
    ("norway", None, "1285675666 310761 59.8 10.7 1000 1008\n1285675751 395761 NOFIX NOFIX 0 85000\n",
     [(1008 * MS, 8_000), (85 * S, 0)]),
    # the second 01 twice: one sample; 03 missing: three samples share five seconds
    ("gnettrack", None, "Timestamp,DL_bitrate,UL_bitrate\n2020.02.14_09.38.00,3,1\n2020.02.14_09.38.01,6,1\n"
     "2020.02.14_09.38.01,12,1\n2020.02.14_09.38.02,-,1\n2020.02.14_09.38.04,30,1\n",
     [(1_666_666_666, 5_000), (1_666_666_667, 15_000), (1_666_666_667, 50_000)]),
    ("gnettrack", "UL_bitrate", "Timestamp,DL_bitrate,UL_bitrate\n2020.02.14_09.38.00,3,8\n", [(S, 8_000)]),
    ("gophers", "Sprint", "seq_num,Sprint_throughput_mbps,Verizon_throughput_mbps\n0,1.5,2\n1,3,4\n",
     [(S, 1_500_000), (S, 3_000_000)]),
    ("gophers", None, "protocol,seq_num,throughput_mbps\nTCP,1,7\n", [(S, 7_000_000)]),
    ("gophers", "A/TCP/8", "protocol,carrier,num_tcp_conn,run_num,seq_num,throughput_mbps\nTCP,A,8,1,0,1\n"
     "TCP,B,8,2,0,9\nTCP,A,8,3,0,2\n", [(S, 1_000_000), (S, 2_000_000)]),
    ("gophers", "A/TCP/8/3", "protocol,carrier,num_tcp_conn,run_num,seq_num,throughput_mbps\nTCP,A,8,1,0,1\n"
     "TCP,B,8,2,0,9\nTCP,A,8,3,0,2\n", [(S, 2_000_000)]),
    ("sabre", None, '[{"duration_ms": 1500, "bandwidth_kbps": 4000, "latency_ms": 75}]', [(1500 * MS, 6_000_000)]),
    ("opennetlab", None, '{"type": "video", "downlink": {}, "uplink": {"trace_pattern": [{"duration": 200, '
     '"capacity": 1000, "loss": 0.2, "rtt": 300}]}}', [(200 * MS, 200_000)]),
    ("iperf3", None, json.dumps({"start": {}, "intervals": [
        {"sum": {"start": 0, "end": 1, "bytes": 9, "omitted": True}},
        {"sum": {"start": 0, "end": 1.5, "bytes": 1000, "omitted": False}},
        {"sum": {"start": 1.500001, "end": 2, "bytes": 500, "omitted": False}}]}),
     [(1_500 * MS, 8_000), (500 * MS, 4_000)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "column", "text", "expected"), EXAMPLES)
def test_reader(name, column, text, expected):
    trace = read_source(Source("example", text), column=column)
    assert list(zip(np.diff(trace.times_ns).tolist(), trace.bits.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("name", "column", "text", "expected"), EXAMPLES)
def test_exactly_one_format_claims_it(name, column, text, expected):
    source = Source("example", text)
    assert [known.name for known in FORMATS if known.sniff(source)] == [name]
    assert detect(source).name == name


def test_every_format_has_an_example():
    assert {example[0] for example in EXAMPLES} == {known.name for known in FORMATS}


def test_delay_is_half_of_the_round_trip_and_loss_is_kept():
    trace = read_source(Source("x", EXAMPLES[-2][2]))
    assert trace.delay_s is not None and trace.delay_s.tolist() == [0.15]
    assert trace.loss is not None and trace.loss.tolist() == [0.2]
    sabre = read_source(Source("x", EXAMPLES[-3][2]))
    assert sabre.delay_s is not None and sabre.delay_s.tolist() == [0.0375] and sabre.loss is None


def test_gzip_is_known_by_its_bytes_not_its_name(tmp_path: Path):
    plain, packed = tmp_path / "a.gz", tmp_path / "b.txt"
    plain.write_text("1\n2\n")
    packed.write_bytes(gzip.compress(b"1\n2\n"))
    assert load_trace(plain) == load_trace(packed)


@pytest.mark.parametrize("name", ["t.up", "t.up.gz"])
@pytest.mark.parametrize("text", ["0\n0\n1\n1\n7\n", "5\n", "0\n3\n", "1\n2\n2\n2\n9\n9\n"])
def test_mahimahi_round_trip_is_exact(tmp_path: Path, name: str, text: str):
    (tmp_path / "in").write_text(text)
    save_trace(load_trace(tmp_path / "in"), tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    assert (gzip.decompress(raw) if name.endswith(".gz") else raw).decode() == text


def test_bits_up_to_a_millisecond_are_the_stamps_up_to_it():
    stamps = [0, 0, 3, 4, 4, 10]
    trace = read_source(Source("x", "\n".join(map(str, stamps))))
    for k in range(1, 11):
        assert trace.bits_between(0, k * MS) == 12_000 * sum(stamp <= k for stamp in stamps)


def test_a_rate_becomes_opportunities_within_one_packet(tmp_path: Path):
    trace = Trace(np.array([0, S, 3 * S]), np.array([5_000_000, 1_234_567]))
    save_trace(trace, tmp_path / "x.down")
    back = load_trace(tmp_path / "x.down")
    assert back.duration_ns == trace.duration_ns and back.packet_bits == 12_000
    for k in range(1, 3000, 7):
        assert -12_000 < back.bits_between(0, k * MS) - trace.bits_between(0, k * MS) <= 0
    assert abs(back.total_bits - trace.total_bits) < 12_000


@pytest.mark.parametrize("packet_bits", [None, 12_000])
def test_own_csv_round_trip_is_exact(tmp_path: Path, packet_bits: int | None):
    trace = Trace(
        np.array([0, 1, 333_333_333, S]),
        np.array([0, 12_000 * 7, 12_000]),
        packet_bits=packet_bits,
        delay_s=np.array([0.1, 0.02, 1 / 3]),
        loss=np.array([0, 1, 0.1]),
    )
    save_trace(trace, tmp_path / "x.csv", comments=["two\nlines"])
    back = load_trace(tmp_path / "x.csv")
    assert (back.times_ns.tolist(), back.bits.tolist()) == (trace.times_ns.tolist(), trace.bits.tolist())
    assert back.packet_bits == packet_bits
    assert back.delay_s is not None and back.delay_s == pytest.approx(trace.delay_s, rel=1e-12)
    assert back.loss is not None and back.loss.tolist() == [0, 1, 0.1]


def test_compressed_files_are_the_same_bytes_every_time(tmp_path: Path):
    trace = read_source(Source("x", "1\n5\n"))
    save_trace(trace, tmp_path / "a.gz")
    save_trace(trace, tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


# what is wrong -> the line (or key) and the words that the error must hold
BAD: list[tuple[str, str, tuple[str, ...]]] = [
    ("not a number", "1\n2\nfoo\n4\n", ("line 3", "foo", "mend")),
    ("empty line inside", "1\n\n4\n5\n", ("line 2", "stamp")),
    ("backwards stamps", "1\n5\n4\n", ("line 3", "backwards")),
    ("no period", "0\n0\n", ("line 2", "period")),
    ("negative stamp", "1\n-2\n3\n4\n", ("line 2",)),
    ("10 Gbit/s in stamps", "1\n" + "50\n" * 90_000 + "9000\n", ("line 1", "absurd", "--clip")),
    ("negative rate", "0 1\n1 1\n2 -3\n", ("line 3", "negative rate", "--clip")),
    ("backwards seconds", "0 1\n2 1\n1 1\n", ("line 3", "backwards")),
    ("nan", "0 1\n1 1\n2 2\n3 nan\n", ("line 4", "finite")),
    ("three columns", "0 1\n1 1\n2 2 2\n", ("line 3", "two columns")),
    ("4G spike", "0 1\n" + "".join(f"{k} 9\n" for k in range(1, 300)) + "300 8040\n", ("line 301", "absurd", "8040")),
    ("20 Gbit/s", "0 1\n1 20000\n2 19000\n", ("line 2", "absurd", "10 Gbit/s", "--clip")),
    ("time in ms", "0 1\n1e10 1\n", ("line 2", "30 days")),
    ("ghent backwards", "1450274031248 725 5 3 10 725\n1450274032248 700 5 3 5 100\n", ("line 2", "backwards")),
    ("ghent zero length", "1450274031248 725 5 3 10 0\n", ("line 1", "forward")),
    ("norway negative", "1285675666 31 5 1 -10 1008\n", ("line 1", "negative rate")),
    ("ucc short row", "Timestamp,DL_bitrate\n2020.02.14_09.38.00,1\n2020.02.14_09.38.01\n", ("line 3", "fields")),
    ("ucc stamp", "Timestamp,DL_bitrate\nyesterday,1\n", ("line 2", "YYYY")),
    ("ucc backwards", "Timestamp,DL_bitrate\n2020.02.14_09.38.01,1\n2020.02.14_09.38.00,1\n", ("line 3", "backwards")),
    ("gophers choice", "seq_num,A_throughput_mbps,B_throughput_mbps\n0,1,2\n", ("2 series", "A", "B", "--column")),
    ("gophers seq", "seq_num,throughput_mbps\n5,1\n4,1\n", ("line 3", "backwards")),
    ("sabre missing", '[{"duration_ms": 1, "bandwidth_kbps": 1},\n{"duration_ms": 1}]', ("line 2", "bandwidth_kbps")),
    ("sabre syntax", '[{"duration_ms": 1,\n "bandwidth_kbps" 1}]', ("line 2", "JSON")),
    ("opennetlab spike", json.dumps({"uplink": {"trace_pattern": [{"duration": 200, "capacity": 16_400_000}]}}, indent=1),
     ("line 6", "trace_pattern[0]", "absurd", "--clip")),
    ("opennetlab both", json.dumps({d: {"trace_pattern": [{"duration": 2, "capacity": 1}]} for d in ("uplink", "downlink")}),
     ("both directions", "--column uplink")),
    ("opennetlab loss", '{"uplink": {"trace_pattern": [{"duration": 2, "capacity": 1, "loss": 20}]}}', ("loss", "20")),
    ("iperf3 failed", '{"start": {}, "intervals": [], "error": "unable to connect"}', ("iperf3 failed", "unable")),
    ("iperf3 gap", '{"start": {}, "intervals": [{"sum": {"start": 0, "end": 1, "bytes": 1}}, '
     '{"sum": {"start": 5, "end": 6, "bytes": 1}}]}', ("intervals[1]", "begin")),
    ("csv column", "duration_ms,rate_bps,speed\n1,2,3\n", ("line 1", "speed")),
    ("csv zero length", "duration_ms,rate_bps\n0,5\n", ("line 2", "forward")),
    ("csv too fine", "duration_ms,rate_bps\n0.0000001,5\n", ("line 2", "nanosecond")),
    ("csv huge", "duration_ms,rate_bps\n1,1e12\n", ("line 2", "absurd")),
    ("csv header only", "duration_ms,rate_bps\n", ("no segment",)),
    ("only zeros", "0 0\n1 0\n", ("no bit",)),
    ("prose", "These traces were recorded\nin a car\n", ("line 1", "no trace format", "--format")),
    ("round trips", "rtt_ms,carrier,server_location\n40.0,A,B\n", ("round-trip times", "jitter_log")),
    ("ping", "PING 1.1.1.1 (1.1.1.1) 56(84) bytes of data.\n64 bytes from 1.1.1.1: icmp_seq=1 ttl=5 time=4.2 ms\n",
     ("round-trip times",)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "text", "words"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_files_say_what_where_and_what_to_do(
    what: str, text: str, words: tuple[str, ...], tmp_path: Path
):
    path = tmp_path / "bad.trace"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_trace(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("raw", "word"),
    [(b"", "empty"), (b"\n \n", "empty"), (b"\xff\xfe1\n", "line 1"), (b"1\n\x00\n", "line 2"), (b"\x1f\x8bxx", "gzip"),
     (gzip.compress(b"1\n2\n")[:-6], "gzip")],
)  # fmt: skip
def test_bad_bytes(raw: bytes, word: str, tmp_path: Path):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(InputError, match=word):
        load_trace(tmp_path / "x")


def test_a_missing_file_and_a_folder(tmp_path: Path):
    with pytest.raises(InputError, match="no such trace file"):
        load_trace(tmp_path / "none")
    with pytest.raises(InputError, match="directory"):
        load_trace(tmp_path)


@pytest.mark.parametrize(
    "what", ["negative rate", "4G spike", "20 Gbit/s", "10 Gbit/s in stamps", "csv huge"]
)
def test_clip_reads_what_would_be_refused(what: str):
    text = next(bad[1] for bad in BAD if bad[0] == what)
    trace = read_source(Source("x", text), clip=10e6)
    rates = trace.bits_per_step(S // 10, max(1, trace.duration_ns // (S // 10))) * 10
    assert rates.min() >= 0 and rates.max() <= 10e6


def test_real_millimetre_wave_is_not_absurd():
    """Mostly hundreds of Mbit/s, sometimes 2 Gbit/s, often nothing: seen on mmWave, not to be refused."""
    rates = [0, 0, 0, 270, 12, 0, 2061, 1089, 530, 0, 940, 2, 1700]
    text = "0 0\n" + "".join(f"{k} {rate}\n" for k, rate in enumerate(rates * 10, 1))
    assert read_source(Source("x", text)).mean_rate_bps == pytest.approx(np.mean(rates) * 1e6)


def test_our_own_csv_may_hold_a_cliff():
    """Written on purpose: a step from 2 Gbit/s to 1 Mbit/s is an experiment, not a capture error."""
    assert (
        read_source(Source("x", "duration_ms,rate_bps\n1000,2000000000\n1000,1000000\n")).total_bits
        == 2_001_000_000
    )


def test_real_iperf3_output_is_read():
    if shutil.which("iperf3") is None:
        pytest.skip("iperf3 is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(50):
            done = subprocess.run(
                ["iperf3", "-c", "127.0.0.1", "-p", port, "-u", "-b", "8M", "-t", "1", "-i", "0.25", "--json"],
                capture_output=True, text=True, timeout=20,
            )  # fmt: skip
            if '"error"' not in done.stdout:
                break
        trace = read_source(Source("iperf3.json", done.stdout))
    finally:
        server.terminate()
        server.wait(timeout=10)
    total = json.loads(done.stdout)["end"]["sum"]["bytes"]
    assert trace.total_bits == total * 8
    assert 0.9 < trace.duration_ns / S < 1.2
