/* SPDX-License-Identifier: Apache-2.0 */
/* text.c -- names of things, as the library has them */
#include "model.h"

const char *ibv_wc_status_str(enum ibv_wc_status status)
{
	return model_wc_status_str(status);
}

const char *ibv_event_type_str(enum ibv_event_type type)
{
	return model_event_type_str(type);
}

const char *ibv_node_type_str(enum ibv_node_type type)
{
	return type == IBV_NODE_CA ? "InfiniBand channel adapter" : "unknown";
}

const char *ibv_port_state_str(enum ibv_port_state state)
{
	return state == IBV_PORT_ACTIVE ? "PORT_ACTIVE" : "PORT_DOWN";
}
