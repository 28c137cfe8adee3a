/* SPDX-License-Identifier: Apache-2.0
 *
 * A server's certificates by name (RFC 6066 section 3). GnuTLS chooses by the signature algorithms
 * of the client among those for one name; its own choice by name knows no wildcards.
 */
#define _DEFAULT_SOURCE /* strdup */
#include "quic/server_names.h"

#include <arpa/inet.h>

#include <stdlib.h>
#include <string.h>

#include "wire/paths.h"

gnutls_certificate_credentials_t hs_names_group(struct hs_tls *tls, uint32_t group)
{
	if (!group)
		return tls->shared->credentials;
	if (group > tls->group_count + 1)
		return NULL;
	if (group > tls->group_count) {
		gnutls_certificate_credentials_t *larger =
			realloc(tls->groups, group * sizeof(*larger));
		if (!larger)
			return NULL;
		tls->groups = larger;
		if (gnutls_certificate_allocate_credentials(&larger[group - 1]) < 0)
			return NULL;
		tls->group_count = group;
	}
	return tls->groups[group - 1];
}

int hs_tls_add_name(struct hs_tls *tls, const char *name, uint32_t group)
{
	uint32_t last = tls->name_count;
	if (group > tls->group_count || (last && strcmp(tls->names[last - 1].name, name) >= 0))
		return -1;
	if (!(last & (last - 1))) { /* room for powers of two */
		struct hs_name *larger = realloc(tls->names, (last ? 2 * last : 1) * sizeof(*larger));
		if (!larger)
			return -1;
		tls->names = larger;
	}
	tls->names[last] = (struct hs_name){ strdup(name), group };
	if (!tls->names[last].name)
		return -1;
	tls->name_count++;
	return 0;
}

void hs_names_free(struct hs_tls *tls)
{
	for (uint32_t i = 0; i < tls->group_count; i++)
		gnutls_certificate_free_credentials(tls->groups[i]);
	for (uint32_t i = 0; i < tls->name_count; i++)
		free(tls->names[i].name);
	free(tls->groups);
	free(tls->names);
}

static int compare(const void *text, const void *entry)
{
	return strcmp(text, ((const struct hs_name *)entry)->name);
}

static const struct hs_name *find(const struct hs_tls *tls, const char *name)
{
	return bsearch(name, tls->names, tls->name_count, sizeof(*tls->names), compare);
}

/* RFC 9525 section 6.3: a wildcard stands for the whole of the first label. */
static const struct hs_name *find_wildcard(const struct hs_tls *tls, const char *name)
{
	char wildcard[HS_QUIC_NAME_BYTES + 2] = "*";
	const char *parent = strchr(name, '.');
	if (!parent || strlen(parent) > HS_QUIC_NAME_BYTES)
		return NULL;
	memcpy(wildcard + 1, parent, strlen(parent) + 1);
	return find(tls, wildcard);
}

static const char *address_text(const union hs_address *local, char *out, socklen_t room)
{
	int is_v4 = local->any.sa_family == AF_INET;
	return inet_ntop(local->any.sa_family,
			 is_v4 ? (const void *)&local->v4.sin_addr : &local->v6.sin6_addr, out, room);
}

int hs_names_choose(struct hs_connection *c)
{
	char address[INET6_ADDRSTRLEN];
	const struct hs_tls *tls = c->tls;
	if (!tls->name_count)
		return 0;
	const char *name = c->server_name;
	if (!name && c->path)
		name = address_text(&c->path->local, address, sizeof(address));
	const struct hs_name *found = name ? find(tls, name) : NULL;
	if (!found && name)
		found = find_wildcard(tls, name);
	if (!found || !found->group)
		return 0;
	return gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE,
				      tls->groups[found->group - 1]);
}

/* An address is no name (RFC 6066 section 3), but some clients send theirs. */
static int is_of_name(char each)
{
	return (each >= 'a' && each <= 'z') || (each >= '0' && each <= '9') || each == '.' ||
	       each == '-' || each == '_' || each == ':';
}

int hs_names_note(struct hs_connection *c, const uint8_t *name, size_t bytes)
{
	if (!bytes || bytes > HS_QUIC_NAME_BYTES || c->server_name)
		return 0;
	char *copy = malloc(bytes + 1);
	if (!copy)
		return -1;
	for (size_t i = 0; i < bytes; i++) {
		int is_upper = name[i] >= 'A' && name[i] <= 'Z';
		copy[i] = (char)(is_upper ? name[i] - 'A' + 'a' : name[i]);
		if (!is_of_name(copy[i])) {
			free(copy);
			return 0;
		}
	}
	copy[bytes] = 0;
	c->server_name = copy;
	return 0;
}
