//! Hypercalls: x0-x7, all of them the host's.

use crate::Numbers;
use umbra_shared::call::{Args, Call, Function, SVE_HINT};
use umbra_shared::error::Error;

/// Bits of VM_CREATE's configuration that mean something: the policy, PROTECTED and JUNK.
const CONFIG: u64 = 0x3f;
/// Those of which the second is nothing without the first.
const PROTECTED: u64 = 1 << 4;
const JUNK: u64 = 1 << 5;
/// The largest policy.
const POLICIES: u64 = 2;

/// Decodes x0-x7.
pub fn call(data: &[u8]) {
    let mut numbers = Numbers(data);
    let x0 = numbers.next();
    let args: Args = std::array::from_fn(|_| numbers.next());
    check(x0, &args);
    // The function alone, whatever the rest of x0 makes of it.
    for &function in Function::ALL {
        if x0 & 0xffff == function as u64 {
            check(function.id(), &args);
        }
    }
}

fn check(x0: u64, args: &Args) {
    let decoded = Call::decode(x0, args);
    assert_eq!(decoded, Call::decode(x0, args), "the same twice");
    assert_eq!(decoded, Call::decode(x0 ^ SVE_HINT, args), "the hint selects nothing");
    assert_eq!(decoded, Call::decode(x0 & 0xffff_ffff, args), "w0 is what counts");
    let function = Function::from_id(x0);
    match decoded {
        Ok(call) => {
            let (id, encoded) = call.encode();
            assert_eq!(Function::from_id(id), function, "it is the function that was asked for");
            assert_ne!(function, Some(Function::VcpuRun), "whose registers mean something else");
            assert_eq!(Call::decode(id, &encoded), Ok(call), "there and back");
            for n in 0..args.len() {
                let mut other = *args;
                other[n] = !other[n];
                if Call::decode(x0, &other) == Ok(call) {
                    assert_eq!(encoded[n], 0, "x{} is not used", n + 1);
                } else {
                    assert_eq!(encoded[n], args[n], "x{} arrives as it is", n + 1);
                }
            }
            if function == Some(Function::VmCreate) {
                assert!(good_config(args[2]), "reserved bits of {:#x} were let in", args[2]);
            }
            if function == Some(Function::VcpuReset) {
                assert_eq!(args[2] & !OFF, 0, "reserved bits were let in");
            }
        }
        Err(Error::NotSupported) => {
            assert!(matches!(function, None | Some(Function::VcpuRun)), "{function:?} is ours");
        }
        Err(error) => {
            assert_eq!(error, Error::InvalidArgument);
            let bad = match function {
                Some(Function::VmCreate) => !good_config(args[2]),
                Some(Function::VcpuCreate) => {
                    args[2] >> 56 != 0 || !good_start(args[4], args[5], args[6])
                }
                Some(Function::VcpuReset) => {
                    args[2] & !OFF != 0 || !good_start(args[2], args[3], args[4])
                }
                _ => false,
            };
            assert!(bad, "{function:?} of {args:x?} is refused");
        }
    }
}

/// Off.
const OFF: u64 = 1 << 33;

/// A vCPU that is off has no entry.
fn good_start(flags: u64, entry: u64, argument: u64) -> bool {
    flags & OFF == 0 || entry == 0 && argument == 0
}

fn good_config(raw: u64) -> bool {
    let junk_is_good = raw & JUNK == 0 || raw & PROTECTED != 0;
    raw & !CONFIG == 0 && raw & 0xf <= POLICIES && junk_is_good
}
