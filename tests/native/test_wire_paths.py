"""The table of paths that every wire has."""

from __future__ import annotations

from tests.support.rings import Rings, came_from, others_key, over
from tests.support.wires import WireCalls, extension


def test_a_path_that_a_burst_found_is_not_replaced() -> None:
    """The table is full, and the burst's own datagrams bring new paths."""
    ffi, _ = extension()
    rings = Rings()
    with over(rings, max_paths=4) as wire:
        key = next(iter(came_from(wire, rings, [5000]))).key
        ports = [5000, 5001, 5002, 5003]
        paths = {port: wire.learn(others_key(key, port)) for port in ports}
        assert ffi.NULL not in paths.values()
        burst = came_from(wire, rings, [5000, 5001, 6000, 6001, 6002])
        assert [each.path for each in burst[:2]] == [paths[5000], paths[5001]]
        # Two were not in the burst: they make room. Then there is none.
        assert wire.learn(burst[2].key) == paths[5002]
        assert wire.learn(burst[3].key) == paths[5003]
        assert wire.learn(burst[4].key) == ffi.NULL
        again = came_from(wire, rings, [5000, 5001, 6000, 6001])
        assert [each.path for each in again] == [paths[port] for port in ports]
        # In the next burst those that were unused for longest make room.
        came_from(wire, rings, [6001])
        assert wire.learn(others_key(key, 7000)) == paths[5000]


def test_a_path_that_is_held_is_not_replaced() -> None:
    ffi, lib = extension()
    rings = Rings()
    with over(rings, max_paths=2) as wire:
        (first,) = came_from(wire, rings, [5000])
        path = wire.learn(first.key)
        lib.hs_wire_hold_path(wire.wire, path.id)
        for port in range(6000, 6010):
            came_from(wire, rings, [port])
            other = wire.learn(others_key(first.key, port))
            assert other not in (path, ffi.NULL)
        lib.hs_wire_let_go(wire.wire, path.id)
        lib.hs_wire_let_go(wire.wire, path.id)  # once too often
        assert path.references == 0
        for port in range(7000, 7002):
            came_from(wire, rings, [port])
            wire.learn(others_key(first.key, port))
        assert came_from(wire, rings, [5000])[0].path == ffi.NULL


def test_forged_addresses_take_little_of_the_table() -> None:
    """A path without a connection is soon replaced, those of connections are not."""
    _, lib = extension()
    rings = Rings()
    most_unused = 4096  # HS_PATHS_MOST_UNUSED
    with over(rings, max_paths=1 << 16) as wire:
        (first,) = came_from(wire, rings, [5000])
        held = [wire.learn(others_key(first.key, port)) for port in range(1000, 1100)]
        for path in held:
            lib.hs_wire_hold_path(wire.wire, path.id)
        for port in range(6000, 6000 + 2 * most_unused):
            if port % 50 == 0:
                came_from(wire, rings, [5000])
            wire.learn(others_key(first.key, port))
        assert lib.hs_wire_path_count(wire.wire) == len(held) + most_unused
        assert [wire.learn(others_key(first.key, port)) for port in range(1000, 1100)] == held


def test_a_datagram_that_was_handed_over_keeps_its_path_until_it_is_sent() -> None:
    """For links in Python: an answer to one peer must not go to another."""
    ffi, lib = extension()
    calls = WireCalls(lib.hs_wire_handed_new(2))

    def add(port: int) -> int:
        ends = {"ip_version": 4, "local_port": 1, "remote_port": port}
        return int(lib.hs_wire_add_path(calls.wire, ffi.new("struct hs_path_ends *", ends)))

    try:
        numbers = [add(1000), add(1001)]
        data = ffi.new("uint8_t[]", b"x")
        assert add(1002) == -1  # both are of this burst
        assert lib.hs_wire_handed_put(calls.wire, data, 1, 0, numbers[0]) == 0
        (came,) = calls.receive()
        assert add(1002) == numbers[1]
        assert calls.write(came.path, b"answer")
        for port in range(2000, 2010):
            assert lib.hs_wire_handed_put(calls.wire, data, 1, 0, numbers[1]) == 0
            calls.receive()
            assert add(port) == -1  # one is of this burst, and the other's answer waits
        count, taken = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        assert lib.hs_wire_handed_take(calls.wire, 0, count, taken)
        assert taken[0] == numbers[0]
        ends = ffi.new("struct hs_path_ends *")
        assert lib.hs_wire_path_ends(calls.wire, taken[0], ends) == 0
        assert ends.remote_port == 1000
        lib.hs_wire_handed_sent(calls.wire, 1)
        assert add(3000) == numbers[0]
    finally:
        calls.free()
