/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_TABLES_H
#define HS_QUIC_TABLES_H

#include "quic/state.h"

int hs_streams_init(struct hs_stream_table *table);
void hs_streams_free(struct hs_stream_table *table);
struct hs_stream *hs_streams_find(const struct hs_stream_table *table,
				  const struct hs_connection *c, int64_t id);
void hs_streams_add(struct hs_stream_table *table, struct hs_stream *s);
void hs_streams_remove(struct hs_stream_table *table, struct hs_stream *s);

/* Allocate a connection's number. Returns 0, or -1 without memory. */
int hs_number_allocate(struct hs_quic *q, struct hs_connection *c);
void hs_number_release(struct hs_quic *q, struct hs_connection *c);

#endif
