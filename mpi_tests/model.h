/* SPDX-License-Identifier: Apache-2.0 */
/* model.h -- the KV cache geometries that can be replayed */
#ifndef MPI_TESTS_MODEL_H
#define MPI_TESTS_MODEL_H

#include <stdint.h>
#include <stdio.h>

enum { MODEL_TENSORS_MAX = 4 };

struct model {
	const char *name;
	const char *what;
	uint32_t layers;
	uint32_t block_tokens;
	uint32_t tensors;
	struct {
		const char *name;
		uint32_t block_bytes;
	} tensor[MODEL_TENSORS_MAX];
};

/* NULL where there is no model of this name. */
const struct model *model_find(const char *name);

/* Bytes of one block in all tensors of one layer. */
uint64_t model_layer_bytes(const struct model *m);

/* One line a model. */
void model_list(FILE *out);

#endif
