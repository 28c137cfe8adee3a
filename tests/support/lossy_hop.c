/* SPDX-License-Identifier: Apache-2.0 */
/* A hop between two interfaces that loses, reorders, duplicates and corrupts UDP datagrams; all other
 * frames pass as they are.
 *
 *     lossy_hop LEFT RIGHT SEED
 *
 * A line on stdin with four numbers sets how many of a million datagrams are lost, held back so that
 * others overtake them, sent twice, and corrupted. The answer to each line, even an empty one, is
 * a line of COUNTS numbers for each direction, from LEFT and then from RIGHT: the totals so far.
 * It ends with stdin, and so with the test that started it.
 *
 * The n-th datagram of a direction is treated in the same way each time. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	FRAME_BYTES = 9216, /* a jumbo frame; what is longer was not made for a wire */
	BURST = 64,
	MOST_HELD = 256,
	SOCKET_BUFFER_BYTES = 32 << 20,
	SHORTEST_HOLD_NS = 100 * 1000,
	LONGEST_HOLD_NS = 2000 * 1000,
	MILLION = 1000000,
	IPV4_BYTES = 20,
	IPV6_BYTES = 40,
	UDP_BYTES = 8,
	UDP_PROTOCOL = 17,
};

enum fate { LOST, HELD, TWICE, CORRUPT, FATES };

/* In the order of tests/support/lossy_hop.py's Counts. */
enum count {
	DATAGRAMS,
	OTHER_FRAMES,
	N_LOST,
	N_OVERTAKEN, /* held back, and overtaken in its direction */
	N_TWICE,
	N_CORRUPT, /* the kernel finds it: the UDP checksum is wrong */
	N_FORGED, /* QUIC alone finds it: the checksum was made right again */
	SPOILT_BYTES, /* UDP payloads lost or corrupted */
	TOO_LONG, /* not carried */
	OVERRUN, /* lost because this program was too slow */
	REFUSED, /* by the interface that it should have left by */
	COUNTS,
};

struct frame {
	uint32_t bytes;
	uint8_t data[FRAME_BYTES];
};

struct held {
	struct frame frame;
	struct direction *direction; /* NULL: free */
	uint64_t due_ns;
	uint64_t gone_before; /* the direction's `gone` when it was received */
};

struct direction {
	int in, out;
	uint64_t random;
	uint64_t gone; /* datagrams sent on */
	uint64_t counts[COUNTS];
};

struct datagram {
	uint8_t *udp;
	uint32_t payload_bytes;
};

static uint32_t rates[FATES]; /* of a million */
static struct held held[MOST_HELD];
static int held_count;
static struct frame burst[BURST];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* SplitMix64. */
static uint64_t draw(struct direction *direction)
{
	uint64_t z = direction->random += 0x9e3779b97f4a7c15;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static uint64_t draw_below(struct direction *direction, uint64_t limit)
{
	return draw(direction) % limit;
}

static uint32_t read16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static void write16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* Returns 0 for what is not a whole UDP datagram with a payload. */
static int find_udp(struct frame *f, struct datagram *found)
{
	uint8_t *ip = f->data + ETH_HLEN, *udp;
	if (f->bytes < ETH_HLEN + IPV4_BYTES + UDP_BYTES)
		return 0;
	switch (read16(f->data + 2 * ETH_ALEN)) {
	case ETH_P_IP:
		/* The second test is for fragments. */
		if (ip[9] != UDP_PROTOCOL || read16(ip + 6) & 0x3fff)
			return 0;
		udp = ip + 4 * (ip[0] & 15);
		break;
	case ETH_P_IPV6:
		if (ip[6] != UDP_PROTOCOL)
			return 0;
		udp = ip + IPV6_BYTES;
		break;
	default:
		return 0;
	}
	const uint8_t *end = f->data + f->bytes;
	if (udp + UDP_BYTES > end)
		return 0;
	uint32_t bytes = read16(udp + 4);
	if (bytes <= UDP_BYTES || udp + bytes > end)
		return 0;
	*found = (struct datagram){ udp, bytes - UDP_BYTES };
	return 1;
}

/* Flip one bit of the payload; half of the times with a checksum that is right (RFC 1624, eqn. 3). */
static void corrupt(struct direction *direction, struct datagram *d)
{
	uint32_t at = UDP_BYTES + (uint32_t)draw_below(direction, d->payload_bytes);
	uint8_t *word = d->udp + (at & ~1u);
	int is_whole = (at & ~1u) + 1 < UDP_BYTES + d->payload_bytes;
	uint32_t before = is_whole ? read16(word) : (uint32_t)*word << 8;
	d->udp[at] ^= (uint8_t)(1 << draw_below(direction, 8));
	uint32_t after = is_whole ? read16(word) : (uint32_t)*word << 8;
	if (draw(direction) & 1) {
		direction->counts[N_CORRUPT]++;
		return;
	}
	uint32_t sum = (~read16(d->udp + 6) & 0xffff) + (~before & 0xffff) + after;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
	write16(d->udp + 6, sum ? sum : 0xffff);
	direction->counts[N_FORGED]++;
}

static void send_on(struct direction *direction, const struct frame *f)
{
	ssize_t sent;
	do
		sent = send(direction->out, f->data, f->bytes, 0);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		direction->counts[REFUSED]++;
}

static void send_datagram(struct direction *direction, const struct frame *f)
{
	direction->gone++;
	send_on(direction, f);
}

/* Keep a frame for a while. Returns 0 when there is no room for it. */
static int hold(struct direction *direction, const struct frame *f, uint64_t for_ns)
{
	for (int i = 0; i < MOST_HELD; i++) {
		struct held *h = &held[i];
		if (h->direction)
			continue;
		h->frame.bytes = f->bytes;
		memcpy(h->frame.data, f->data, f->bytes);
		h->direction = direction;
		h->due_ns = now_ns() + for_ns;
		h->gone_before = direction->gone;
		held_count++;
		return 1;
	}
	return 0;
}

/* Send what was held long enough. Returns when the next is due, UINT64_MAX for none. */
static uint64_t release(void)
{
	uint64_t now = now_ns(), next = UINT64_MAX;
	for (int i = 0, seen = 0, all = held_count; seen < all; i++) {
		struct held *h = &held[i];
		if (!h->direction)
			continue;
		seen++;
		if (h->due_ns <= now) {
			h->direction->counts[N_OVERTAKEN] += h->direction->gone > h->gone_before;
			send_datagram(h->direction, &h->frame);
			h->direction = NULL;
			held_count--;
		} else if (h->due_ns < next) {
			next = h->due_ns;
		}
	}
	return next;
}

static void carry(struct direction *direction, struct frame *f)
{
	struct datagram d;
	if (!find_udp(f, &d)) {
		direction->counts[OTHER_FRAMES]++;
		send_on(direction, f);
		return;
	}
	direction->counts[DATAGRAMS]++;
	/* All is drawn for each, so that one rate does not change what the others hit. */
	int has[FATES];
	for (int i = 0; i < FATES; i++)
		has[i] = draw_below(direction, MILLION) < rates[i];
	uint64_t hold_ns =
		SHORTEST_HOLD_NS + draw_below(direction, LONGEST_HOLD_NS - SHORTEST_HOLD_NS);
	if (has[LOST]) {
		direction->counts[N_LOST]++;
		direction->counts[SPOILT_BYTES] += d.payload_bytes;
		return;
	}
	if (has[TWICE]) {
		direction->counts[N_TWICE]++;
		send_datagram(direction, f);
	}
	if (has[CORRUPT]) {
		/* If it went before as it was, nothing is missing. */
		direction->counts[SPOILT_BYTES] += has[TWICE] ? 0 : d.payload_bytes;
		corrupt(direction, &d);
	}
	if (!has[HELD] || !hold(direction, f, hold_ns))
		send_datagram(direction, f);
}

static void receive(struct direction *direction)
{
	struct mmsghdr messages[BURST];
	struct iovec parts[BURST];
	for (int i = 0; i < BURST; i++) {
		parts[i] = (struct iovec){ burst[i].data, FRAME_BYTES };
		messages[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &parts[i],
							     .msg_iovlen = 1 } };
	}
	int n = recvmmsg(direction->in, messages, BURST, MSG_DONTWAIT, NULL);
	if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENETDOWN)
		die("recvmmsg");
	for (int i = 0; i < n; i++) {
		burst[i].bytes = messages[i].msg_len;
		if (messages[i].msg_hdr.msg_flags & MSG_TRUNC)
			direction->counts[TOO_LONG]++;
		else
			carry(direction, &burst[i]);
	}
}

static int open_interface(const char *name)
{
	int fd = socket(AF_PACKET, SOCK_RAW, 0), yes = 1, bytes = SOCKET_BUFFER_BYTES;
	struct sockaddr_ll address = { .sll_family = AF_PACKET,
				       .sll_protocol = htons(ETH_P_ALL),
				       .sll_ifindex = (int)if_nametoindex(name) };
	if (fd < 0 || !address.sll_ifindex ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof(yes)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die(name);
	return fd;
}

static void report(struct direction *direction)
{
	struct tpacket_stats statistics; /* since they were asked for last */
	socklen_t bytes = sizeof(statistics);
	if (getsockopt(direction->in, SOL_PACKET, PACKET_STATISTICS, &statistics, &bytes))
		die("PACKET_STATISTICS");
	direction->counts[OVERRUN] += statistics.tp_drops;
	for (int i = 0; i < COUNTS; i++)
		printf("%llu%c", (unsigned long long)direction->counts[i], i + 1 < COUNTS ? ' ' : '\n');
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: lossy_hop LEFT RIGHT SEED\n");
		return 2;
	}
	int left = open_interface(argv[1]), right = open_interface(argv[2]);
	uint64_t seed = strtoull(argv[3], NULL, 10);
	struct direction directions[] = {
		{ .in = left, .out = right, .random = seed },
		{ .in = right, .out = left, .random = ~seed },
	};
	struct pollfd fds[] = {
		{ .fd = left, .events = POLLIN },
		{ .fd = right, .events = POLLIN },
		{ .fd = STDIN_FILENO, .events = POLLIN },
	};
	for (;;) {
		uint64_t next = release(), now = now_ns();
		struct timespec wait = { 0 };
		if (next > now) {
			wait.tv_sec = (time_t)((next - now) / 1000000000);
			wait.tv_nsec = (long)((next - now) % 1000000000);
		}
		if (ppoll(fds, 3, next == UINT64_MAX ? NULL : &wait, NULL) < 0 && errno != EINTR)
			die("ppoll");
		for (int i = 0; i < 2; i++) {
			if (fds[i].revents)
				receive(&directions[i]);
		}
		if (fds[2].revents) {
			/* The test writes a line at a time and waits for the answer. */
			char line[128];
			ssize_t bytes = read(STDIN_FILENO, line, sizeof(line) - 1);
			if (bytes <= 0)
				return 0;
			line[bytes] = 0;
			uint32_t r[FATES];
			if (sscanf(line, "%u %u %u %u", &r[LOST], &r[HELD], &r[TWICE],
				   &r[CORRUPT]) == FATES)
				memcpy(rates, r, sizeof(rates));
			report(&directions[0]);
			report(&directions[1]);
			fflush(stdout);
		}
	}
}
