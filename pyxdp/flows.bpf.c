// SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
//
// Counts packets and bytes of each flow that the filter accepts, and passes every packet on. Of too
// many flows those that were not seen for the longest are forgotten.
#include "packet.bpf.h"

struct counts {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, struct counts);
} flows SEC(".maps");

SEC("xdp")
int count_flows(struct xdp_md *packet)
{
	struct counts first = { 1, packet->data_end - packet->data };
	struct counts *counts;
	struct flow flow;

	flow_of(packet, &flow);
	if (!filter_accepts(&flow))
		return XDP_PASS;
	counts = bpf_map_lookup_elem(&flows, &flow);
	if (!counts) {
		// Another CPU may be the first.
		if (!bpf_map_update_elem(&flows, &flow, &first, BPF_NOEXIST))
			return XDP_PASS;
		counts = bpf_map_lookup_elem(&flows, &flow);
	}
	if (counts) {
		counts->packets += first.packets;
		counts->bytes += first.bytes;
	}
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
