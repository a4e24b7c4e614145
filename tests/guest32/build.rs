//! Links the puppet at its guest-physical address.

fn main() {
    println!("cargo:rerun-if-changed=guest32.ld");
    println!("cargo:rerun-if-changed=src/puppet.S");
    println!("cargo:rerun-if-changed=src/driven.S");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
        println!("cargo:rustc-link-arg-bins=-T{dir}/guest32.ld");
    }
}
