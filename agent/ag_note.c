/* SPDX-License-Identifier: Apache-2.0 */
/* ag_note.c -- notifications that have come, until the engine takes them */
#include <stdlib.h>
#include <string.h>

#include "ag.h"

struct ag_kept_note {
	struct ag_kept_note *next;
	size_t name_len, len;
	char text[]; /* the name with its NUL, then the notification */
};

void ag_note_init(struct ag_agent *agent)
{
	pthread_mutex_init(&agent->notes_lock, NULL);
	agent->notes_last = &agent->notes;
}

int ag_note_add(struct ag_agent *agent, const char *name, const void *bytes, size_t len,
		struct kv_error *err)
{
	size_t name_len = strlen(name) + 1;
	struct ag_kept_note *note = malloc(sizeof(*note) + name_len + len);

	if (!note)
		return kv_fail(err, KV_ERR_NOMEM, "hear", "cannot keep %zu bytes", len);
	note->next = NULL;
	note->name_len = name_len;
	note->len = len;
	memcpy(note->text, name, name_len);
	if (len)
		memcpy(note->text + name_len, bytes, len);
	pthread_mutex_lock(&agent->notes_lock);
	*agent->notes_last = note;
	agent->notes_last = &note->next;
	atomic_fetch_add(&agent->notes_bytes, sizeof(*note) + name_len + len);
	pthread_mutex_unlock(&agent->notes_lock);
	return 0;
}

bool ag_note_full(const struct ag_agent *agent)
{
	return atomic_load(&agent->notes_bytes) >= AG_NOTIFY_QUEUE;
}

static struct ag_kept_note *take_note(struct ag_agent *agent)
{
	struct ag_kept_note *note;

	pthread_mutex_lock(&agent->notes_lock);
	note = agent->notes;
	if (note) {
		agent->notes = note->next;
		if (!note->next)
			agent->notes_last = &agent->notes;
		atomic_fetch_sub(&agent->notes_bytes, sizeof(*note) + note->name_len + note->len);
	}
	pthread_mutex_unlock(&agent->notes_lock);
	return note;
}

static void put_back(struct ag_agent *agent, struct ag_kept_note *note)
{
	pthread_mutex_lock(&agent->notes_lock);
	note->next = agent->notes;
	if (!note->next)
		agent->notes_last = &note->next;
	agent->notes = note;
	atomic_fetch_add(&agent->notes_bytes, sizeof(*note) + note->name_len + note->len);
	pthread_mutex_unlock(&agent->notes_lock);
}

size_t ag_note_give(struct ag_agent *agent, ag_take_note take, void *arg)
{
	struct ag_kept_note *note;
	size_t n = 0;

	while ((note = take_note(agent))) {
		if (!take(arg, note->text, note->text + note->name_len, note->len)) {
			put_back(agent, note);
			break;
		}
		free(note);
		n++;
	}
	return n;
}

void ag_note_free(struct ag_agent *agent)
{
	struct ag_kept_note *note;

	while ((note = take_note(agent)))
		free(note);
	pthread_mutex_destroy(&agent->notes_lock);
}
