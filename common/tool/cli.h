/* SPDX-License-Identifier: Apache-2.0 */
/* The program mla: one table of subcommands. */
#ifndef MLA_TOOL_CLI_H
#define MLA_TOOL_CLI_H

/* Runs a command line and returns the exit status of the interchange contract. */
int mla_cli(int argc, char **argv);

#endif
