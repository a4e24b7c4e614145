// SPDX-License-Identifier: MIT OR Apache-2.0
/* /dev/kvm and the files that it hands out. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pfn.h>

#include "umbra.h"

/* KVM's own, which Linux's has not taken: it found no EL2. */
#define KVM_MINOR 232

#define FILE_OPERATIONS(kind_, name_)                                                                              \
	static long name_##_ioctl(struct file *file, unsigned int command, unsigned long argument)                 \
	{                                                                                                          \
		return umbra_ioctl(kind_, file->private_data, command, argument);                                  \
	}                                                                                                          \
	static int name_##_release(struct inode *inode, struct file *file)                                         \
	{                                                                                                          \
		umbra_release(kind_, file->private_data);                                                          \
		return 0;                                                                                          \
	}

FILE_OPERATIONS(UMBRA_VM, vm)
FILE_OPERATIONS(UMBRA_VCPU, vcpu)
FILE_OPERATIONS(UMBRA_GIC, gic)
FILE_OPERATIONS(UMBRA_STATS, stats)
FILE_OPERATIONS(UMBRA_MEMORY, memory)

static ssize_t stats_read(struct file *file, char __user *to, size_t bytes, loff_t *at)
{
	long done = umbra_read(UMBRA_STATS, file->private_data, *at, (unsigned long)to, bytes);

	if (done > 0)
		*at += done;
	return done;
}

static long system_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	return umbra_ioctl(UMBRA_SYSTEM, NULL, command, argument);
}

static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	u64 pa = umbra_run_page(UMBRA_VCPU, file->private_data);

	if (!pa)
		return -EIO;
	if (vma->vm_pgoff || vma->vm_end - vma->vm_start != PAGE_SIZE || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	return vm_insert_page(vma, vma->vm_start, pfn_to_page(PHYS_PFN(pa)));
}

static const struct file_operations operations[UMBRA_KINDS] = {
	[UMBRA_SYSTEM] = {
		.owner = THIS_MODULE,
		.unlocked_ioctl = system_ioctl,
		.llseek = noop_llseek,
	},
	[UMBRA_VM] = {
		.owner = THIS_MODULE,
		.unlocked_ioctl = vm_ioctl,
		.release = vm_release,
		.llseek = noop_llseek,
	},
	[UMBRA_VCPU] = {
		.owner = THIS_MODULE,
		.unlocked_ioctl = vcpu_ioctl,
		.release = vcpu_release,
		.mmap = vcpu_mmap,
		.llseek = noop_llseek,
	},
	[UMBRA_GIC] = {
		.owner = THIS_MODULE,
		.unlocked_ioctl = gic_ioctl,
		.release = gic_release,
		.llseek = noop_llseek,
	},
	[UMBRA_STATS] = {
		.owner = THIS_MODULE,
		.unlocked_ioctl = stats_ioctl,
		.read = stats_read,
		.release = stats_release,
		.llseek = noop_llseek,
	},
	[UMBRA_MEMORY] = {
		.owner = THIS_MODULE,
		.unlocked_ioctl = memory_ioctl,
		.mmap = shim_memory_mmap,
		.release = memory_release,
		.llseek = noop_llseek,
	},
};

static const char *const names[UMBRA_KINDS] = { "kvm", "kvm-vm", "kvm-vcpu", "kvm-device", "kvm-stats",
						"guest-memory" };

/*
 * A file for an object, which is released with it, and a descriptor that is nobody's until shim_file_install. On failure
 * the object is still the caller's.
 */
int shim_file(u32 kind, void *object, struct file **made)
{
	int fd = get_unused_fd_flags(O_CLOEXEC);
	struct file *file;

	if (fd < 0)
		return fd;
	file = anon_inode_getfile(names[kind], &operations[kind], object, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	/* As KVM's: read from wherever the reader says. */
	if (kind == UMBRA_STATS)
		file->f_mode |= FMODE_PREAD;
	*made = file;
	return fd;
}

void shim_file_install(int fd, struct file *file)
{
	fd_install(fd, file);
}

/* Instead of that. The object is released. */
void shim_file_cancel(int fd, struct file *file)
{
	put_unused_fd(fd);
	fput(file);
}

/* The file of a descriptor of the caller's and its object, if it is one of this kind, until shim_file_put. */
struct file *shim_file_get(int fd, u32 kind, void **object)
{
	struct file *file = fget(fd);

	if (file && file->f_op != &operations[kind]) {
		fput(file);
		file = NULL;
	}
	if (file)
		*object = file->private_data;
	return file;
}

void shim_file_put(struct file *file)
{
	fput(file);
}

static struct miscdevice device = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &operations[UMBRA_SYSTEM],
	.mode = 0660,
};

int umbra_files_init(void)
{
	int err = misc_register(&device);

	if (err == -EBUSY)
		pr_err("umbra: /dev/kvm is somebody else's\n");
	return err;
}

void umbra_files_exit(void)
{
	misc_deregister(&device);
}
