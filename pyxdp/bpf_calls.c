/* SPDX-License-Identifier: Apache-2.0 */
#include "bpf_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <xdp/libxdp.h>

struct pyxdp_object {
	struct bpf_object *bpf;
};

static void copy_name(char *to, const char *from, size_t from_bytes)
{
	size_t bytes = strnlen(from, from_bytes);

	memcpy(to, from, bytes);
	to[bytes] = '\0';
}

static int result(int returned)
{
	return returned < 0 ? -errno : returned;
}

static int quiet_libbpf(enum libbpf_print_level level, const char *format, va_list arguments)
{
	(void)level;
	(void)format;
	(void)arguments;
	return 0;
}

static int quiet_libxdp(enum libxdp_print_level level, const char *format, va_list arguments)
{
	(void)level;
	(void)format;
	(void)arguments;
	return 0;
}

void pyxdp_libraries_quiet(void)
{
	libbpf_set_print(quiet_libbpf);
	libxdp_set_print(quiet_libxdp);
}

void pyxdp_libbpf_version(uint32_t *major, uint32_t *minor)
{
	*major = libbpf_major_version();
	*minor = libbpf_minor_version();
}

int pyxdp_object_open(const void *data, size_t data_bytes, char *log, size_t log_bytes,
		      struct pyxdp_object **out)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "pyxdp",
		    .kernel_log_buf = log, .kernel_log_size = log_bytes, .kernel_log_level = 1);
	struct pyxdp_object *object = calloc(1, sizeof(*object));

	if (!object)
		return -ENOMEM;
	object->bpf = bpf_object__open_mem(data, data_bytes, &options);
	if (!object->bpf) {
		free(object);
		return -ENOEXEC;
	}
	*out = object;
	return 0;
}

int pyxdp_object_set_map_size(struct pyxdp_object *object, const char *map, uint32_t entries)
{
	struct bpf_map *found = bpf_object__find_map_by_name(object->bpf, map);

	if (!found)
		return -ENOENT;
	return result(bpf_map__set_max_entries(found, entries));
}

int pyxdp_object_program_name(struct pyxdp_object *object, uint32_t index, char *name)
{
	struct bpf_program *program;

	bpf_object__for_each_program(program, object->bpf) {
		if (index-- == 0) {
			copy_name(name, bpf_program__name(program), PYXDP_NAME_BYTES - 1);
			return 0;
		}
	}
	return -ENOENT;
}

int pyxdp_object_load(struct pyxdp_object *object)
{
	return result(bpf_object__load(object->bpf));
}

static int duplicate(int fd)
{
	return fd < 0 ? -ENOENT : result(fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

int pyxdp_object_program_fd(struct pyxdp_object *object, const char *program)
{
	struct bpf_program *found = bpf_object__find_program_by_name(object->bpf, program);

	return found ? duplicate(bpf_program__fd(found)) : -ENOENT;
}

int pyxdp_object_map_fd(struct pyxdp_object *object, const char *map)
{
	return duplicate(bpf_object__find_map_fd_by_name(object->bpf, map));
}

int pyxdp_object_map_name(struct pyxdp_object *object, uint32_t index, char *name)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object->bpf) {
		if (index-- == 0) {
			copy_name(name, bpf_map__name(map), PYXDP_NAME_BYTES - 1);
			return 0;
		}
	}
	return -ENOENT;
}

void pyxdp_object_close(struct pyxdp_object *object)
{
	bpf_object__close(object->bpf);
	free(object);
}

int pyxdp_map_info(int map_fd, struct pyxdp_map_info *out)
{
	struct bpf_map_info info = {0};
	uint32_t bytes = sizeof(info);

	if (bpf_obj_get_info_by_fd(map_fd, &info, &bytes) < 0)
		return -errno;
	copy_name(out->name, info.name, sizeof(info.name));
	out->id = info.id;
	out->type = info.type;
	out->key_bytes = info.key_size;
	out->value_bytes = info.value_size;
	out->max_entries = info.max_entries;
	return 0;
}

int pyxdp_map_lookup(int map_fd, const void *key, void *value)
{
	return result(bpf_map_lookup_elem(map_fd, key, value));
}

int pyxdp_map_update(int map_fd, const void *key, const void *value, uint64_t flags)
{
	return result(bpf_map_update_elem(map_fd, key, value, flags));
}

int pyxdp_map_delete(int map_fd, const void *key)
{
	return result(bpf_map_delete_elem(map_fd, key));
}

int pyxdp_map_next_key(int map_fd, const void *key, void *next)
{
	return result(bpf_map_get_next_key(map_fd, key, next));
}

int pyxdp_possible_cpus(void)
{
	return libbpf_num_possible_cpus();
}

int pyxdp_program_info(int program_fd, struct pyxdp_program_info *out)
{
	struct bpf_prog_info info = {0};
	uint32_t bytes = sizeof(info);

	if (bpf_obj_get_info_by_fd(program_fd, &info, &bytes) < 0)
		return -errno;
	copy_name(out->name, info.name, sizeof(info.name));
	out->id = info.id;
	return 0;
}

int pyxdp_program_open(uint32_t id)
{
	return result(bpf_prog_get_fd_by_id(id));
}

int pyxdp_program_map_ids(int program_fd, uint32_t *ids, uint32_t n)
{
	struct bpf_prog_info info = {.nr_map_ids = n, .map_ids = (uintptr_t)ids};
	uint32_t bytes = sizeof(info);

	if (bpf_obj_get_info_by_fd(program_fd, &info, &bytes) < 0)
		return -errno;
	/* The kernel returns how many there are, and fills in as many as fit. */
	return (int)(info.nr_map_ids < n ? info.nr_map_ids : n);
}

int pyxdp_map_open(uint32_t id)
{
	return result(bpf_map_get_fd_by_id(id));
}

int pyxdp_program_test_run(int program_fd, const void *packet, uint32_t packet_bytes, void *out,
			   uint32_t *out_bytes, uint32_t *verdict)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = packet_bytes,
		    .data_out = out, .data_size_out = *out_bytes, .repeat = 1);

	if (bpf_prog_test_run_opts(program_fd, &options) < 0)
		return -errno;
	*out_bytes = options.data_size_out;
	*verdict = options.retval;
	return 0;
}

int pyxdp_attached(int ifindex, struct pyxdp_attached *out)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, options);

	if (bpf_xdp_query(ifindex, 0, &options) < 0)
		return -errno;
	*out = (struct pyxdp_attached){
		.native_id = options.drv_prog_id,
		.generic_id = options.skb_prog_id,
		.offloaded_id = options.hw_prog_id,
	};
	/* With a single program the kernel returns only its id and mode. */
	if (options.attach_mode == XDP_ATTACHED_DRV)
		out->native_id = options.prog_id;
	else if (options.attach_mode == XDP_ATTACHED_SKB)
		out->generic_id = options.prog_id;
	else if (options.attach_mode == XDP_ATTACHED_HW)
		out->offloaded_id = options.prog_id;
	return 0;
}

int pyxdp_link_create(int program_fd, int ifindex, uint32_t flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = flags);

	return result(bpf_link_create(program_fd, ifindex, BPF_XDP, &options));
}

int pyxdp_link_info(int link_fd, struct pyxdp_link_info *out)
{
	struct bpf_link_info info = {0};
	uint32_t bytes = sizeof(info);

	if (bpf_obj_get_info_by_fd(link_fd, &info, &bytes) < 0)
		return -errno;
	if (info.type != BPF_LINK_TYPE_XDP)
		return -EINVAL;
	out->id = info.id;
	out->program_id = info.prog_id;
	out->ifindex = info.xdp.ifindex;
	return 0;
}

int pyxdp_link_detach(int link_fd)
{
	return result(bpf_link_detach(link_fd));
}

int pyxdp_pin(int fd, const char *path)
{
	return result(bpf_obj_pin(fd, path));
}

int pyxdp_open_pin(const char *path)
{
	return result(bpf_obj_get(path));
}
