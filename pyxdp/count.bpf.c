// SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
//
// Counts packets and bytes, and passes every packet to the kernel.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

enum { PACKETS, BYTES, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 counter, __u64 amount)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		*value += amount;
}

SEC("xdp")
int count_all(struct xdp_md *packet)
{
	count(PACKETS, 1);
	count(BYTES, packet->data_end - packet->data);
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
