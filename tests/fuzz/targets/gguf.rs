//! Any bytes as a model file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pp_run::gguf::Gguf;
use pp_run::model::{RopeOptions, read_hparams};

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::of_bytes(Path::new("model.gguf"), bytes) else { return };
    let _ = read_hparams(&gguf, &RopeOptions::default());
    let _ = gguf.require_vocab();
    let _ = gguf.header_without_tensors();
});
