/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages of recvmmsg and sendmmsg, for the C files that build or parse them. Define _GNU_SOURCE.
 */
#ifndef HS_UDP_MESSAGES_H
#define HS_UDP_MESSAGES_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "wire/udp.h"
#include "wire/verbs.h"

enum {
	/* Room for the local address, the ECN bits and the size of a segment. */
	HS_UDP_CONTROL_BYTES =
		CMSG_SPACE(sizeof(struct in6_pktinfo)) + 2 * CMSG_SPACE(sizeof(int)),
};

/* Parse addresses, size and ECN bits of a received message, which may hold several datagrams. */
void hs_udp_take_message(struct mmsghdr *message, struct hs_udp_datagram *out);
/* Fill in the address that a message is sent to. Returns its size. */
socklen_t hs_udp_fill_remote(union hs_address *remote, const struct hs_udp_flow *flow);
/* Send from the flow's local address, which matters for sockets that are bound to none. Returns
 * the control message that was written; others may follow it. */
struct cmsghdr *hs_udp_fill_local(struct msghdr *header, uint8_t *control,
				  const struct hs_udp_flow *flow);

#endif
