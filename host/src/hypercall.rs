//! Hypercalls.
//!
//! [`Hypervisor`] is the one seam between this crate and the machine: `Hvc` (on AArch64) makes the calls, tests
//! put a fake in its place. Ordinary calls go through the typed [`Call`]; VCPU_RUN has a path of its
//! own, because it is the one that has to be fast.

use umbra_shared::{
    call::{
        Call, Counter, Features, NO_PAGE, Start, UntrustedIpa, UntrustedPa, UntrustedPages,
        VcpuConfig, VcpuIndex, VmConfig, VmHandle,
    },
    error::Error,
    exit::{ExitInfo, RunFlags},
    interrupt::{Entry, Interface, States},
    register::UntrustedRegister,
    vl::VqSet,
};

/// x1-x8 after a call.
pub type Results = [u64; 8];

/// What VCPU_RUN returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// x1
    pub info: ExitInfo,
    /// x2-x7, by reason ([`umbra_shared::exit`]).
    pub data: [u64; 6],
}

/// What VERSION says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// [`INTERFACE_VERSION`](umbra_shared::call::INTERFACE_VERSION) of the hyp.
    pub interface: u32,
    /// What the machine and hyp offer.
    pub features: Features,
    /// The bits that guest-physical addresses have at the most.
    pub ipa_bits: u32,
    /// The bit of those of a protected guest that tells its upper half ([`umbra_shared::guest`]).
    pub alias_bit: u64,
}

/// What VL_INFO says of a CPU, or of what all CPUs have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlInfo {
    /// The vector lengths.
    pub vqs: VqSet,
    /// Those of streaming mode.
    pub svqs: VqSet,
    /// Bytes of a host image.
    pub image_bytes: u64,
    /// CPUs of the machine.
    pub cpus: u64,
    /// MPIDR_EL1 affinity.
    pub affinity: u64,
    /// Whether it is online at hyp.
    pub online: bool,
    /// Its list registers.
    pub interface: Interface,
}

/// Umbra's hyp, or something that behaves like it.
pub trait Hypervisor {
    /// Makes a call other than VCPU_RUN.
    fn call(&self, call: &Call) -> Result<Results, Error>;

    /// VCPU_RUN without interrupts, which most are: x1, x2-x5. Interrupts of the host's are masked.
    #[inline]
    fn vcpu_run(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
        self.vcpu_run_with(flags, answer, &[]).map(|(exit, _)| exit)
    }

    /// VCPU_RUN with interrupts: x6-x13, and x8 after it. Of the flags, how many there are is filled in.
    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        entries: &[Entry],
    ) -> Result<(Exit, States), Error>;

    /// Interface version and features.
    fn version(&self) -> Result<Version, Error> {
        let r = self.call(&Call::Version)?;
        let features = Features::from_bits_truncate(r[1]);
        Ok(Version {
            interface: r[0] as u32,
            features,
            ipa_bits: r[2] as u32,
            alias_bit: 1 << (r[3] & 63),
        })
    }

    /// Vector lengths of a CPU; `None`: of all CPUs.
    fn vl_info(&self, cpu: Option<u64>) -> Result<VlInfo, Error> {
        let r = self.call(&Call::VlInfo { cpu })?;
        Ok(VlInfo {
            vqs: VqSet::from_bits(r[0] as u16),
            svqs: VqSet::from_bits(r[5] as u16),
            image_bytes: r[1],
            cpus: r[2],
            affinity: r[3],
            online: r[4] != 0,
            interface: Interface::from_register(r[6]),
        })
    }

    /// All counters of a CPU, as [`Counter`] numbers them.
    fn stats(&self, cpu: u64) -> Result<[u64; Counter::ALL.len()], Error> {
        let mut all = [0; Counter::ALL.len()];
        for (n, eight) in all.chunks_mut(8).enumerate() {
            let r = self.call(&Call::Stats { cpu, first: n as u64 * 8 })?;
            eight.copy_from_slice(&r[..eight.len()]);
        }
        Ok(all)
    }

    /// The first host page at or above `from` that hyp has mapped.
    fn next_shared_page(&self, from: u64) -> Result<Option<u64>, Error> {
        let mut from = from;
        loop {
            let r = self.call(&Call::NextSharedPage { from: UntrustedPa(from) })?;
            if r[0] != NO_PAGE {
                return Ok(Some(r[0]));
            }
            if r[1] == NO_PAGE {
                return Ok(None);
            }
            from = r[1];
        }
    }

    /// Shares a page with hyp as a flag-shadow page.
    fn share_flag_page(&self, page: u64) -> Result<(), Error> {
        self.call(&Call::ShareFlagPage { page: UntrustedPa(page) }).map(drop)
    }

    /// Ends that.
    fn unshare_flag_page(&self, page: u64) -> Result<(), Error> {
        self.call(&Call::UnshareFlagPage { page: UntrustedPa(page) }).map(drop)
    }

    /// Creates a VM of donated pages.
    fn vm_create(&self, first: u64, count: u64, config: VmConfig) -> Result<VmHandle, Error> {
        let call = Call::VmCreate { pages: pages(first, count), config };
        self.call(&call).map(|r| VmHandle(r[0]))
    }

    /// Donates pages for stage-2 tables.
    fn vm_topup(&self, vm: VmHandle, first: u64, count: u64) -> Result<(), Error> {
        self.call(&Call::VmTopup { vm, pages: pages(first, count) }).map(drop)
    }

    /// Puts pages of memory in place; returns how many, one at least. The rest is to be asked for again
    /// ([ranges](umbra_shared::call#ranges)).
    fn vm_map_range(&self, vm: VmHandle, first: u64, count: u64, ipa: u64) -> Result<u64, Error> {
        let call = Call::VmMap { vm, pages: pages(first, count), ipa: UntrustedIpa(ipa) };
        self.call(&call).and_then(|r| done(r[0], count))
    }

    /// Puts one page of memory in place.
    fn vm_map(&self, vm: VmHandle, page: u64, ipa: u64) -> Result<(), Error> {
        self.vm_map_range(vm, page, 1, ipa).map(drop)
    }

    /// Takes pages of a normal VM back; returns the first and how many, which lie one behind the other.
    fn vm_unmap_range(&self, vm: VmHandle, ipa: u64, count: u64) -> Result<(u64, u64), Error> {
        let call = Call::VmUnmap { vm, ipa: UntrustedIpa(ipa), count };
        self.call(&call).and_then(|r| Ok((r[0], done(r[1], count)?)))
    }

    /// Takes one page of a normal VM back; returns which.
    fn vm_unmap(&self, vm: VmHandle, ipa: u64) -> Result<u64, Error> {
        self.vm_unmap_range(vm, ipa, 1).map(|(page, _)| page)
    }

    /// What a guest has at an address: the page, and whether this host has access to it.
    fn vm_lookup(&self, vm: VmHandle, ipa: u64) -> Result<(u64, bool), Error> {
        let call = Call::VmLookup { vm, ipa: UntrustedIpa(ipa) };
        self.call(&call).map(|r| (r[0], r[1] != 0))
    }

    /// A protected VM has its payload and all its vCPUs: from now on it can run.
    fn vm_seal(&self, vm: VmHandle) -> Result<(), Error> {
        self.call(&Call::VmSeal { vm }).map(drop)
    }

    /// Begins a VM's teardown. BUSY while one of its vCPUs is loaded: from then on none is loaded any
    /// more, and it is to be called again when all are put.
    fn vm_destroy(&self, vm: VmHandle) -> Result<(), Error> {
        self.call(&Call::VmDestroy { vm }).map(drop)
    }

    /// Takes pages of a dying VM back; returns how many are still out, and how many came back, one at least.
    fn vm_reclaim_range(&self, vm: VmHandle, first: u64, count: u64) -> Result<(u64, u64), Error> {
        let call = Call::VmReclaim { vm, pages: pages(first, count) };
        self.call(&call).and_then(|r| Ok((r[0], done(r[1], count)?)))
    }

    /// Takes one page of a dying VM back; returns how many are still out.
    fn vm_reclaim(&self, vm: VmHandle, page: u64) -> Result<u64, Error> {
        self.vm_reclaim_range(vm, page, 1).map(|(out, _)| out)
    }

    /// Creates a vCPU of donated pages.
    fn vcpu_create(&self, config: VcpuConfig) -> Result<(), Error> {
        self.call(&Call::VcpuCreate(config)).map(drop)
    }

    /// Binds a vCPU to this CPU.
    fn vcpu_load(&self, vm: VmHandle, vcpu: VcpuIndex) -> Result<(), Error> {
        self.call(&Call::VcpuLoad { vm, vcpu }).map(drop)
    }

    /// Puts a normal VM's vCPU, which is loaded nowhere, into its reset state.
    fn vcpu_reset(&self, vm: VmHandle, vcpu: VcpuIndex, start: Start) -> Result<(), Error> {
        self.call(&Call::VcpuReset { vm, vcpu, start }).map(drop)
    }

    /// A register of a normal VM's vCPU, which is loaded nowhere: lower and upper half.
    fn vcpu_read(
        &self,
        vm: VmHandle,
        vcpu: VcpuIndex,
        register: UntrustedRegister,
    ) -> Result<[u64; 2], Error> {
        self.call(&Call::VcpuRead { vm, vcpu, register }).map(|r| [r[0], r[1]])
    }

    /// The same with a new value.
    fn vcpu_write(
        &self,
        vm: VmHandle,
        vcpu: VcpuIndex,
        register: UntrustedRegister,
        value: [u64; 2],
    ) -> Result<(), Error> {
        self.call(&Call::VcpuWrite { vm, vcpu, register, value }).map(drop)
    }

    /// Unbinds the loaded vCPU.
    fn vcpu_put(&self) -> Result<(), Error> {
        self.call(&Call::VcpuPut).map(drop)
    }
}

/// Of `count` pages so many are done. What does none or more is not this interface.
fn done(n: u64, count: u64) -> Result<u64, Error> {
    if (1..=count).contains(&n) { Ok(n) } else { Err(Error::NotSupported) }
}

fn pages(first: u64, count: u64) -> UntrustedPages {
    UntrustedPages { start: UntrustedPa(first), count }
}

#[cfg(target_arch = "aarch64")]
pub use hvc::Hvc;

#[cfg(target_arch = "aarch64")]
mod hvc {
    use super::{Exit, Hypervisor, Results};
    use core::arch::asm;
    use umbra_shared::{
        call::{Call, Function, VENDOR_UID, VENDOR_UID_FUNCTION},
        error::{Error, check},
        exit::{ExitInfo, RunFlags},
        interrupt::{Entry, MAX_ENTRIES, States},
    };

    /// The hypervisor below, called with HVC #0.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Hvc;

    impl Hvc {
        /// Whether it is Umbra: the vendor UID says so. Something below must answer HVC at all; on a
        /// machine without EL2 the instruction is UNDEFINED, which the caller has to be ready for.
        pub fn is_umbra() -> bool {
            let [w0, w1, w2, w3] = VENDOR_UID.map(u64::from);
            let (x0, r) = hvc(VENDOR_UID_FUNCTION, [0; 7]);
            [x0, r[0], r[1], r[2]].map(|x| x & 0xffff_ffff) == [w0, w1, w2, w3]
        }

        /// A call as registers, for those who want to try what [`Call`] can't express.
        pub fn raw(x0: u64, args: [u64; 7]) -> (u64, Results) {
            hvc(x0, args)
        }
    }

    fn hvc(function: u64, args: [u64; 7]) -> (u64, Results) {
        let x0: u64;
        let mut r = [0; 8];
        // SAFETY: SMCCC: x0-x17 are clobbered, everything else is preserved. Hyp writes no memory of
        // ours but what the call names, and the pages that calls name are never behind references.
        unsafe {
            asm!(
                "hvc #0",
                inout("x0") function => x0,
                inout("x1") args[0] => r[0],
                inout("x2") args[1] => r[1],
                inout("x3") args[2] => r[2],
                inout("x4") args[3] => r[3],
                inout("x5") args[4] => r[4],
                inout("x6") args[5] => r[5],
                inout("x7") args[6] => r[6],
                out("x8") r[7],
                out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
                out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                options(nostack),
            );
        }
        (x0, r)
    }

    impl Hypervisor for Hvc {
        fn call(&self, call: &Call) -> Result<Results, Error> {
            let (function, args) = call.encode();
            let (x0, results) = hvc(function, args);
            check(x0).map(|()| results)
        }

        #[inline]
        fn vcpu_run(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
            let (x0, info): (u64, u64);
            let mut data = [0; 6];
            // SAFETY: as in `hvc`.
            unsafe {
                asm!(
                    "hvc #0",
                    inout("x0") Function::VcpuRun.id() => x0,
                    inout("x1") flags.bits() => info,
                    inout("x2") answer[0] => data[0],
                    inout("x3") answer[1] => data[1],
                    inout("x4") answer[2] => data[2],
                    inout("x5") answer[3] => data[3],
                    out("x6") data[4],
                    out("x7") data[5],
                    out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
                    out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                    options(nostack),
                );
            }
            if x0 == 0 {
                Ok(Exit { info: ExitInfo::from_register(info), data })
            } else {
                Err(check(x0).err().unwrap_or(Error::NotSupported))
            }
        }

        fn vcpu_run_with(
            &self,
            flags: RunFlags,
            answer: [u64; 4],
            entries: &[Entry],
        ) -> Result<(Exit, States), Error> {
            let mut words = [0; MAX_ENTRIES / 2];
            for (n, entry) in entries.iter().enumerate() {
                let word = words.get_mut(n / 2).ok_or(Error::InvalidArgument)?;
                *word |= entry.bits() << (32 * (n % 2));
            }
            let (x0, info, states): (u64, u64, u64);
            let mut data = [0; 6];
            // SAFETY: as in `hvc`.
            unsafe {
                asm!(
                    "hvc #0",
                    inout("x0") Function::VcpuRun.id() => x0,
                    inout("x1") flags.with_entries(entries.len()).bits() => info,
                    inout("x2") answer[0] => data[0],
                    inout("x3") answer[1] => data[1],
                    inout("x4") answer[2] => data[2],
                    inout("x5") answer[3] => data[3],
                    inout("x6") words[0] => data[4],
                    inout("x7") words[1] => data[5],
                    inout("x8") words[2] => states,
                    inout("x9") words[3] => _, inout("x10") words[4] => _,
                    inout("x11") words[5] => _, inout("x12") words[6] => _,
                    inout("x13") words[7] => _,
                    out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                    options(nostack),
                );
            }
            check(x0).map(|()| {
                let exit = Exit { info: ExitInfo::from_register(info), data };
                (exit, States::from_register(states))
            })
        }
    }
}
