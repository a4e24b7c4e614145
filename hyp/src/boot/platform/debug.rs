//! External debug and trace through the memory map (CoreSight): what halts a CPU, reads and writes its registers,
//! samples it, or writes memory with what it did, whatever exception level it is at.
//!
//! Whoever can write a CPU's external debug registers can halt it at EL2 and execute there (Arm ARM, Part
//! H), if EL3 leaves it enabled; trace units say where EL2 branches, and a trace router is a master that
//! writes memory. So none of them is the host's: neither their registers nor, in its tree, the nodes. What a
//! tree doesn't describe is not known; that is EL3's to close. SPE and TRBE have no registers in
//! memory.

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property};

/// Names of such a component: Arm's and others' bindings all have it (Linux, bindings/arm/arm,coresight-*,
/// qcom,coresight-*).
const NAME: &[u8] = b",coresight-";

/// Whether a node describes one. Whether it is disabled makes no difference: its registers are there.
pub(super) fn is_one(node: &FdtNode<'_>) -> bool {
    node.property("compatible").is_some_and(|compatible| {
        compatible
            .value()
            .split(|&byte| byte == 0)
            .any(|name| name.windows(NAME.len()).any(|part| part == NAME))
    })
}

/// What an external debugger may do to a CPU in Non-secure state, EL2 included, as DBGAUTHSTATUS_EL1 has it
/// (Arm ARM, DBGAUTHSTATUS_EL1: NSID and NSNID, bits 1:0 and 3:2, are 0b11 where it is implemented and
/// enabled, 0b10 where it is implemented and disabled). `None`: the CPU doesn't say.
pub const fn external_debug(authentication: Option<u64>) -> &'static str {
    match authentication {
        Some(status) if status & 0b11 == 0b11 => "open to halt CPUs (firmware can close it)",
        Some(status) if status >> 2 & 0b11 == 0b11 => "open to sample CPUs, not to halt them",
        Some(_) => "closed",
        None => "unknown",
    }
}
