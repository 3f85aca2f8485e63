/* SPDX-License-Identifier: Apache-2.0 */
/* model.c -- the KV cache geometries that can be replayed */
#include "model.h"

#include <string.h>

static const struct model models[] = {
	{ "llama3-8b",
	  "Llama-3-8B, TP1: 8 KV heads x 128, bf16",
	  32,
	  16,
	  2,
	  { { "k", 32768 }, { "v", 32768 } } },
	{ "llama3-70b-tp8",
	  "Llama-3-70B, TP8: 1 KV head x 128, bf16",
	  80,
	  16,
	  2,
	  { { "k", 4096 }, { "v", 4096 } } },
	{ "qwen3-235b-tp4",
	  "Qwen3-235B-A22B, TP4: 1 KV head x 128, fp8 with scales",
	  94,
	  16,
	  4,
	  { { "k", 2048 }, { "v", 2048 }, { "k_scale", 64 }, { "v_scale", 64 } } },
	{ "deepseek-v3-mla",
	  "DeepSeek-V3, MLA: one latent of 512 + 64, bf16",
	  61,
	  64,
	  1,
	  { { "kv", 73728 } } },
};

enum { MODELS = sizeof(models) / sizeof(models[0]) };

const struct model *model_find(const char *name)
{
	size_t i;

	for (i = 0; i < MODELS; i++)
		if (strcmp(models[i].name, name) == 0)
			return &models[i];
	return NULL;
}

uint64_t model_layer_bytes(const struct model *m)
{
	uint64_t bytes = 0;
	uint32_t t;

	for (t = 0; t < m->tensors; t++)
		bytes += m->tensor[t].block_bytes;
	return bytes;
}

void model_list(FILE *out)
{
	uint32_t t;
	size_t i;

	fprintf(out, "%-16s %6s %12s  %-34s %s\n", "model", "layers", "block tokens",
		"bytes of a block, each tensor", "what it is");
	for (i = 0; i < MODELS; i++) {
		char tensors[64] = "";
		size_t used = 0;

		for (t = 0; t < models[i].tensors && used < sizeof(tensors); t++)
			used += (size_t)snprintf(tensors + used, sizeof(tensors) - used, "%s%s %u",
						 t ? ", " : "", models[i].tensor[t].name,
						 models[i].tensor[t].block_bytes);
		fprintf(out, "%-16s %6u %12u  %-34s %s\n", models[i].name, models[i].layers,
			models[i].block_tokens, tensors, models[i].what);
	}
}
