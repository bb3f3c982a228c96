//! Puts the toolbox into the binary. It never builds it: `make apps` does.

use std::{env, fs, path::Path};

fn main() {
    let image = Path::new("../sample-apps/dist/toolbox.wasm");
    println!("cargo::rerun-if-changed={}", image.display());
    println!("cargo::rerun-if-env-changed=WHERRY_TOOLBOX_REQUIRED");
    let target = env::var_os("OUT_DIR").expect("cargo says where outputs go");
    let target = Path::new(&target).join("toolbox.wasm");
    if image.exists() {
        fs::copy(image, target).expect("the output folder can be written");
        return;
    }
    let missing = "sample-apps/dist/toolbox.wasm is not built: run `make apps`";
    if env::var_os("WHERRY_TOOLBOX_REQUIRED").is_some() {
        println!("cargo::error={missing}");
    } else {
        println!("cargo::warning={missing}; this binary has no toolbox");
    }
    fs::write(target, []).expect("the output folder can be written");
}
