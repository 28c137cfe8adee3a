/* SPDX-License-Identifier: Apache-2.0
 *
 * Version negotiation of a connection (RFC 9368). A server chooses the version that its client
 * prefers, as aioquic does; ngtcp2 by itself goes by the server's list alone. A client whose
 * version the server does not support restarts with another one.
 */
#include "quic/version.h"

#include <stdlib.h>
#include <string.h>

#include "quic/varint.h"

enum {
	VERSION_INFORMATION = 0x11, /* RFC 9368 section 3 */
	VERSION_BYTES = 4,
};

const uint32_t hs_versions[HS_QUIC_VERSIONS] = { NGTCP2_PROTO_VER_V1, NGTCP2_PROTO_VER_V2 };

void hs_version_order(uint32_t versions[HS_QUIC_VERSIONS], uint32_t first)
{
	size_t count = 0;
	versions[count++] = first;
	for (size_t i = 0; i < HS_QUIC_VERSIONS; i++) {
		if (hs_versions[i] != first && count < HS_QUIC_VERSIONS)
			versions[count++] = hs_versions[i];
	}
}

/* --- server ----------------------------------------------------------------------------------- */

/* Of the versions in a client's list, keep those that it prefers to the one that it chose: "in
 * descending order of preference" (section 3). Overwrite the others with the chosen one. */
static void leave_preferred(uint8_t *information, size_t bytes)
{
	int has_chosen = 0;
	for (size_t at = VERSION_BYTES; at + VERSION_BYTES <= bytes; at += VERSION_BYTES) {
		if (has_chosen)
			memcpy(information + at, information, VERSION_BYTES);
		has_chosen |= !memcmp(information + at, information, VERSION_BYTES);
	}
}

int hs_version_negotiate(struct hs_connection *c, const uint8_t *parameters, size_t bytes)
{
	uint8_t *copy = malloc(bytes ? bytes : 1);
	uint64_t id, length;
	if (!copy)
		return NGTCP2_ERR_NOMEM;
	memcpy(copy, parameters, bytes);
	struct hs_cursor at = { copy, copy + bytes };
	while (hs_take_varint(&at, &id) && hs_take_varint(&at, &length) &&
	       length <= (uint64_t)(at.end - at.at)) {
		if (id == VERSION_INFORMATION)
			leave_preferred(copy + (at.at - copy), (size_t)length);
		at.at += length;
	}
	/* When GnuTLS reads the parameters later, ngtcp2 already has them. */
	int failed = ngtcp2_conn_decode_and_set_remote_transport_params(c->conn, copy, bytes);
	free(copy);
	return failed;
}

/* --- client ----------------------------------------------------------------------------------- */

int hs_version_is_first(const struct hs_connection *c)
{
	return ngtcp2_conn_get_negotiated_version(c->conn) == c->config.version;
}

int hs_version_on_negotiation(ngtcp2_conn *conn __attribute__((unused)),
			      const ngtcp2_pkt_hd *header __attribute__((unused)),
			      const uint32_t *versions, size_t count, void *user_data)
{
	struct hs_connection *c = user_data;
	uint32_t wanted[HS_QUIC_VERSIONS];
	hs_version_order(wanted, c->config.version);
	c->next_version = ngtcp2_select_version(wanted, HS_QUIC_VERSIONS, versions, count);
	return 0;
}
