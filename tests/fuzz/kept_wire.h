/* SPDX-License-Identifier: Apache-2.0
 *
 * Handed wires (hoststack/native/wire/handed.c) that are kept from one input to the next: under
 * AddressSanitizer their eight megabytes cost more than a handshake. They can be told to give a
 * datagram without its path, as other wires do with one from a new address.
 */
#ifndef HS_FUZZ_KEPT_WIRE_H
#define HS_FUZZ_KEPT_WIRE_H

#include "wire/verbs.h"

enum {
	KEPT_WIRES = 2,
	KEPT_WIRE_PATHS = 8,
	UNKNOWN_PATH = 0x80, /* in the ECN field that the wire is handed */
};

/* One of KEPT_WIRES, as good as new. The engine that it is given to frees it as any other. */
struct hs_wire *kept_wire(int which);

#endif
