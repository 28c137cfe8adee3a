/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends datagrams from addresses that are not its own, at a rate: spoofer INTERFACE MACS HOST PORT
 * PER_SECOND SECONDS < payloads. MACS are 24 hexadecimal digits, destination first. Each payload on
 * standard input has its length in front, two bytes in network order; they are sent one after the
 * other, again and again, each from another address of 10.128.0.0/9 and another port. Prints a line
 * when it begins, and at the end how many it has sent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
	HEADERS_BYTES = 42, /* Ethernet, IPv4, UDP */
	MOST_PAYLOADS = 16384,
	FRAME_BYTES = 1600,
	BATCH = 32,
};

static uint8_t frames[MOST_PAYLOADS][FRAME_BYTES];
static uint16_t lengths[MOST_PAYLOADS];

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t random_bits(void)
{
	static uint64_t state = 0x9e3779b97f4a7c15;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static void set_checksum(uint8_t *ip)
{
	uint32_t sum = 0;
	put16(ip + 10, 0);
	for (int i = 0; i < 20; i += 2)
		sum += (uint32_t)ip[i] << 8 | ip[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	put16(ip + 10, ~sum & 0xffff);
}

static void make_headers(uint8_t *frame, const uint8_t *macs, const char *host, int port,
			 uint32_t payload_bytes)
{
	memcpy(frame, macs, 12);
	put16(frame + 12, 0x0800);
	uint8_t *ip = frame + 14;
	ip[0] = 0x45;
	put16(ip + 2, 28 + payload_bytes);
	ip[8] = 64;
	ip[9] = 17;
	inet_pton(AF_INET, host, ip + 16);
	put16(ip + 22, (uint32_t)port);
	put16(ip + 24, 8 + payload_bytes); /* no checksum of UDP (RFC 768) */
}

static void spoof(uint8_t *frame)
{
	uint64_t bits = random_bits();
	uint8_t *ip = frame + 14;
	ip[12] = 10;
	ip[13] = (uint8_t)(128 | (bits & 0x7f));
	ip[14] = (uint8_t)(bits >> 8);
	ip[15] = (uint8_t)(1 + (bits >> 16) % 254);
	put16(ip + 20, 1024 + (uint32_t)((bits >> 32) % 64000));
	set_checksum(ip);
}

static int read_payloads(const uint8_t *macs, const char *host, int port)
{
	uint8_t size[2];
	int count = 0;
	while (count < MOST_PAYLOADS && fread(size, 1, 2, stdin) == 2) {
		uint32_t bytes = (uint32_t)size[0] << 8 | size[1];
		if (bytes > FRAME_BYTES - HEADERS_BYTES ||
		    fread(frames[count] + HEADERS_BYTES, 1, bytes, stdin) != bytes)
			return 0;
		make_headers(frames[count], macs, host, port, bytes);
		lengths[count++] = (uint16_t)(HEADERS_BYTES + bytes);
	}
	return count;
}

int main(int argc, char **argv)
{
	uint8_t macs[12];
	if (argc != 7)
		return 2;
	for (int i = 0; i < 12; i++) {
		unsigned int byte;
		if (sscanf(argv[2] + 2 * i, "%2x", &byte) != 1)
			return 2;
		macs[i] = (uint8_t)byte;
	}
	int count = read_payloads(macs, argv[3], atoi(argv[4]));
	double per_second = atof(argv[5]), seconds = atof(argv[6]);
	struct sockaddr_ll to = { .sll_family = AF_PACKET,
				  .sll_ifindex = (int)if_nametoindex(argv[1]) };
	int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1;
	if (!count || fd < 0 || bind(fd, (struct sockaddr *)&to, sizeof(to))) {
		perror("spoofer");
		return 1;
	}
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
	fputs("\n", stdout);
	fflush(stdout);

	uint64_t began = now_ns(), sent = 0, offered = 0;
	for (;;) {
		uint64_t passed = now_ns() - began;
		if ((double)passed >= seconds * 1e9)
			break;
		if ((double)offered >= (double)passed * per_second / 1e9) {
			nanosleep(&(struct timespec){ 0, 200000 }, NULL);
			continue;
		}
		struct mmsghdr messages[BATCH];
		struct iovec parts[BATCH];
		memset(messages, 0, sizeof(messages));
		for (int i = 0; i < BATCH; i++) {
			size_t which = (size_t)(offered++ % (uint64_t)count);
			spoof(frames[which]);
			parts[i] = (struct iovec){ frames[which], lengths[which] };
			messages[i].msg_hdr.msg_iov = &parts[i];
			messages[i].msg_hdr.msg_iovlen = 1;
		}
		/* What finds a full queue is lost, as on any network. */
		int n = sendmmsg(fd, messages, BATCH, MSG_DONTWAIT);
		sent += n > 0 ? (uint64_t)n : 0;
	}
	printf("{\"sent\": %llu, \"seconds\": %f}\n", (unsigned long long)sent,
	       (double)(now_ns() - began) / 1e9);
	return 0;
}
