// SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
//
// Every packet of a queue goes to the AF_XDP socket of that queue, if there is one in `sockets`,
// and else to the kernel.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *packet)
{
	return bpf_redirect_map(&sockets, packet->rx_queue_index, XDP_PASS);
}

char program_license[] SEC("license") = "Dual BSD/GPL";
