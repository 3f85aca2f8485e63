/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_name.c -- NCCL's lists of device and interface names; pure
 *
 * "mlx5"      every name that begins with mlx5
 * "=mlx5_1"   exactly mlx5_1
 * "^mlx5_1"   all but those that begin so;  "^=mlx5_1" all but exactly this one
 * "a:1,b:2"   names with a port; what follows a second colon (rail, plane) is not looked at
 */
#include <stdlib.h>
#include <string.h>

#include "np.h"

static bool entry_matches(const char *entry, size_t len, bool exact, const char *name, int port)
{
	const char *colon = memchr(entry, ':', len);
	size_t name_len = colon ? (size_t)(colon - entry) : len;

	if (!name_len || strncmp(entry, name, name_len) || (exact && name[name_len]))
		return false;
	/* strtol stops at the comma or the second colon */
	return !colon || !port || strtol(colon + 1, NULL, 10) == port;
}

bool np_name_matches(const char *list, const char *name, int port)
{
	bool inverse = *list == '^', exact, found = false;

	list += inverse;
	exact = *list == '=';
	list += exact;
	if (!*list)
		return true;
	for (; *list && !found; list += *list == ',') {
		size_t len = strcspn(list, ",");

		found = entry_matches(list, len, exact, name, port);
		list += len;
	}
	return found != inverse;
}
