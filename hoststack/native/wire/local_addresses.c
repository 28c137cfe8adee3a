/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/local_addresses.h"

#include <stdlib.h>
#include <string.h>

int hs_local_addresses_set(struct hs_local_addresses *all, const struct hs_prefix *prefixes,
			   uint32_t count)
{
	struct hs_prefix *copy = malloc((count ? count : 1) * sizeof(*copy));
	if (!copy)
		return -1;
	memcpy(copy, prefixes, count * sizeof(*copy));
	free(all->prefixes);
	all->prefixes = copy;
	all->count = count;
	return 0;
}

void hs_local_addresses_free(struct hs_local_addresses *all)
{
	free(all->prefixes);
	all->prefixes = NULL;
	all->count = 0;
}

static int covers(const struct hs_prefix *prefix, uint8_t ip_version, const uint8_t *ip)
{
	uint8_t whole = prefix->bits / 8, rest = prefix->bits % 8;
	return prefix->ip_version == ip_version && !memcmp(prefix->ip, ip, whole) &&
	       !(rest && (prefix->ip[whole] ^ ip[whole]) >> (8 - rest));
}

int hs_is_local(const struct hs_local_addresses *all, uint8_t ip_version, const uint8_t *ip)
{
	for (uint32_t i = 0; i < all->count; i++) {
		if (!all->prefixes[i].is_broadcast && covers(&all->prefixes[i], ip_version, ip))
			return 1;
	}
	return 0;
}

int hs_is_martian(const struct hs_local_addresses *all, uint8_t ip_version, const uint8_t *ip)
{
	for (uint32_t i = 0; i < all->count; i++) {
		if (covers(&all->prefixes[i], ip_version, ip))
			return 1;
	}
	return 0;
}
