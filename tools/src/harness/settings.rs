//! What a test binary needs that `xtask test` has built and found: cargo stands between them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::Built;
use crate::linux::VirtualMachines;
use crate::qemu::{Newer, Qemu, Release};

/// What `xtask test` hands to the harness, through the environment: cargo stands between them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The test image and its programs.
    pub tests: Built,
    /// The hyp that writes its transitions down.
    pub hyp_log: PathBuf,
    /// The host library, for I5.
    pub host_library: PathBuf,
    /// The EL3 firmware.
    pub firmware: PathBuf,
    /// The first program of a Linux.
    pub linux: PathBuf,
    /// What that runs virtual machines with, or why it can't.
    pub virtual_machines: Result<VirtualMachines, String>,
    /// The QEMU to use.
    pub qemu: PathBuf,
    /// The one for machines that this one is too old for, or why there is none.
    pub newer_qemu: Result<PathBuf, String>,
    /// The compiler that built it all, for counts that depend on it.
    pub compiler: String,
}

const PACKAGE: &str = "UMBRA_TARGET_PACKAGE";
const HYP: &str = "UMBRA_TARGET_HYP";
const HOST: &str = "UMBRA_TARGET_HOST";
const GUEST: &str = "UMBRA_TARGET_GUEST";
const GUEST32: &str = "UMBRA_TARGET_GUEST32";
const HYP_LOG: &str = "UMBRA_TARGET_HYP_LOG";
const HOST_LIBRARY: &str = "UMBRA_TARGET_HOST_LIBRARY";
const FIRMWARE: &str = "UMBRA_TARGET_FIRMWARE";
const COMPILER: &str = "UMBRA_TARGET_COMPILER";
const LINUX_INIT: &str = "UMBRA_TARGET_LINUX";
const MODULE: &str = "UMBRA_TARGET_MODULE";
const VMM: &str = "UMBRA_TARGET_VMM";
const IOCTLS: &str = "UMBRA_TARGET_IOCTLS";
const NO_VMS: &str = "UMBRA_TARGET_NO_VMS";
const QEMU: &str = "UMBRA_QEMU";
const NEWER_QEMU: &str = "UMBRA_TARGET_QEMU_NEW";
const NO_NEWER_QEMU: &str = "UMBRA_TARGET_NO_QEMU_NEW";

impl Settings {
    /// Puts the settings into the environment of `command`.
    pub fn export(&self, command: &mut Command) {
        command
            .env(PACKAGE, &self.tests.image)
            .env(HYP, &self.tests.hyp)
            .env(HOST, &self.tests.host)
            .env(GUEST, &self.tests.guest)
            .env(HYP_LOG, &self.hyp_log)
            .env(HOST_LIBRARY, &self.host_library)
            .env(FIRMWARE, &self.firmware)
            .env(COMPILER, &self.compiler)
            .env(LINUX_INIT, &self.linux)
            .env(QEMU, &self.qemu);
        match &self.newer_qemu {
            Ok(path) => command.env(NEWER_QEMU, path),
            Err(why) => command.env(NO_NEWER_QEMU, why),
        };
        match &self.virtual_machines {
            Ok(VirtualMachines { module, vmm, ioctls }) => {
                command.env(MODULE, module).env(VMM, vmm).env(IOCTLS, ioctls)
            }
            Err(why) => command.env(NO_VMS, why),
        };
        if let Some(guest) = &self.tests.guest32 {
            command.env(GUEST32, guest);
        }
    }

    /// The QEMU for machines that the usual one is too old for, or why there is none.
    pub fn newer(&self) -> Result<Newer> {
        Ok(match &self.newer_qemu {
            Ok(path) => Ok(Qemu::find(Some(path))?.context("no newer QEMU")?),
            Err(why) => Err(why.clone()),
        })
    }

    /// Settings from the environment; `None` if this is a plain `cargo test`.
    pub fn from_environment() -> Result<Option<Self>> {
        if env::var_os(PACKAGE).is_none() {
            return Ok(None);
        }
        let get = |name: &str| {
            let value = env::var_os(name).with_context(|| format!("{name} is not set"))?;
            anyhow::Ok(PathBuf::from(value))
        };
        Ok(Some(Self {
            tests: Built {
                image: get(PACKAGE)?,
                hyp: get(HYP)?,
                host: get(HOST)?,
                guest: get(GUEST)?,
                guest32: env::var_os(GUEST32).map(PathBuf::from),
            },
            hyp_log: get(HYP_LOG)?,
            host_library: get(HOST_LIBRARY)?,
            firmware: get(FIRMWARE)?,
            linux: get(LINUX_INIT)?,
            virtual_machines: match env::var(NO_VMS) {
                Ok(why) => Err(why),
                Err(_) => Ok(VirtualMachines {
                    module: get(MODULE)?,
                    vmm: get(VMM)?,
                    ioctls: get(IOCTLS)?,
                }),
            },
            qemu: get(QEMU)?,
            newer_qemu: match env::var_os(NEWER_QEMU) {
                Some(path) => Ok(PathBuf::from(path)),
                None => Err(env::var(NO_NEWER_QEMU).context(NO_NEWER_QEMU)?),
            },
            compiler: env::var(COMPILER).context(COMPILER)?,
        }))
    }
}

/// The QEMUs that there are.
#[derive(Clone, Debug)]
pub struct Emulators {
    /// For every machine that doesn't need another one.
    pub usual: Qemu,
    /// For those.
    pub newer: Newer,
}

impl Emulators {
    pub(super) fn of(settings: &Settings) -> Result<Self> {
        let usual = Qemu::find(Some(&settings.qemu))?.context("no QEMU")?;
        Ok(Self { usual, newer: settings.newer()? })
    }

    /// One that is of release `needs` at least.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn for_release(&self, needs: Option<Release>) -> Result<&Qemu, String> {
        match needs {
            Some(release) if self.usual.version < release => {
                self.newer.as_ref().map_err(|why| format!("it needs a newer QEMU: {why}"))
            }
            _ => Ok(&self.usual),
        }
    }
}
