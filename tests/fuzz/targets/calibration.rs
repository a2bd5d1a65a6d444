//! Any bytes as a calibration file; with their checksum put right too, so that what is inside is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pp_run::prune::Calibration;
use pp_run::weights::{Dims, LayerDims};

fuzz_target!(|bytes: &[u8]| {
    let dims = Dims::alike(2, 4, LayerDims::gated([2, 1, 2], 6));
    let _ = Calibration::parse(bytes, &dims, 7);
    let sum = xxhash_rust::xxh3::xxh3_64(bytes).to_le_bytes();
    if let Ok(read) = Calibration::parse(&[bytes, &sum].concat(), &dims, 7) {
        let again = read.to_bytes(&dims, 7);
        assert_eq!(Calibration::parse(&again, &dims, 7).expect("what is written is read"), read);
    }
});
