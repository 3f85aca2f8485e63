/* SPDX-License-Identifier: Apache-2.0 */
/*
 * option.h -- the option table (option.def), read once from the environment and the caller's list
 *
 * The only place that reads the environment. A bad value is KV_ERR_ARG with the name and the range;
 * an unknown KVCACHE_* name in the environment is reported by kv_option_unknown, an unknown name in
 * the caller's list is KV_ERR_ARG.
 */
#ifndef BASE_OPTION_H
#define BASE_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvrail/kv_error.h>

enum kv_option_id {
#define INT(id, ...) KV_OPT_##id,
#define SIZE(id, ...) KV_OPT_##id,
#define BOOL(id, ...) KV_OPT_##id,
#define WORD(id, ...) KV_OPT_##id,
#define WORDS(id, ...) KV_OPT_##id,
#define TEXT(id, ...) KV_OPT_##id,
#include "option.def"
#undef INT
#undef SIZE
#undef BOOL
#undef WORD
#undef WORDS
#undef TEXT
	KV_OPTIONS
};

struct kv_option_set;

/* `list` is NULL or NULL-terminated "NAME=value" texts, which beat the environment. */
int kv_option_read(const char *const *list, struct kv_option_set **set_p, struct kv_error *err);
void kv_option_free(struct kv_option_set *set);

int64_t kv_option_int(const struct kv_option_set *set, enum kv_option_id id); /* INT, SIZE, BOOL */
bool kv_option_bool(const struct kv_option_set *set, enum kv_option_id id);
const char *kv_option_string(const struct kv_option_set *set,
			     enum kv_option_id id); /* WORD, TEXT; never NULL */
bool kv_option_is(const struct kv_option_set *set, enum kv_option_id id, const char *word);
bool kv_option_has(const struct kv_option_set *set, enum kv_option_id id,
		   const char *word); /* WORDS: it is one of them */
bool kv_option_is_set(const struct kv_option_set *set,
		      enum kv_option_id id); /* set, not left at the default */

/*
 * The index-th unknown KVCACHE_* variable and the nearest known name ("" if none is near); false
 * past the last.
 */
bool kv_option_unknown(const struct kv_option_set *set, size_t index, const char **name_p,
		       const char **near_p);

/* Row `id` for people: texts are static or belong to the set. */
struct kv_option_row {
	const char *name, *type, *range, *def, *help, *value, *source;
};
void kv_option_row(const struct kv_option_set *set, enum kv_option_id id,
		   struct kv_option_row *row);

#endif
