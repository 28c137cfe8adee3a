"""Ciphers against AES-128-GCM: one stream up over udp.

AES has instructions of its own in most processors; ChaCha20-Poly1305 is for those without. Over
udp, with GSO and GRO, encryption is the largest part of the work.
"""

from __future__ import annotations

from functools import partial
from typing import Final, get_args

from bench import ends
from bench.lines import Expected, compared
from bench.report import Benchmark, Found
from bench.rounds import interleave, progress, spread
from hoststack.quic.tls import Cipher
from hoststack.worker.engines import available_engines
from tests.support import netns

CIPHERS: Final[tuple[Cipher, ...]] = get_args(Cipher)
AGAINST: Final[Cipher] = "aes-128-gcm"
#: OpenSSL's ChaCha20-Poly1305 takes twice the time of AES; GnuTLS's, which made it 0.3, six times.
EXPECTED: Final[dict[Cipher, Expected]] = {"chacha20-poly1305": Expected(">=", 0.5)}
_UNIT: Final = "Gbit/s"
#: Of a first run, in which every byte is looked at.
_CHECKED_S: Final = 0.1


def measure(rounds: int, seconds: float) -> Found:
    """Goodput with each cipher, and the ratios to AES-128-GCM."""
    engine = available_engines()[0]
    with netns.veth_pair() as pair:
        upload = partial(ends.measure, pair, "upload", "udp", engine)
        progress("first runs, checked")
        for cipher in CIPHERS:
            upload(_CHECKED_S, is_checked=True, ciphers=[cipher])
        runs = {cipher: partial(upload, seconds, ciphers=[cipher]) for cipher in CIPHERS}
        found = interleave(runs, rounds)
    figures = {
        cipher: [run["bytes"] * 8 / run["seconds"] / 1e9 for run in all_]
        for cipher, all_ in found.items()
    }
    lines = [
        compared(
            figures,
            cipher,
            AGAINST,
            what=cipher,
            case=f"one stream up, {engine} over udp",
            unit=_UNIT,
            expected=EXPECTED.get(cipher),
        )
        for cipher in CIPHERS
        if cipher != AGAINST
    ]
    return Found(
        f"{_UNIT} of payload",
        [{"what": cipher, **spread(figures[cipher])} for cipher in CIPHERS],
        [line for line in lines if line.expected],
        [line for line in lines if not line.expected],
        {"engine": engine},
    )


BENCHMARK: Final = Benchmark("ciphers", __doc__, measure)

if __name__ == "__main__":
    BENCHMARK.main()
