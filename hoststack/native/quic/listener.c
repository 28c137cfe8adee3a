/* SPDX-License-Identifier: Apache-2.0
 *
 * Listeners, by their endpoints.
 */
#define _DEFAULT_SOURCE /* explicit_bzero */
#include "quic/listener.h"

#include <stdlib.h>
#include <string.h>

#include "quic/resume.h"
#include "quic/tls.h"
#include "wire/paths.h"

struct hs_listener *hs_quic_listen(struct hs_quic *q, uint8_t ip_version, const uint8_t *ip,
				   uint16_t port, struct hs_tls *tls,
				   const struct hs_quic_config *config)
{
	struct hs_listener *listener = calloc(1, sizeof(*listener));
	if (!listener)
		return NULL;
	listener->references = 1;
	listener->number = q->next_listener++;
	listener->ip_version = ip_version;
	memcpy(listener->ip, ip, ip_version == 4 ? 4 : 16);
	listener->port = port;
	listener->tls = tls;
	hs_tls_hold(tls);
	listener->config = *config;
	if (hs_resume_ticket_keys(q, config, tls, listener->ticket_keys)) {
		hs_listener_release(q, listener);
		return NULL;
	}
	listener->next = q->listeners;
	q->listeners = listener;
	return listener;
}

int hs_quic_replace_tls(struct hs_quic *q, struct hs_listener *listener, struct hs_tls *tls)
{
	uint8_t keys[HS_QUIC_VERSIONS][HS_QUIC_TICKET_KEY_BYTES];
	if (hs_resume_ticket_keys(q, &listener->config, tls, keys))
		return -1;
	hs_tls_hold(tls);
	hs_tls_free(listener->tls);
	listener->tls = tls;
	memcpy(listener->ticket_keys, keys, sizeof(keys));
	explicit_bzero(keys, sizeof(keys));
	return 0;
}

static int unlink_listener(struct hs_listener **list, struct hs_listener *listener)
{
	for (struct hs_listener **at = list; *at; at = &(*at)->next) {
		if (*at == listener) {
			*at = listener->next;
			return 1;
		}
	}
	return 0;
}

void hs_listener_release(struct hs_quic *q, struct hs_listener *listener)
{
	if (--listener->references)
		return;
	unlink_listener(&q->closed_listeners, listener);
	hs_tls_free(listener->tls);
	explicit_bzero(listener->ticket_keys, sizeof(listener->ticket_keys));
	free(listener);
}

void hs_quic_unlisten(struct hs_quic *q, struct hs_listener *listener)
{
	if (!unlink_listener(&q->listeners, listener))
		return;
	listener->next = q->closed_listeners;
	q->closed_listeners = listener;
	hs_listener_release(q, listener);
}

int hs_quic_has_listener(const struct hs_quic *q, uint32_t number)
{
	const struct hs_listener *lists[] = { q->listeners, q->closed_listeners };
	for (int i = 0; i < 2; i++) {
		for (const struct hs_listener *each = lists[i]; each; each = each->next) {
			if (each->number == number)
				return 1;
		}
	}
	return 0;
}

uint32_t hs_listener_number(const struct hs_listener *listener)
{
	return listener->number;
}

struct hs_listener *hs_listener_find(struct hs_quic *q, const union hs_address *local)
{
	static const uint8_t ANY[16];
	int is_v4 = local->any.sa_family == AF_INET;
	uint8_t ip[16] = { 0 };
	uint16_t port = ntohs(is_v4 ? local->v4.sin_port : local->v6.sin6_port);
	struct hs_listener *of_any = NULL;
	if (is_v4)
		memcpy(ip, &local->v4.sin_addr, 4);
	else
		memcpy(ip, &local->v6.sin6_addr, 16);
	for (struct hs_listener *each = q->listeners; each; each = each->next) {
		if (each->port != port || each->ip_version != (is_v4 ? 4 : 6))
			continue;
		if (!memcmp(each->ip, ip, sizeof(ip)))
			return each;
		if (!memcmp(each->ip, ANY, sizeof(ip)))
			of_any = each;
	}
	return of_any;
}
