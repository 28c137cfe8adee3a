/* The probes of `hoststack trace`, in bcc's dialect of C: the XDP tracepoints, and the native
 * engine's turn by uprobes. hoststack/trace/probes.py compiles it, with
 *   RECEIVED_OFFSET, SENT_OFFSET  offsets of the members in struct hs_quic_turn
 *   SOME_PIDS                     defined to count only the processes in `pids`
 */
#include <uapi/linux/ptrace.h>

/* A redirect: its program, interface, map index, and result (0 or a negative errno). */
struct redirect {
	u32 prog_id;
	u32 ifindex;
	u32 map_index;
	s32 err;
};

struct exception {
	u32 prog_id;
	u32 ifindex;
	u32 act;
	u32 zero;
};

/* A turn in progress. */
struct turn {
	u64 start_ns;
	u64 out; /* struct hs_quic_turn * */
};

enum figure { TURN_NS, RECEIVED, SENT };

/* How many turns of a process had a figure with this many bits. */
struct slot {
	u32 pid;
	u16 figure;
	u16 bits;
};

struct sum {
	u32 pid;
	u32 figure;
};

BPF_HASH(redirects, struct redirect, u64, 4096);
BPF_HASH(exceptions, struct exception, u64, 1024);
BPF_HASH(turns, u64, struct turn, 4096);
BPF_HASH(slots, struct slot, u64, 65536);
BPF_HASH(sums, struct sum, u64, 4096);
BPF_HASH(pids, u32, u8, 1024);

static __always_inline int note_redirect(u32 prog_id, u32 ifindex, u32 map_index, s32 err)
{
	struct redirect key = { prog_id, ifindex, map_index, err };
	redirects.atomic_increment(key);
	return 0;
}

TRACEPOINT_PROBE(xdp, xdp_redirect)
{
	return note_redirect(args->prog_id, args->ifindex, args->map_index, 0);
}

TRACEPOINT_PROBE(xdp, xdp_redirect_err)
{
	return note_redirect(args->prog_id, args->ifindex, args->map_index, args->err);
}

TRACEPOINT_PROBE(xdp, xdp_exception)
{
	struct exception key = { args->prog_id, args->ifindex, args->act, 0 };
	exceptions.atomic_increment(key);
	return 0;
}

int turn_begins(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 pid = thread >> 32;
#ifdef SOME_PIDS
	if (!pids.lookup(&pid))
		return 0;
#endif
	struct turn turn = { bpf_ktime_get_ns(), PT_REGS_PARM5(ctx) };
	turns.update(&thread, &turn);
	return 0;
}

static __always_inline void note(u32 pid, u32 figure, u64 value)
{
	struct slot slot = { pid, figure, value ? bpf_log2l(value) : 0 };
	struct sum sum = { pid, figure };
	slots.atomic_increment(slot);
	sums.atomic_increment(sum, value);
}

int turn_ends(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct turn *found = turns.lookup(&thread);
	if (!found)
		return 0;
	struct turn turn = *found;
	turns.delete(&thread);
	u32 pid = thread >> 32, received = 0, sent = 0;
	u64 end_ns = bpf_ktime_get_ns();
	bpf_probe_read_user(&received, sizeof(received), (void *)(turn.out + RECEIVED_OFFSET));
	bpf_probe_read_user(&sent, sizeof(sent), (void *)(turn.out + SENT_OFFSET));
	note(pid, TURN_NS, end_ns - turn.start_ns);
	note(pid, RECEIVED, received);
	note(pid, SENT, sent);
	return 0;
}
