/* SPDX-License-Identifier: Apache-2.0 */
/* table.c -- text in columns, wrapped to the terminal; a pipe gets each row in one line */
#include "tool.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { COLUMNS_MAX = 9, NARROWEST = 60, USUAL = 100 };

static size_t width_of_output(void)
{
	struct winsize size = { .ws_col = 0 };

	if (!isatty(STDOUT_FILENO))
		return INT_MAX;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_col)
		return USUAL;
	return size.ws_col > NARROWEST ? size.ws_col : NARROWEST;
}

void text_print(size_t indent, const char *text)
{
	size_t room = width_of_output() - indent, len = strlen(text);

	while (len > room) {
		size_t end = room;

		while (end && text[end] != ' ')
			end--;
		if (!end)
			break; /* a word that is longer than the line */
		printf("%.*s\n%*s", (int)end, text, (int)indent, "");
		text += end + 1;
		len -= end + 1;
	}
	printf("%s\n", text);
}

static void print_row(const char *const *cells, const size_t *width, size_t columns)
{
	size_t indent = 0;

	for (size_t i = 0; i + 1 < columns; i++) {
		printf("%-*s  ", (int)width[i], cells[i]);
		indent += width[i] + 2;
	}
	text_print(indent, cells[columns - 1]);
}

void table_print(const char *const *head, const char *const *cells, size_t columns, size_t rows)
{
	size_t width[COLUMNS_MAX] = { 0 };

	if (columns == 0 || columns > COLUMNS_MAX)
		return;
	for (size_t i = 0; i < columns; i++) {
		width[i] = strlen(head[i]);
		for (size_t row = 0; row < rows; row++) {
			size_t len = strlen(cells[row * columns + i]);

			if (len > width[i])
				width[i] = len;
		}
	}
	print_row(head, width, columns);
	for (size_t row = 0; row < rows; row++)
		print_row(cells + row * columns, width, columns);
}
