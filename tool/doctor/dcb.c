/* SPDX-License-Identifier: Apache-2.0 */
/* dcb.c -- the answer of DCB netlink to "which priorities have flow control" */
#include "doctor.h"

#include <errno.h>
#include <linux/dcbnl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { REPLY = 8192 };

/*
 * The payload of the first attribute of this type; NULL if there is none, or the lengths do not
 * fit.
 */
static const uint8_t *find(const uint8_t *at, size_t len, uint16_t type, size_t *found_len)
{
	struct nlattr attr;

	while (len >= sizeof(attr)) {
		size_t step;

		memcpy(&attr, at, sizeof(attr));
		if (attr.nla_len < sizeof(attr) || attr.nla_len > len)
			return NULL;
		if ((attr.nla_type & NLA_TYPE_MASK) == type) {
			*found_len = attr.nla_len - sizeof(attr);
			return at + sizeof(attr);
		}
		step = (attr.nla_len + 3u) & ~(size_t)3;
		step = step < len ? step : len;
		at += step;
		len -= step;
	}
	return NULL;
}

int doctor_dcb_parse(const uint8_t *reply, size_t len, uint8_t *mask)
{
	const uint8_t *ieee, *pfc;
	struct nlmsghdr head;
	size_t n;
	int error;

	if (len < NLMSG_HDRLEN)
		return EBADMSG;
	memcpy(&head, reply, sizeof(head));
	if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > len)
		return EBADMSG;
	if (head.nlmsg_type == NLMSG_ERROR) {
		if (head.nlmsg_len < NLMSG_HDRLEN + sizeof(error))
			return EBADMSG;
		memcpy(&error, reply + NLMSG_HDRLEN, sizeof(error));
		return error < 0 ? -error : EBADMSG;
	}
	if (head.nlmsg_len < NLMSG_LENGTH(sizeof(struct dcbmsg)))
		return EBADMSG;
	n = head.nlmsg_len - NLMSG_LENGTH(sizeof(struct dcbmsg));
	ieee = find(reply + NLMSG_LENGTH(sizeof(struct dcbmsg)), n, DCB_ATTR_IEEE, &n);
	pfc = ieee ? find(ieee, n, DCB_ATTR_IEEE_PFC, &n) : NULL;
	if (!pfc || n < sizeof(struct ieee_pfc))
		return ENODATA;
	*mask = pfc[offsetof(struct ieee_pfc, pfc_en)];
	return 0;
}

struct question {
	struct nlmsghdr head;
	struct dcbmsg dcb;
	struct nlattr attr;
	char name[IFNAMSIZ];
};

int doctor_dcb_ask(const char *netdev, uint8_t *mask)
{
	struct question q = { .head = { .nlmsg_type = RTM_GETDCB, .nlmsg_flags = NLM_F_REQUEST },
			      .dcb = { .cmd = DCB_CMD_IEEE_GET },
			      .attr = { .nla_type = DCB_ATTR_IFNAME } };
	struct timeval wait = { .tv_sec = 1 };
	uint8_t reply[REPLY];
	ssize_t len;
	int fd, error = 0;

	snprintf(q.name, sizeof(q.name), "%s", netdev);
	q.attr.nla_len = (uint16_t)(sizeof(q.attr) + strlen(q.name) + 1);
	q.head.nlmsg_len =
		(uint32_t)(offsetof(struct question, attr) + ((q.attr.nla_len + 3u) & ~3u));
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		return errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	if (send(fd, &q, q.head.nlmsg_len, 0) < 0 || (len = recv(fd, reply, sizeof(reply), 0)) < 0)
		error = errno;
	else
		error = doctor_dcb_parse(reply, (size_t)len, mask);
	close(fd);
	return error;
}
