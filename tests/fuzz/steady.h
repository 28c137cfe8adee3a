/* SPDX-License-Identifier: Apache-2.0
 *
 * Chance and time in the hands of the fuzz target, in the engine, in ngtcp2's glue and in GnuTLS: the
 * same input does the same every time.
 */
#ifndef HS_FUZZ_STEADY_H
#define HS_FUZZ_STEADY_H

#include <stdint.h>

/* Chance begins anew. */
void steady_begin(uint64_t seed);
/* What GnuTLS takes for the time: `now_ns` after a day on which the certificate is valid. */
void steady_set_time(uint64_t now_ns);
/* One self-signed certificate and its key in PEM, made once. */
void steady_certificate(const char **certificate, const char **key);

#endif
