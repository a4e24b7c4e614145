//! Links the test kernel as the demonstration's is linked.

fn main() {
    println!("cargo:rerun-if-changed=../../host/kernel.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
        println!("cargo:rustc-link-arg-bins=-T{dir}/../../host/kernel.ld");
    }
}
