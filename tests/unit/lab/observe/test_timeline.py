"""Lines of many logs in one order."""

from datetime import datetime, timezone

from lab.observe.timeline import clock, of_events, parse

AT = datetime(2026, 11, 22, 20, 42, 39, 251000, tzinfo=timezone.utc).timestamp()


def test_an_engine_s_stamp_is_taken_off() -> None:
    """A line's time is the engine's, to the millisecond, and the stamp is not repeated."""
    [entry] = parse("node1", "2026-11-22T20:42:39.251644575Z Server listening on :: port 22.\n")
    assert abs(entry.time - AT) < 0.001
    assert str(entry) == "20:42:39.251  node1            Server listening on :: port 22."


def test_lines_without_a_time_have_their_neighbour_s() -> None:
    """A traceback stays behind the line that it belongs to, and what comes before any time has the first one."""
    text = "early\n[E 2026-11-22 20:42:39.251 App] failed\n    Traceback\n"
    early, failed, trace = parse("gateway", text)
    local = datetime(2026, 11, 22, 20, 42, 39, 251000).astimezone().timestamp()
    assert (early.time, failed.time, trace.time) == (local, local, local)
    assert [entry.text for entry in sorted([trace, failed, early])] == ["early", failed.text, "    Traceback"]


def test_a_file_s_time_dates_what_has_none() -> None:
    """A log without times is as old as its last change."""
    assert [entry.time for entry in parse("agent", "oops\n\nagain\n", default=12.5)] == [12.5, 12.5]


def test_tornado_s_short_dates() -> None:
    """`[I 261122 20:42:40 web:2591]` is a time too, and something that only looks like one is none."""
    [entry] = parse("gateway", "[I 261122 20:42:40 web:2591] 204 DELETE\n")
    assert entry.time == datetime(2026, 11, 22, 20, 42, 40).astimezone().timestamp()
    [entry] = parse("gateway", "[I 269922 20:42:40 web:2591] 204\n", default=1)
    assert entry.time == 1


def test_events_are_entries() -> None:
    """An event says its kind and its fields, lists without brackets."""
    [entry] = of_events([{"time": AT, "kind": "fault.added", "fault": "loss", "nodes": ["node1", "node2"]}])
    assert entry.text == "fault.added fault=loss nodes=node1,node2"
    assert clock(AT) == "20:42:39.251"
