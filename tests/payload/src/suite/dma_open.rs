//! A machine whose device tree lies: it says that PCIe is behind an SMMU, and PCIe isn't. Hyp believes the
//! tree, and has nothing else to ask: what these tests show is what it costs where the tree is wrong.

use crate::{
    dma::edu,
    instruction as insn,
    puppet::{Machine, PROTECTED},
    runner::Skip,
    tests,
};

tests![r39_the_tree_is_trusted_and_where_it_lies_a_device_reads_a_guests_memory];

const SECRET: u64 = 0x5ec2_e739_5ec2_e739;
const MARK: u64 = 0xbad0_bad0_bad0_bad0;

fn r39_the_tree_is_trusted_and_where_it_lies_a_device_reads_a_guests_memory() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    for device in edu::all()? {
        puppet.at(ipa).exec(insn::STR64, SECRET);
        // That the attackers are able to do this is what the tests of machines that don't lie rest on.
        assert_eq!(device.read(puppet.physical(ipa)), SECRET);
        device.write(puppet.physical(ipa), MARK);
        assert_eq!(puppet.at(ipa).exec(insn::LDR64, 0), MARK);
    }
    puppet.put();
    Ok(())
}
