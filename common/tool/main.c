/* SPDX-License-Identifier: Apache-2.0 */
/* The program mla. */
#include "cli.h"

int main(int argc, char **argv)
{
    return mla_cli(argc, argv);
}
