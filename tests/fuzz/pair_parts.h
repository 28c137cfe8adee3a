/* SPDX-License-Identifier: Apache-2.0
 *
 * What the pair's files offer each other: pair_streams.c to the others, pair_remote.c and
 * pair_application.c to each other, all to pair.c.
 */
#ifndef HS_FUZZ_PAIR_PARTS_H
#define HS_FUZZ_PAIR_PARTS_H

#include "pair.h"

/* pair_streams.c */
int pair_make_blocks(void *owner, uint64_t key, int is_peers, struct hs_made_block out[2]);
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

/* pair_remote.c */
void pair_send_message(struct side *s, enum pair_message_kind kind, uint32_t connection);
/* The worker and the application, until neither has anything for the other. Returns whether the
 * application may have something to do. */
int pair_pump(struct pair *p, int side);

/* pair_application.c */
/* The ID of the client's stream that is opened as the `i`th. */
int64_t pair_own_id(const struct pair *p, int i);
void pair_open_streams(struct pair *p);
void pair_add_stream(struct pair *p, int side, uint32_t connection, struct hs_end *end,
		     uint64_t handle, int64_t id);
void pair_work(struct pair *p, int side);
void pair_close_session(struct pair *p, int side, uint32_t connection);
/* The application knows that the connection is closed. Some of its streams are dropped now, some when
 * it is forgotten. */
void pair_lose_flows(struct pair *p, int side, uint32_t connection);
void pair_forget_flows(struct pair *p, int side, uint32_t connection);
void pair_announce(struct pair *p, int side, uint32_t connection);
/* What the plane tells the application. */
void pair_wake(struct pair *p, int side);

#endif
