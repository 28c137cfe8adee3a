/* SPDX-License-Identifier: Apache-2.0
 *
 * What a listening engine asks of its owner about connections, where nobody has a client's keys: it
 * must never ask.
 */
#ifndef HS_FUZZ_NO_CONNECTION_H
#define HS_FUZZ_NO_CONNECTION_H

#include "fuzz.h"
#include "quic/quic.h"

static void *no_session(void *owner, uint32_t connection)
{
	(void)owner, (void)connection;
	CHECK(!"a stream of a handshake that nobody could make");
	return NULL;
}

static int no_fifos(void *owner, uint32_t connection, struct hs_fifo_producer **rx,
		    struct hs_fifo_consumer **tx)
{
	(void)owner, (void)connection, (void)rx, (void)tx;
	CHECK(!"datagrams of a handshake that nobody could make");
	return -1;
}

static int64_t no_path(void *owner, uint32_t connection, uint8_t ip_version,
		       const uint8_t *remote_ip, uint16_t remote_port)
{
	(void)owner, (void)connection, (void)ip_version, (void)remote_ip, (void)remote_port;
	CHECK(!"a server's preferred address, to a server");
	return -1;
}

#endif
