"""The text of `quic_echo --help`."""

from __future__ import annotations

from typing import Final

USAGE: Final = """\
Usage: quic_echo [interface IFACE | link udp | socket-name PATH] server|client
                 uri quic://ADDRESS:PORT [WORDS]

Sends bytes over QUIC, has them echoed, checks them, and times it, as VPP's vpp_echo does.
Words go in any order. Sizes are bytes, or with K, M, G (also Kb, Mb, Gb), in multiples of 1024.

Where
  interface IFACE     AF_XDP on this interface; as root, or with CAP_BPF, CAP_NET_ADMIN and
                      CAP_NET_RAW
  link L              auto, af_xdp or udp; without an interface it is udp, the kernel's sockets;
                      auto uses af_xdp where it works, and says why where not
  mode M              of XDP: auto, native (in the driver) or generic (anywhere)
  engine E            of QUIC: auto, native (in C, where it was built) or aioquic
  busy-poll N         look for datagrams without end, N microseconds (1 to 1000) at a time, instead
                      of sleeping: shorter round trips for a whole core. engine native
  socket-name PATH    attach to the daemon (`hoststack run`) that listens there, in place of a stack
                      of its own; link, mode, engine and busy-poll are the daemon's then
  appns ID            the daemon's application namespace to belong to, with
  secret S            its secret
  nthreads N          N threads (1 to 32), each with a loop and an attachment of its own. A client's
                      share its connections; a server's get connections in turns
  global-scope, local-scope, all-scope
                      the network (the default), the other applications of the namespace, or both
  uri URI             the server's address; VPP's older quic://ADDRESS/PORT is accepted too

How much
  nclients N[/M]      N connections first, and once all are open, M streams in each (1/1);
                      also nclient. A server with N exits after N connections, and one without
                      runs until Ctrl-C
  quic-streams M      M streams in each connection
  TX=N|RX             send N bytes on each stream; TX=RX reflects what arrives
  RX=N                expect N bytes on each stream
                      The side that opens streams: TX=64K, and RX as TX. The other: TX=RX, and
                      RX is what arrives until the peer's end of the stream
  uni                 unidirectional streams: the side that opens them sends, the other receives
  quic-setup S        default: the client opens the streams; serverstream: the server does.
                      Give both sides the same uni and quic-setup

How
  test-bytes[:assert] check every byte that arrives; with assert the first wrong one ends the run
  sclose=Y|N|W        a stream's end: Y send it when TX is done, N send none, W wait for the
                      peer's first. Default: Y for the side that opens streams, else W
  qclose=Y|N|W        a connection's close, in the same way. Default: client Y, server W
  fifo-size N         receive and transmit FIFO of each stream, so its flow-control window (1M)
  rx-buf N            bytes read at once from a stream (1M)
  tx-buf N            bytes written at once to a stream (1M)
  connect-timeout N   seconds that a handshake may take (10)
  idle-timeout N      seconds of silence after which a connection is closed (30)

Certificates
  cert FILE key FILE  of the server, PEM; without them it creates a self-signed certificate
  verify              the client checks the server's certificate by the system's authorities;
                      it does NOT check it by default
  ca FILE             check it by these authorities, PEM
  server-name NAME    what the certificate must be for, if not the URI's host
  alpn NAME           the application protocol to agree on (echo)

What it prints
  time START:END      time between two events (qconnect:lastbyte):
                        start        the program starts
                        qconnect     the first connection is started
                        qconnected   the last connection is established
                        sconnect     the first stream is requested
                        sconnected   the last stream is open
                        lastbyte     the last byte was received; where none is expected: the
                                     last that was sent is acknowledged
                        exit         the program ends
  stats N             throughput every N seconds
  log=N               0 only the report, 1 also what is unusual (default), 2 every session
  json                the report as JSON, also when it failed

Exit status: 0 all bytes arrived and all sessions were closed in order; 1 otherwise; 2 invalid
words; 130 Ctrl-C (143 SIGTERM), with a report. docs/quic_echo.md has examples.
"""
