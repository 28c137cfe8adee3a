/* SPDX-License-Identifier: Apache-2.0
 *
 * The bpf() calls that Python needs, over libbpf: objects, maps, links, pins, test runs.
 *
 * Every function returns 0 or a file descriptor, or a negative errno. The caller owns returned file
 * descriptors. cffi reads this header too, without its preprocessor lines.
 */
#ifndef PYXDP_BPF_CALLS_H
#define PYXDP_BPF_CALLS_H

#include <stddef.h>
#include <stdint.h>

enum {
	PYXDP_NAME_BYTES = 64,
};

/* A BPF object file: opened, its maps sized, then loaded. */
struct pyxdp_object;

struct pyxdp_map_info {
	char name[PYXDP_NAME_BYTES];
	uint32_t id;
	uint32_t type; /* enum bpf_map_type */
	uint32_t key_bytes;
	uint32_t value_bytes;
	uint32_t max_entries;
};

struct pyxdp_program_info {
	char name[PYXDP_NAME_BYTES];
	uint32_t id;
};

/* Ids of the programs attached to an interface; 0 where there is none. */
struct pyxdp_attached {
	uint32_t native_id;
	uint32_t generic_id;
	uint32_t offloaded_id;
};

struct pyxdp_link_info {
	uint32_t id;
	uint32_t program_id;
	uint32_t ifindex; /* 0 once the interface is gone or the link was detached */
};

/* Stop libbpf and libxdp from writing to stderr; errors reach Python as errno and log instead. */
void pyxdp_libraries_quiet(void);

/* "libbpf 1.1": major and minor of the libbpf in use. */
void pyxdp_libbpf_version(uint32_t *major, uint32_t *minor);

/* Open an object file in memory. The verifier writes to `log`, which must stay valid until the
 * object is closed. -ENOEXEC if the data is not a BPF object. */
int pyxdp_object_open(const void *data, size_t data_bytes, char *log, size_t log_bytes,
		      struct pyxdp_object **out);

/* Set the size of a map before loading. -ENOENT if there is no such map. */
int pyxdp_object_set_map_size(struct pyxdp_object *object, const char *map, uint32_t entries);

/* The name of program `index`; -ENOENT past the end. The buffer has PYXDP_NAME_BYTES. */
int pyxdp_object_program_name(struct pyxdp_object *object, uint32_t index, char *name);

int pyxdp_object_load(struct pyxdp_object *object);

/* Duplicate the descriptor of the program, or of the map, with that name. */
int pyxdp_object_program_fd(struct pyxdp_object *object, const char *program);
int pyxdp_object_map_fd(struct pyxdp_object *object, const char *map);

/* The name of map `index`; -ENOENT past the end. */
int pyxdp_object_map_name(struct pyxdp_object *object, uint32_t index, char *name);

void pyxdp_object_close(struct pyxdp_object *object);

int pyxdp_map_info(int map_fd, struct pyxdp_map_info *out);
int pyxdp_map_lookup(int map_fd, const void *key, void *value);
int pyxdp_map_update(int map_fd, const void *key, const void *value, uint64_t flags);
int pyxdp_map_delete(int map_fd, const void *key);
/* The key after `key`, or the first if `key` is NULL; -ENOENT at the end. */
int pyxdp_map_next_key(int map_fd, const void *key, void *next);

/* How many values a per-CPU map has for each key. */
int pyxdp_possible_cpus(void);

int pyxdp_program_info(int program_fd, struct pyxdp_program_info *out);
int pyxdp_program_open(uint32_t id);
/* The ids of a program's maps, at most `n` of them; returns how many. */
int pyxdp_program_map_ids(int program_fd, uint32_t *ids, uint32_t n);
int pyxdp_map_open(uint32_t id);

/* Run an XDP program on one packet. `*out_bytes` is the size of `out`, then of the packet in it.
 * `*verdict` is an enum xdp_action. */
int pyxdp_program_test_run(int program_fd, const void *packet, uint32_t packet_bytes, void *out,
			   uint32_t *out_bytes, uint32_t *verdict);

int pyxdp_attached(int ifindex, struct pyxdp_attached *out);

/* Attach with a bpf_link; `flags` are XDP_FLAGS_DRV_MODE or XDP_FLAGS_SKB_MODE. */
int pyxdp_link_create(int program_fd, int ifindex, uint32_t flags);
int pyxdp_link_info(int link_fd, struct pyxdp_link_info *out);
int pyxdp_link_detach(int link_fd);

int pyxdp_pin(int fd, const char *path);
int pyxdp_open_pin(const char *path);

#endif
