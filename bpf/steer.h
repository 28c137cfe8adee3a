/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
 *
 * Definitions shared by the steering program and the rest of Hoststack: the layout of our
 * connection IDs, the maps, and the verdicts. C and Python both read them here: cffi reads this
 * header too, without its preprocessor lines.
 *
 * Connection IDs follow draft-ietf-quic-load-balancers, unencrypted:
 *
 *   octet 0       config rotation (3 high bits), length of the rest (5 low bits)
 *   octets 1, 2   host, big-endian        } the server ID: a load balancer routes on the host,
 *   octet 3       worker                  } the steering program on the worker
 *   octets 4-11   random
 */
#ifndef HS_STEER_H
#define HS_STEER_H

#ifndef __bpf__
#include <stdint.h>
#endif

enum hs_cid {
	HS_CID_BYTES = 12,
	HS_CID_ROTATION_SHIFT = 5,
	HS_CID_LENGTH_MASK = 0x1f,
	HS_CID_HOST_OFFSET = 1,
	HS_CID_WORKER_OFFSET = 3,
	HS_CID_RANDOM_OFFSET = 4,
	HS_CID_MAX_BYTES = 20, /* for any endpoint, in QUIC versions 1 and 2 (RFC 9000 17.2) */
};

enum hs_steer_limits {
	HS_STEER_MAX_WORKERS = 256, /* the worker is one octet */
	HS_STEER_MAX_QUEUES = 128,
	HS_STEER_MAX_PORTS = 8192,
	HS_STEER_VLAN_TAGS = 2,
	HS_STEER_EXTENSION_HEADERS = 8,
};

/* Map hs_config: an array with one entry. Both rotations may be the same. */
struct hs_steer_config {
	uint32_t workers; /* 0: do not steer, pass everything */
	uint16_t host; /* as a number */
	uint8_t rotation;
	uint8_t previous_rotation; /* connection IDs of the previous generation are still ours */
};

/* Map hs_ports: a hash. UDP datagrams to an address and port in it are ours; the address may be
 * all zeros for any address of this machine. The value, a uint32_t, is HS_STEER_QUIC if
 * connection IDs identify the worker; for a port of plain datagrams it is the worker's number
 * plus one. */
enum { HS_STEER_QUIC = 0 };

struct hs_steer_port {
	uint8_t ip_version; /* 4 or 6 */
	uint8_t zero;
	uint16_t port_be; /* network byte order */
	uint8_t ip[16]; /* an IPv4 address takes the first 4 bytes, the others are 0 */
};

/* Map hs_sockets: an XSKMAP with the socket at index `queue * workers + worker`.
 *
 * Map hs_verdicts: a per-CPU array of uint64_t, the count of each verdict. Packets that pass go
 * to the kernel's own stack, as without the program. */
enum hs_steer_verdict {
	HS_STEER_REDIRECTED_BY_CID, /* to the worker that the connection ID names */
	HS_STEER_REDIRECTED_AS_NEW, /* a foreign connection ID: to the queue's own worker */
	HS_STEER_REDIRECTED_BY_PORT, /* plain datagrams: to the worker that has the port */
	HS_STEER_REDIRECT_FAILED, /* no socket at that index; passed */
	HS_STEER_PASSED_NOT_STEERING, /* no configuration yet */
	HS_STEER_PASSED_NOT_IP, /* ARP and everything else, including more than two VLAN tags */
	HS_STEER_PASSED_NOT_UDP,
	HS_STEER_PASSED_OTHER_PORT,
	HS_STEER_PASSED_GROUP, /* to a port of ours, but by broadcast or multicast */
	HS_STEER_PASSED_ON, /* to a port of ours on any address, but routed to another machine */
	HS_STEER_PASSED_FRAGMENT,
	HS_STEER_PASSED_EXTENSION, /* too many extension headers, or routing segments left */
	HS_STEER_PASSED_MALFORMED, /* truncated, or lengths that contradict each other */
	HS_STEER_DROPPED_EMPTY, /* to a port of ours, without a payload */
	HS_STEER_DROPPED_NOT_QUIC, /* a short header without the fixed bit (RFC 9000 17.3.1) */
	HS_STEER_DROPPED_TOO_SHORT, /* truncated within the connection ID */
	HS_STEER_DROPPED_LONG_CID, /* a long header with a connection ID beyond 20 bytes */
	HS_STEER_VERDICTS, /* the number of verdicts */
};

#endif
