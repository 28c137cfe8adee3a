/* SPDX-License-Identifier: Apache-2.0
 *
 * Connection IDs of this side: generated, registered, and looked up. The same table has the peers'
 * tokens of stateless resets.
 */
#include "quic/cid.h"

#include <stdlib.h>
#include <string.h>

#include "memory/mix.h"

enum { LEAST_BUCKETS = 256 };

/* --- connections by connection ID ------------------------------------------------------------- */

int hs_cids_init(struct hs_cid_table *table)
{
	memset(table, 0, sizeof(*table));
	table->buckets = calloc(LEAST_BUCKETS, sizeof(*table->buckets));
	table->mask = LEAST_BUCKETS - 1;
	if (!table->buckets || gnutls_rnd(GNUTLS_RND_RANDOM, table->seed, sizeof(table->seed))) {
		free(table->buckets);
		return -1;
	}
	return 0;
}

void hs_cids_free(struct hs_cid_table *table)
{
	free(table->buckets);
}

/* Keyed: a client chooses the connection ID of its first packets, and must not choose the
 * bucket. */
static uint32_t hash(const struct hs_cid_table *table, const uint8_t *cid, size_t bytes)
{
	uint64_t words[3] = { 0 };
	memcpy(words, cid, bytes);
	uint64_t h = hs_mix(words[0] ^ table->seed[0], words[1] ^ table->seed[1]);
	h = hs_mix(h ^ words[2], table->seed[0] ^ bytes);
	return (uint32_t)(h ^ h >> 32);
}

static int is_cid(const struct hs_cid_entry *entry, const uint8_t *cid, size_t bytes)
{
	return entry->bytes == bytes && !memcmp(entry->cid, cid, bytes);
}

struct hs_connection *hs_cids_find(const struct hs_cid_table *table, const uint8_t *cid,
				   size_t bytes)
{
	if (bytes > NGTCP2_MAX_CIDLEN)
		return NULL;
	const struct hs_cid_entry *entry = table->buckets[hash(table, cid, bytes) & table->mask];
	while (entry && !is_cid(entry, cid, bytes))
		entry = entry->next;
	return entry ? entry->connection : NULL;
}

static void grow(struct hs_cid_table *table)
{
	uint32_t mask = table->mask * 2 + 1;
	struct hs_cid_entry **buckets = calloc((size_t)mask + 1, sizeof(*buckets));
	if (!buckets)
		return; /* continue with longer chains */
	for (uint32_t i = 0; i <= table->mask; i++) {
		struct hs_cid_entry *entry = table->buckets[i];
		while (entry) {
			struct hs_cid_entry *next = entry->next;
			uint32_t at = hash(table, entry->cid, entry->bytes) & mask;
			entry->next = buckets[at];
			buckets[at] = entry;
			entry = next;
		}
	}
	free(table->buckets);
	table->buckets = buckets;
	table->mask = mask;
}

int hs_cids_add(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		size_t bytes)
{
	if (bytes > NGTCP2_MAX_CIDLEN || hs_cids_find(table, cid, bytes))
		return -1;
	struct hs_cid_entry *entry = calloc(1, sizeof(*entry));
	if (!entry)
		return -1;
	if (table->count > table->mask)
		grow(table);
	uint32_t at = hash(table, cid, bytes) & table->mask;
	entry->bytes = (uint8_t)bytes;
	memcpy(entry->cid, cid, bytes);
	entry->connection = c;
	entry->next = table->buckets[at];
	table->buckets[at] = entry;
	entry->next_own = c->cids;
	c->cids = entry;
	table->count++;
	return 0;
}

static void unlink_entry(struct hs_cid_table *table, struct hs_cid_entry *entry)
{
	uint32_t at = hash(table, entry->cid, entry->bytes) & table->mask;
	struct hs_cid_entry **link = &table->buckets[at];
	while (*link != entry)
		link = &(*link)->next;
	*link = entry->next;
	table->count--;
}

void hs_cids_remove(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		    size_t bytes)
{
	for (struct hs_cid_entry **link = &c->cids; *link; link = &(*link)->next_own) {
		struct hs_cid_entry *entry = *link;
		if (is_cid(entry, cid, bytes)) {
			*link = entry->next_own;
			unlink_entry(table, entry);
			free(entry);
			return;
		}
	}
}

void hs_cids_remove_all(struct hs_cid_table *table, struct hs_connection *c)
{
	while (c->cids) {
		struct hs_cid_entry *entry = c->cids;
		c->cids = entry->next_own;
		unlink_entry(table, entry);
		free(entry);
	}
}

/* --- generation ------------------------------------------------------------------------------- */

int hs_draw_cid(const struct hs_quic *q, ngtcp2_cid *cid)
{
	cid->datalen = HS_CID_BYTES;
	memcpy(cid->data, q->cid_prefix, sizeof(q->cid_prefix));
	return gnutls_rnd(GNUTLS_RND_NONCE, cid->data + HS_CID_RANDOM_OFFSET,
			  HS_CID_BYTES - HS_CID_RANDOM_OFFSET) ?
		       -1 :
		       0;
}

int hs_new_cid(struct hs_connection *c, ngtcp2_cid *cid, uint8_t *reset_token)
{
	struct hs_quic *q = c->q;
	if (hs_draw_cid(q, cid) ||
	    ngtcp2_crypto_generate_stateless_reset_token(reset_token, q->secret, sizeof(q->secret),
							 cid))
		return -1;
	return hs_cids_add(&q->cids, c, cid->data, cid->datalen);
}

/* --- for listing ------------------------------------------------------------------------------ */

static size_t put_cid(uint8_t *out, const ngtcp2_cid *cid)
{
	out[0] = (uint8_t)cid->datalen;
	memcpy(out + 1, cid->data, cid->datalen);
	return 1 + cid->datalen;
}

size_t hs_connection_local_cids(const struct hs_connection *c, uint8_t *out)
{
	ngtcp2_cid cids[HS_QUIC_CIDS];
	size_t bytes = 0;
	if (ngtcp2_conn_get_scid(c->conn, NULL) > HS_QUIC_CIDS)
		return 0;
	size_t count = ngtcp2_conn_get_scid(c->conn, cids);
	for (size_t i = 0; i < count; i++)
		bytes += put_cid(out + bytes, &cids[i]);
	return bytes;
}

size_t hs_connection_remote_cid(const struct hs_connection *c, uint8_t *out)
{
	return put_cid(out, ngtcp2_conn_get_dcid(c->conn));
}
