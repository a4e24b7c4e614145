//! Registers of an SMMUv3: offsets in bytes from the frame's start, and the fields that are used (IHI 0070,
//! chapter 6).

#![forbid(unsafe_code)]

/// Bytes of an SMMU's two register pages of 64 KiB.
pub const FRAME_BYTES: u64 = 0x2_0000;
/// What a frame is aligned to.
pub const FRAME_ALIGN: u64 = 0x1_0000;

/// `SMMU_IDR0`.
pub const IDR0: u32 = 0x0;
/// `SMMU_IDR1`.
pub const IDR1: u32 = 0x4;
/// `SMMU_IDR5`.
pub const IDR5: u32 = 0x14;
/// `SMMU_CR0`.
pub const CR0: u32 = 0x20;
/// `SMMU_CR0ACK`.
pub const CR0ACK: u32 = 0x24;
/// `SMMU_CR1`.
pub const CR1: u32 = 0x28;
/// `SMMU_CR2`.
pub const CR2: u32 = 0x2c;
/// `SMMU_GBPA`: what becomes of transactions while the SMMU is off.
pub const GBPA: u32 = 0x44;
/// `SMMU_IRQ_CTRL`.
pub const IRQ_CTRL: u32 = 0x50;
/// `SMMU_IRQ_CTRLACK`.
pub const IRQ_CTRLACK: u32 = 0x54;
/// `SMMU_GERROR`: a bit that differs from the one in [`GERRORN`] is an error nobody has acknowledged.
pub const GERROR: u32 = 0x60;
/// `SMMU_GERRORN`.
pub const GERRORN: u32 = 0x64;
/// `SMMU_STRTAB_BASE`, 64 bits.
pub const STRTAB_BASE: u32 = 0x80;
/// `SMMU_STRTAB_BASE_CFG`.
pub const STRTAB_BASE_CFG: u32 = 0x88;
/// `SMMU_CMDQ_BASE`, 64 bits.
pub const CMDQ_BASE: u32 = 0x90;
/// `SMMU_CMDQ_PROD`.
pub const CMDQ_PROD: u32 = 0x98;
/// `SMMU_CMDQ_CONS`.
pub const CMDQ_CONS: u32 = 0x9c;
/// `SMMU_EVENTQ_BASE`, 64 bits.
pub const EVENTQ_BASE: u32 = 0xa0;
/// `SMMU_EVENTQ_PROD`, on the second page.
pub const EVENTQ_PROD: u32 = 0x1_00a8;
/// `SMMU_EVENTQ_CONS`, on the second page.
pub const EVENTQ_CONS: u32 = 0x1_00ac;

/// `SMMU_CR0.SMMUEN`.
pub const CR0_SMMUEN: u32 = 1 << 0;
/// `SMMU_CR0.EVENTQEN`.
pub const CR0_EVENTQEN: u32 = 1 << 2;
/// `SMMU_CR0.CMDQEN`.
pub const CR0_CMDQEN: u32 = 1 << 3;
/// `SMMU_CR0.ATSCHK`: what a device says that it has translated is checked against its STE.
pub const CR0_ATSCHK: u32 = 1 << 4;

/// `SMMU_CR1`: tables and queues are Inner Shareable (3), write-back inside and outside (1).
pub const CR1_WRITE_BACK: u32 = 3 << 10 | 1 << 8 | 1 << 6 | 3 << 4 | 1 << 2 | 1;

/// `SMMU_CR2.RECINVSID`: transactions of streams without an STE are told of.
pub const CR2_RECINVSID: u32 = 1 << 1;
/// `SMMU_CR2.PTM`: the SMMU takes no part in CPUs' TLB maintenance; it has commands for that.
pub const CR2_PTM: u32 = 1 << 2;

/// `SMMU_GBPA.ABORT`.
pub const GBPA_ABORT: u32 = 1 << 20;
/// `SMMU_GBPA.Update`: set by software to have the rest taken over, cleared by the SMMU when it has.
pub const GBPA_UPDATE: u32 = 1 << 31;

/// `SMMU_GERROR.CMDQ_ERR`: the SMMU has stopped at a command.
pub const GERROR_CMDQ_ERR: u32 = 1 << 0;
/// `SMMU_GERROR.SFM_ERR`: the SMMU has entered Service Failure Mode.
pub const GERROR_SFM_ERR: u32 = 1 << 8;

/// `RA` or `WA` of a base register: allocate when reading (`STRTAB_BASE`) or writing.
pub const BASE_ALLOCATE: u64 = 1 << 62;

/// `SMMU_STRTAB_BASE_CFG.FMT`: two levels.
pub const STRTAB_TWO_LEVEL: u32 = 1 << 16;
