// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Memory files (KVM's guest_memfd): who maps one finds what Rust says is there, as page frames that nobody can pin, so
 * that taking them away again is no more than unmapping them.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pfn.h>
#include <linux/slab.h>
#include <linux/userfaultfd_k.h>
#include <linux/version.h>

#include "umbra.h"

/* Who has mapped a file: of each its own, since anonymous files share an inode. */
struct address_space *shim_mapping_new(void)
{
	struct address_space *mapping = kzalloc(sizeof(*mapping), GFP_KERNEL_ACCOUNT);

	if (mapping) {
		address_space_init_once(mapping);
		mapping->a_ops = &empty_aops;
	}
	return mapping;
}

void shim_mapping_free(struct address_space *mapping)
{
	kfree(mapping);
}

/* Before anybody knows the file. */
void shim_file_mapping(struct file *file, struct address_space *mapping)
{
	mapping->host = file_inode(file);
	file->f_mapping = mapping;
}

/* When it returns no process has these pages of the file mapped. */
void shim_mapping_unmap(struct address_space *mapping, u64 first, u64 count)
{
	unmap_mapping_range(mapping, first << PAGE_SHIFT, count << PAGE_SHIFT, 1);
}

/* The page that the fault is about: what the handler of it returns. */
unsigned int shim_fault_finish(void *fault, u64 pa)
{
	struct vm_fault *vmf = fault;

	return (__force unsigned int)vmf_insert_pfn(vmf->vma, vmf->address, PHYS_PFN(pa));
}

static vm_fault_t memory_fault(struct vm_fault *vmf)
{
	unsigned int done;

	/* What marks an address without a page would be found again and again. */
	if (userfaultfd_wp(vmf->vma))
		return VM_FAULT_SIGBUS;
	BUILD_BUG_ON((__force unsigned int)VM_FAULT_OOM != 1);
	done = umbra_fault(vmf->vma->vm_file->private_data, vmf->pgoff, vmf);
	return done ? (__force vm_fault_t)done : VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct memory_operations = {
	.fault = memory_fault,
};

int shim_memory_mmap(struct file *file, struct vm_area_struct *vma)
{
	const vm_flags_t flags = VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;

	if (!umbra_may_map(file->private_data))
		return -ENODEV;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
	vma->vm_ops = &memory_operations;
	return 0;
}
