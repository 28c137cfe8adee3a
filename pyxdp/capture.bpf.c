// SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
//
// Copies each packet that the filter accepts into a ring buffer, and passes every packet on.
#include "packet.bpf.h"

enum {
	MOST_BYTES = 9216, /* of a packet */
	HEADER_BYTES = 64,
};

enum { SEEN, LOST, COUNTERS };

struct sample {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 length_bytes; /* on the wire */
	__u32 captured_bytes;
	struct flow flow;
	__u8 packet[MOST_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} samples SEC(".maps");

/* A sample as it is made. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sample);
} room SEC(".maps");

/* The most bytes of a packet that are copied. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} snap_bytes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		*value += 1;
}

SEC("xdp")
int capture(struct xdp_md *packet)
{
	__u32 zero = 0;
	__u32 *snap = bpf_map_lookup_elem(&snap_bytes, &zero);
	struct sample *sample = bpf_map_lookup_elem(&room, &zero);
	__u64 captured;

	if (!snap || !sample)
		return XDP_PASS;
	flow_of(packet, &sample->flow);
	if (!filter_accepts(&sample->flow))
		return XDP_PASS;
	count(SEEN);
	sample->time_ns = bpf_ktime_get_ns();
	sample->length_bytes = bpf_xdp_get_buff_len(packet);
	captured = sample->length_bytes < *snap ? sample->length_bytes : *snap;
	if (captured > MOST_BYTES)
		captured = MOST_BYTES;
	sample->captured_bytes = captured;
	// The verifier needs the bounds in the register that the calls get.
	asm volatile("" : "+r"(captured));
	if (captured < 1 || captured > MOST_BYTES ||
	    bpf_xdp_load_bytes(packet, 0, sample->packet, captured) ||
	    bpf_ringbuf_output(&samples, sample, HEADER_BYTES + captured, 0))
		count(LOST);
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
