/* Preloaded into Debian's gtlsserver and gtlsclient, which have no word for it: a message of many
 * datagrams is refused as by an interface without checksum offload, so they send one at a time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <sys/socket.h>

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	static ssize_t (*next)(int, const struct msghdr *, int);

	for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control;
	     control = CMSG_NXTHDR((struct msghdr *)message, control)) {
		if (control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_SEGMENT) {
			errno = EIO;
			return -1;
		}
	}
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "sendmsg");
	return next(fd, message, flags);
}
