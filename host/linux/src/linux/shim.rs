//! What `module/*.c` defines for us.

use core::ffi::c_void;

// SAFETY: module/*.c define them with these signatures. What else is asked of a caller stands beside each call.
unsafe extern "C" {
    pub(super) fn shim_log(text: *const u8, bytes: usize);
    pub(super) fn shim_panic() -> !;
    pub(super) fn shim_alloc(bytes: usize) -> *mut c_void;
    pub(super) fn shim_free(memory: *mut c_void);
    pub(super) fn shim_copy_from_user(to: *mut c_void, from: usize, bytes: usize) -> i32;
    pub(super) fn shim_copy_to_user(to: usize, from: *const c_void, bytes: usize) -> i32;
    pub(super) fn shim_mutex_new() -> *mut c_void;
    pub(super) fn shim_mutex_free(mutex: *mut c_void);
    pub(super) fn shim_mutex_lock(mutex: *mut c_void);
    pub(super) fn shim_mutex_lock_killable(mutex: *mut c_void) -> i32;
    pub(super) fn shim_mutex_trylock(mutex: *mut c_void) -> i32;
    pub(super) fn shim_mutex_unlock(mutex: *mut c_void);
    pub(super) fn shim_preempt_disable();
    pub(super) fn shim_preempt_enable();
    pub(super) fn shim_synchronize();
    pub(super) fn shim_must_leave() -> i32;
    pub(super) fn shim_signal_pending() -> i32;
    pub(super) fn shim_guest_work() -> i32;
    pub(super) fn shim_signals_block(set: u64);
    pub(super) fn shim_signals_restore();
    pub(super) fn shim_cond_resched();
    pub(super) fn shim_sleep();
    pub(super) fn shim_vendor_uid(function: u32, uid: *mut u32);
    pub(super) fn shim_file(kind: u32, object: *mut c_void, made: *mut *mut c_void) -> i32;
    pub(super) fn shim_file_install(fd: i32, file: *mut c_void);
    pub(super) fn shim_file_cancel(fd: i32, file: *mut c_void);
    pub(super) fn shim_file_get(fd: i32, kind: u32, object: *mut *mut c_void) -> *mut c_void;
    pub(super) fn shim_file_put(file: *mut c_void);
    pub(super) fn shim_mapping_new() -> *mut c_void;
    pub(super) fn shim_mapping_free(mapping: *mut c_void);
    pub(super) fn shim_file_mapping(file: *mut c_void, mapping: *mut c_void);
    pub(super) fn shim_mapping_unmap(mapping: *mut c_void, first: u64, count: u64);
    pub(super) fn shim_fault_finish(fault: *mut c_void, pa: u64) -> u32;
    pub(super) fn shim_pages_alloc(count: u64) -> u64;
    pub(super) fn shim_page_free(pa: u64);
    pub(super) fn shim_pages_give(first: u64, count: u64);
    pub(super) fn shim_page_is_given(pa: u64) -> i32;
    pub(super) fn shim_page_address(pa: u64) -> *mut c_void;
    pub(super) fn shim_mm_get() -> *mut c_void;
    pub(super) fn shim_mm_is_mine(mm: *mut c_void) -> i32;
    pub(super) fn shim_mm_put(mm: *mut c_void);
    pub(super) fn shim_mm_account(mm: *mut c_void, pages: u64, more: i32) -> i32;
    pub(super) fn shim_pin(address: u64, count: u64, pages: *mut u64) -> i64;
    pub(super) fn shim_pin_present(address: *mut u64, end: u64, count: u64, pages: *mut u64)
    -> i64;
    pub(super) fn shim_page_is_memory(pa: u64) -> i32;
    pub(super) fn shim_unpin(first: u64, count: u64);
    pub(super) fn shim_irq_disable();
    pub(super) fn shim_irq_enable();
    pub(super) fn shim_cpu() -> i32;
    pub(super) fn shim_counter() -> u64;
    pub(super) fn shim_mask_virtual_timer(masked: i32);
    pub(super) fn shim_foreign_fpstate() -> i32;
    pub(super) fn shim_task_sme() -> i32;
    #[cfg(feature = "hunt")]
    pub(super) fn shim_vectors() -> u64;
    pub(super) fn shim_vcpu_new() -> *mut c_void;
    pub(super) fn shim_vcpu_free(vcpu: *mut c_void);
    pub(super) fn shim_vcpu_wake(vcpu: *mut c_void);
    pub(super) fn shim_stop(cpu: i32);
    pub(super) fn shim_vcpu_sleep(
        vcpu: *mut c_void,
        done: extern "C" fn(*mut c_void) -> bool,
        argument: *mut c_void,
        deadline: u64,
    ) -> i32;
    pub(super) fn shim_work_new(object: *mut c_void) -> *mut c_void;
    pub(super) fn shim_work_queue(work: *mut c_void);
    pub(super) fn shim_work_free(work: *mut c_void);
    pub(super) fn shim_eventfd(fd: i32) -> *mut c_void;
    pub(super) fn shim_eventfd_put(context: *mut c_void);
    pub(super) fn shim_eventfd_signal(context: *mut c_void);
    pub(super) fn shim_irqfd_new(
        fd: i32,
        vm: *mut c_void,
        gsi: u32,
        resample: bool,
        made: *mut *mut c_void,
    ) -> i32;
    pub(super) fn shim_irqfd_is(irqfd: *mut c_void, context: *mut c_void) -> bool;
    pub(super) fn shim_irqfd_free(irqfd: *mut c_void);
}
