/* SPDX-License-Identifier: Apache-2.0 */
/* net_elf.c -- reads the symbol tables of an ELF file */
#include "net_elf.h"

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct image {
	const uint8_t *base;
	size_t len;
};

static const void *at(const struct image *image, uint64_t offset, uint64_t len)
{
	return offset <= image->len && len <= image->len - offset ? image->base + offset : NULL;
}

static bool walk(const struct image *image, unsigned int type,
		 void (*each)(void *arg, const char *name, const Elf64_Sym *sym), void *arg)
{
	const Elf64_Ehdr *header = at(image, 0, sizeof(*header));
	const Elf64_Shdr *sections;

	if (!header || memcmp(header->e_ident, ELFMAG, SELFMAG))
		return false;
	sections = at(image, header->e_shoff, header->e_shnum * sizeof(*sections));
	for (unsigned int i = 0; sections && i < header->e_shnum; i++) {
		const Elf64_Shdr *s = &sections[i];
		const Elf64_Sym *syms = at(image, s->sh_offset, s->sh_size);
		const Elf64_Shdr *names =
			s->sh_link < header->e_shnum ? &sections[s->sh_link] : NULL;
		const char *text = names ? at(image, names->sh_offset, names->sh_size) : NULL;

		if (s->sh_type != type || !syms || !text)
			continue;
		for (uint64_t k = 0; k < s->sh_size / sizeof(*syms); k++)
			if (syms[k].st_name < names->sh_size)
				each(arg, text + syms[k].st_name, &syms[k]);
		return true;
	}
	return false;
}

bool net_elf_symbols(const char *path, unsigned int type,
		     void (*each)(void *arg, const char *name, const Elf64_Sym *sym), void *arg)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct image image;
	struct stat st;
	bool ok = false;
	void *p;

	if (fd < 0 || fstat(fd, &st)) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return false;
	image = (struct image){ p, (size_t)st.st_size };
	ok = walk(&image, type, each, arg);
	munmap(p, image.len);
	return ok;
}
