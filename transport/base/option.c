/* SPDX-License-Identifier: Apache-2.0 */
/* option.c -- parses the option table from the environment and the caller's list */
#include "option.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "number.h"

extern char **environ;

enum type { TYPE_INT, TYPE_SIZE, TYPE_BOOL, TYPE_WORD, TYPE_WORDS, TYPE_TEXT };
static const char *const type_names[] = { "integer", "bytes", "boolean", "word", "words", "text" };

struct row {
	const char *name;
	enum type type;
	int64_t def, min, max;
	const char *text; /* the default of WORD and TEXT */
	const char *words;
	const char *help;
};

static const struct row rows[KV_OPTIONS] = {
#define INT(id, name, d, lo, hi, help) { name, TYPE_INT, d, lo, hi, "", "", help },
#define SIZE(id, name, d, lo, hi, help) { name, TYPE_SIZE, d, lo, hi, "", "", help },
#define BOOL(id, name, d, help) { name, TYPE_BOOL, d, 0, 1, "", "", help },
#define WORD(id, name, d, words, help) { name, TYPE_WORD, 0, 0, 0, d, words, help },
#define WORDS(id, name, d, words, help) { name, TYPE_WORDS, 0, 0, 0, d, words, help },
#define TEXT(id, name, d, help) { name, TYPE_TEXT, 0, 0, 0, d, "", help },
#include "option.def"
#undef INT
#undef SIZE
#undef BOOL
#undef WORD
#undef WORDS
#undef TEXT
};

enum { TEXT_MAX = 256, UNKNOWN_MAX = 16 };

struct kv_option_set {
	struct {
		int64_t number;
		char text[TEXT_MAX]; /* the value as text, for every type */
		const char *source;
		char range[64], def[32]; /* for people */
	} value[KV_OPTIONS];
	struct {
		char name[64];
		const char *near;
	} unknown[UNKNOWN_MAX];
	size_t unknowns;
};

static int find_option(const char *name, size_t len)
{
	for (int i = 0; i < KV_OPTIONS; i++)
		if (strlen(rows[i].name) == len && !memcmp(rows[i].name, name, len))
			return i;
	return -1;
}

/* Levenshtein distance of two short names. */
static unsigned int distance(const char *a, size_t a_len, const char *b)
{
	unsigned int row[64];
	size_t b_len = strlen(b);

	if (a_len >= 63 || b_len >= 63)
		return 99;
	for (unsigned int j = 0; j <= b_len; j++)
		row[j] = j;
	for (size_t i = 1; i <= a_len; i++) {
		unsigned int diagonal = row[0];

		row[0] = (unsigned int)i;
		for (size_t j = 1; j <= b_len; j++) {
			unsigned int change = diagonal + (a[i - 1] != b[j - 1]);
			unsigned int step = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;

			diagonal = row[j];
			row[j] = change < step ? change : step;
		}
	}
	return row[b_len];
}

static const char *nearest(const char *name, size_t len)
{
	const char *best = "";
	unsigned int best_distance = 8; /* more edits than this is not a misspelling */

	for (int i = 0; i < KV_OPTIONS; i++) {
		/* A name cut short is likelier than another of few letters. */
		bool cut = !strncmp(name, rows[i].name, len);
		unsigned int d = cut ? 1 : distance(name, len, rows[i].name);

		if (d < best_distance) {
			best_distance = d;
			best = rows[i].name;
		}
	}
	return best;
}

static bool parse_number(const struct row *row, const char *text, int64_t *number_p)
{
	const char *end;
	long long v;
	int shift = 0;

	if (!kv_number(text, &v, &end))
		return false;
	if (row->type == TYPE_SIZE && *end) {
		const char *units = "KMG";
		const char *u = strchr(units, toupper((unsigned char)*end));

		if (!u)
			return false;
		shift = 10 * (int)(u - units + 1);
		end++;
		if (v > (INT64_MAX >> shift) || v < 0)
			return false;
	}
	if (*end)
		return false;
	*number_p = v * (1LL << shift);
	return *number_p >= row->min && *number_p <= row->max;
}

static bool parse_bool(const char *text, int64_t *number_p)
{
	static const char *const words[2][5] = { { "0", "no", "n", "off", "false" },
						 { "1", "yes", "y", "on", "true" } };

	for (int v = 0; v < 2; v++)
		for (int i = 0; i < 5; i++)
			if (!strcasecmp(text, words[v][i])) {
				*number_p = v;
				return true;
			}
	return false;
}

static bool is_word(const char *words, const char *text, size_t n)
{
	if (memchr(text, '|', n))
		return false;
	for (const char *w = words; n && w; w = strchr(w, '|')) {
		if (*w == '|')
			w++;
		if (!strncmp(w, text, n) && (w[n] == '|' || !w[n]))
			return true;
	}
	return false;
}

static bool are_words(const char *words, const char *text)
{
	size_t n = strcspn(text, ",");

	return is_word(words, text, n) && (!text[n] || are_words(words, text + n + 1));
}

static void describe_range(const struct row *row, char *buf, size_t cap)
{
	if (row->type == TYPE_WORD || row->type == TYPE_WORDS)
		snprintf(buf, cap, "%s", row->words);
	else if (row->type == TYPE_BOOL)
		snprintf(buf, cap, "0|1");
	else if (row->type == TYPE_TEXT)
		snprintf(buf, cap, "up to %d bytes", TEXT_MAX - 1);
	else
		snprintf(buf, cap, "%lld..%lld", (long long)row->min, (long long)row->max);
}

static int assign(struct kv_option_set *set, int id, const char *text, const char *source,
		  struct kv_error *err)
{
	const struct row *row = &rows[id];
	int64_t number = 0;
	bool ok;

	switch (row->type) {
	case TYPE_BOOL:
		ok = parse_bool(text, &number);
		break;
	case TYPE_WORD:
		ok = is_word(row->words, text, strlen(text));
		break;
	case TYPE_WORDS:
		ok = are_words(row->words, text);
		break;
	case TYPE_TEXT:
		ok = true;
		break;
	default:
		ok = parse_number(row, text, &number);
	}
	if (!ok || strlen(text) >= TEXT_MAX) {
		return kv_fail(err, KV_ERR_ARG, "options", "%s is \"%.64s\" (%s); it takes %s: %s",
			       row->name, text, source, type_names[row->type],
			       set->value[id].range);
	}
	set->value[id].number = number;
	snprintf(set->value[id].text, TEXT_MAX, "%s", text);
	set->value[id].source = source;
	return 0;
}

static void note_unknown(struct kv_option_set *set, const char *name, size_t len)
{
	if (set->unknowns == UNKNOWN_MAX)
		return;
	snprintf(set->unknown[set->unknowns].name, sizeof(set->unknown[0].name), "%.*s", (int)len,
		 name);
	set->unknown[set->unknowns++].near = nearest(name, len);
}

/* What the list sets counts, whatever the environment has there. */
static bool is_listed(const char *const *list, const char *name, size_t len)
{
	for (; list && *list; list++)
		if (!strncmp(*list, name, len) && (*list)[len] == '=')
			return true;
	return false;
}

static int read_environment(struct kv_option_set *set, const char *const *list,
			    struct kv_error *err)
{
	for (char **e = environ; *e; e++) {
		const char *eq = strchr(*e, '=');
		size_t len = eq ? (size_t)(eq - *e) : 0;
		int id, ret;

		if (!eq || strncmp(*e, "KVCACHE_", 8))
			continue;
		id = find_option(*e, len);
		if (id < 0) {
			note_unknown(set, *e, len);
			continue;
		}
		if (!eq[1]) /* launchers set what they have no value for: it counts as unset */
			continue;
		if (is_listed(list, *e, len))
			continue;
		ret = assign(set, id, eq + 1, "environment", err);
		if (ret)
			return ret;
	}
	return 0;
}

static int read_list(struct kv_option_set *set, const char *const *list, struct kv_error *err)
{
	for (; list && *list; list++) {
		const char *eq = strchr(*list, '=');
		int id = eq ? find_option(*list, (size_t)(eq - *list)) : -1;
		int ret;

		if (id < 0)
			return kv_fail(
				err, KV_ERR_ARG, "options", "\"%.64s\" names no option%s%s", *list,
				eq && *nearest(*list, (size_t)(eq - *list)) ? "; near: " : "",
				eq ? nearest(*list, (size_t)(eq - *list))
				   : " (NAME=value is expected)");
		ret = assign(set, id, eq + 1, "config", err);
		if (ret)
			return ret;
	}
	return 0;
}

int kv_option_read(const char *const *list, struct kv_option_set **set_p, struct kv_error *err)
{
	struct kv_option_set *set = calloc(1, sizeof(*set));
	char number[24];
	int ret;

	if (!set)
		return kv_fail(err, KV_ERR_NOMEM, "options", "cannot allocate the option set");
	for (int i = 0; i < KV_OPTIONS; i++) {
		const char *def =
			*rows[i].text || rows[i].type == TYPE_TEXT ? rows[i].text : number;

		set->value[i].number = rows[i].def;
		set->value[i].source = "default";
		describe_range(&rows[i], set->value[i].range, sizeof(set->value[i].range));
		snprintf(number, sizeof(number), "%lld", (long long)rows[i].def);
		snprintf(set->value[i].def, sizeof(set->value[i].def), "%s", def);
		snprintf(set->value[i].text, TEXT_MAX, "%s", def);
	}
	ret = read_environment(set, list, err);
	if (!ret)
		ret = read_list(set, list, err);
	if (ret) {
		free(set);
		return ret;
	}
	*set_p = set;
	return 0;
}

void kv_option_free(struct kv_option_set *set)
{
	free(set);
}

int64_t kv_option_int(const struct kv_option_set *set, enum kv_option_id id)
{
	return set->value[id].number;
}

bool kv_option_bool(const struct kv_option_set *set, enum kv_option_id id)
{
	return set->value[id].number != 0;
}

const char *kv_option_string(const struct kv_option_set *set, enum kv_option_id id)
{
	return set->value[id].text;
}

bool kv_option_is(const struct kv_option_set *set, enum kv_option_id id, const char *word)
{
	return !strcmp(set->value[id].text, word);
}

bool kv_option_has(const struct kv_option_set *set, enum kv_option_id id, const char *word)
{
	const char *text = set->value[id].text;
	size_t n = strlen(word);

	while (strncmp(text, word, n) || (text[n] && text[n] != ',')) {
		text += strcspn(text, ",");
		if (!*text++)
			return false;
	}
	return true;
}

bool kv_option_is_set(const struct kv_option_set *set, enum kv_option_id id)
{
	return strcmp(set->value[id].source, "default") != 0;
}

bool kv_option_unknown(const struct kv_option_set *set, size_t index, const char **name_p,
		       const char **near_p)
{
	if (index >= set->unknowns)
		return false;
	*name_p = set->unknown[index].name;
	*near_p = set->unknown[index].near;
	return true;
}

void kv_option_row(const struct kv_option_set *set, enum kv_option_id id, struct kv_option_row *row)
{
	const struct row *r = &rows[id];

	*row = (struct kv_option_row){
		.name = r->name,
		.type = type_names[r->type],
		.range = set->value[id].range,
		.def = set->value[id].def,
		.help = r->help,
		.value = set->value[id].text,
		.source = set->value[id].source,
	};
}
