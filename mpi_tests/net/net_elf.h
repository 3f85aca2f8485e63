/* SPDX-License-Identifier: Apache-2.0 */
/* net_elf.h -- the symbol tables of an ELF file on disk */
#ifndef NET_ELF_H
#define NET_ELF_H

#include <elf.h>
#include <stdbool.h>

/*
 * Calls back with each symbol of .symtab (SHT_SYMTAB) or .dynsym (SHT_DYNSYM); false if the file
 * has no such table.
 */
bool net_elf_symbols(const char *path, unsigned int type,
		     void (*each)(void *arg, const char *name, const Elf64_Sym *sym), void *arg);

#endif
