// SPDX-License-Identifier: MIT OR Apache-2.0
/* Pages: the kernel's own, and user space's, which are pinned while a VM has them. */
#include <linux/gfp.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/pfn.h>
#include <linux/sched.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/version.h>
#include <linux/xarray.h>

#include "umbra.h"

/* Zeroed and physically contiguous; each is freed by itself. 0: there are none. */
u64 shim_pages_alloc(u64 count)
{
	void *pages = alloc_pages_exact(count << PAGE_SHIFT, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN);

	return pages ? virt_to_phys(pages) : 0;
}

void shim_page_free(u64 pa)
{
	struct page *page = pfn_to_page(PHYS_PFN(pa));

	if (PageOffline(page))
		__ClearPageOffline(page);
	__free_page(page);
}

/* A VM gets them, until each is freed: nobody else reads them meanwhile (/proc/kcore, a dump of a crashed kernel). */
void shim_pages_give(u64 first, u64 count)
{
	/* Not while somebody reads who has looked before. */
	page_offline_begin();
	while (count--)
		__SetPageOffline(pfn_to_page(PHYS_PFN(first) + count));
	page_offline_end();
}

/* Whether it is one of those. A page of user space's is mapped there, which none of those is. */
int shim_page_is_given(u64 pa)
{
	return PageOffline(pfn_to_page(PHYS_PFN(pa)));
}

void *shim_page_address(u64 pa)
{
	return phys_to_virt(pa);
}

/* The address space of whoever calls: it is named here, and not kept alive. */
struct mm_struct *shim_mm_get(void)
{
	mmgrab(current->mm);
	return current->mm;
}

int shim_mm_is_mine(struct mm_struct *mm)
{
	return current->mm == mm;
}

void shim_mm_put(struct mm_struct *mm)
{
	mmdrop(mm);
}

/* Counts pages as locked by an address space that somebody still has, or no longer. */
int shim_mm_account(struct mm_struct *mm, u64 pages, int more)
{
	int err = 0;

	if (mmget_not_zero(mm)) {
		err = account_locked_vm(mm, pages, more);
		mmput(mm);
	}
	return err;
}

/*
 * Pins as many as possible of @count pages of the caller's from @address on, for writing and for long, and puts their
 * physical addresses into @pages. Returns how many.
 */
long shim_pin(unsigned long address, u64 count, u64 *pages)
{
	struct page **found = (struct page **)pages;
	long n, pinned;

	BUILD_BUG_ON(sizeof(*found) != sizeof(*pages));
	pinned = pin_user_pages_fast(address, count, FOLL_WRITE | FOLL_LONGTERM, found);
	for (n = 0; n < pinned; n++)
		pages[n] = page_to_phys(found[n]);
	return pinned;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
#define pin_pages(address, count, flags, pages) pin_user_pages(address, count, flags, pages)
#else
#define pin_pages(address, count, flags, pages) pin_user_pages(address, count, flags, pages, NULL)
#endif

/* How many pages of @count from @address on a shared file has, and from where on; none up to the end of @vma: 0. */
static u64 present_of_file(struct vm_area_struct *vma, unsigned long *address, u64 count)
{
	struct xarray *pages = &vma->vm_file->f_mapping->i_pages;
	unsigned long index = linear_page_index(vma, *address);
	unsigned long last = linear_page_index(vma, vma->vm_end - PAGE_SIZE);
	u64 n = 1;

	if (!xa_find(pages, &index, last, XA_PRESENT))
		return 0;
	*address = vma->vm_start + ((index - vma->vm_pgoff) << PAGE_SHIFT);
	while (n < count && index + n <= last && xa_load(pages, index + n))
		n++;
	return n;
}

/*
 * The same of pages that there are, and no others are made but as below: the first ones from *@address on and below @end, which is where
 * they are then. 0: there are none. Those of a shared file are in it, whether the caller has accessed them or not; of memory
 * that is mapped from nothing the caller has accessed them, and they may have been swapped out. A private mapping of a file has all
 * that the file has: those are made.
 */
long shim_pin_present(unsigned long *address, unsigned long end, u64 count, u64 *pages)
{
	struct page **found = (struct page **)pages;
	struct mm_struct *mm = current->mm;
	long n, pinned = 0;

	mmap_read_lock(mm);
	while (!pinned && *address < end) {
		unsigned int flags = FOLL_WRITE | FOLL_LONGTERM;
		struct vm_area_struct *vma = find_vma(mm, *address);
		u64 here;

		if (!vma || vma->vm_start >= end)
			break;
		*address = max(*address, vma->vm_start);
		here = min(count, (min(end, vma->vm_end) - *address) >> PAGE_SHIFT);
		if (vma->vm_file && vma->vm_flags & VM_SHARED && !is_vm_hugetlb_page(vma)) {
			here = present_of_file(vma, address, here);
			if (!here) {
				*address = vma->vm_end;
				continue;
			}
			if (*address >= end)
				break;
			here = min(here, (u64)(end - *address) >> PAGE_SHIFT);
		} else {
			/* An error where there is nothing (mm/gup.c, no_page_table). */
			flags |= FOLL_DUMP;
		}
		pinned = pin_pages(*address, here, flags, found);
		if (pinned == -EFAULT && flags & FOLL_DUMP) {
			pinned = 0;
			*address += PAGE_SIZE;
			if (signal_pending(current))
				pinned = -EINTR;
		}
		cond_resched();
	}
	mmap_read_unlock(mm);
	for (n = 0; n < pinned; n++)
		pages[n] = page_to_phys(found[n]);
	return pinned;
}

/*
 * Whether a page of user space's is of memory alone: anonymous, of shmem (memfd, tmpfs), or of hugetlbfs. Others a file system has devices
 * read, whoever has pinned them, or they are a driver's, which may have mapped and frees them as it likes.
 */
int shim_page_is_memory(u64 pa)
{
	struct folio *folio = page_folio(pfn_to_page(PHYS_PFN(pa)));

	return folio_test_swapbacked(folio) || folio_test_hugetlb(folio) || folio_test_anon(folio);
}

/* Their last owner may have written them. It sleeps: for the lock of a page that is clean. */
void shim_unpin(u64 first, u64 count)
{
	might_sleep();
	unpin_user_page_range_dirty_lock(pfn_to_page(PHYS_PFN(first)), count, true);
}
