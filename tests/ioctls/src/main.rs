//! Random ioctls on /dev/kvm, from several threads at once: `umbra-ioctls ROUNDS [SEED]`.
//!
//! A round makes a VM and has its threads do to it whatever a user can: every ioctl that there is and some that there are
//! not, with arguments that are almost right; files closed in any order and under each other; memory unmapped under the
//! guest; kvm_run written while it runs. Whether the kernel minds is for its log to say, and for the count of
//! its pages: this program only has to come to its end. Before that, calls that must do exactly what KVM's do (`exact`), of
//! protected VMs too, if there can be any (`protected`).

#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod code;
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod exact;
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod kvm;
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod memory;
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod plain;
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod protected;
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
mod round;

#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10);
    let seed: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    round::signals_interrupt();
    exact::all();
    // Where devices reach all memory there are none.
    if kvm::has_protected() {
        protected::all(rounds);
        plain::all(rounds);
        println!("@seen what=protected-VMs is=exact");
    }
    let mut done = round::Done::default();
    for n in 0..rounds {
        done.add(&round::run(seed + n));
        if n % 16 == 15 {
            println!("@progress {} {rounds}", n + 1);
        }
    }
    println!("{rounds} rounds from seed {seed}: {done}");
}

#[cfg(not(all(target_arch = "aarch64", target_os = "linux")))]
fn main() {
    eprintln!("umbra-ioctls: for arm64 Linux");
}
