/* SPDX-License-Identifier: Apache-2.0
 *
 * What applications in other processes are to be told: a list of streams with news, and messages.
 */
#include "session/internal.h"

#include <stdlib.h>

void hs_touch_append(struct hs_touch **first, struct hs_touch **last, struct hs_touch *touch)
{
	touch->next = NULL;
	if (*last)
		(*last)->next = touch;
	else
		*first = touch;
	*last = touch;
}

void hs_session_touch(struct hs_stream_session *s)
{
	struct hs_connection_session *c = s->connection;
	struct hs_application *a = c->application;
	if (s->is_touched || a->is_gone || a->has_left)
		return;
	s->is_touched = 1;
	s->touch.stream = s;
	if (c->is_announced)
		hs_touch_append(&a->first_touched, &a->last_touched, &s->touch);
	else
		hs_touch_append(&c->first_touched, &c->last_touched, &s->touch);
}

void hs_session_forget_touched(struct hs_touch **first, struct hs_touch **last)
{
	for (struct hs_touch *touch = *first, *next; touch; touch = next) {
		next = touch->next;
		if (touch->stream)
			touch->stream->is_touched = 0;
		else
			free(touch);
	}
	*first = *last = NULL;
}
