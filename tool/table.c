/* SPDX-License-Identifier: Apache-2.0 */
/* table.c -- text in columns */
#include "tool.h"

#include <stdio.h>
#include <string.h>

enum { COLUMNS_MAX = 8 };

static void print_row(const char *const *cells, const size_t *width, size_t columns)
{
	for (size_t i = 0; i + 1 < columns; i++)
		printf("%-*s  ", (int)width[i], cells[i]);
	printf("%s\n", cells[columns - 1]);
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
