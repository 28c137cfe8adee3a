/* SPDX-License-Identifier: Apache-2.0
 *
 * What the pair's files offer each other: pair_streams.c to pair_application.c, both to pair.c.
 */
#ifndef HS_FUZZ_PAIR_PARTS_H
#define HS_FUZZ_PAIR_PARTS_H

#include "pair.h"

/* pair_streams.c */
struct shared *pair_new_shared(struct side *s, uint32_t connection, int has_rx, int has_tx);
struct shared *pair_find_shared(struct side *s, uint64_t handle);
void pair_free_unused(struct side *s);
/* For the plane: of a stream that the peer opened. */
int pair_make_stream_fifos(void *owner, uint64_t key, uint64_t handle,
			   struct hs_fifo_producer **rx, struct hs_fifo_consumer **tx);
void pair_on_command(void *owner, uint64_t handle, uint32_t command, uint64_t code);
struct flow *pair_new_flow(struct pair *p, int side, uint32_t connection, int64_t id);
void pair_remove_flow(struct pair *p, struct flow *f);
struct flow *pair_find_flow(struct pair *p, int side, uint32_t connection, int64_t id);
int pair_make_datagram_fifos(void *owner, uint32_t connection, struct hs_fifo_producer **rx,
			     struct hs_fifo_consumer **tx);
struct link *pair_link_of(struct pair *p, int side, uint32_t connection);
/* The connection's session, a new one if it has none. */
struct hs_connection_session *pair_session_of(struct pair *p, int side, uint32_t connection);
void *pair_find_session(void *owner, uint32_t connection);

/* pair_application.c */
void pair_open_streams(struct pair *p);
void pair_work(struct pair *p, int side);
/* The connection is closed. Some of its streams are dropped now, some when it is forgotten. */
void pair_close_session(struct pair *p, int side, uint32_t connection);
void pair_forget_flows(struct pair *p, int side, uint32_t connection);
void pair_announce(struct pair *p, int side, uint32_t connection);
/* What the plane tells the application. */
void pair_wake(struct pair *p, int side);

#endif
