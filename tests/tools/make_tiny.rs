//! Writes tiny models of seeded random weights: `make_tiny DIRECTORY`.

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../common/forge.rs"]
mod forge;

use std::path::PathBuf;

fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("make_tiny DIRECTORY"));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, forge) in forge::golden().into_iter().chain(forge::of_each_kind()) {
        forge.write(&dir.join(name).with_extension("gguf"));
    }
}
