//! Any text as a dump of what was pruned.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pp_run::prune::parse_dump as parse;
use pp_run::weights::{Dims, LayerDims};

fuzz_target!(|text: &str| {
    let dims = Dims::alike(2, 4, LayerDims::gated([2, 1, 2], 6));
    let Ok(records) = parse(text, &dims, 7) else { return };
    assert!(!records.is_empty());
    for (record, (block, kept)) in records.iter().flat_map(|r| r.kept.iter().map(move |kept| (r, kept))) {
        assert!(block.il < dims.n_layer(), "{block:?}");
        let units = 0..block.units(&dims) as i32;
        assert!(kept.iter().all(|k| units.contains(k)), "{block:?} {kept:?}");
        // Only a batch may drop a block.
        assert!(!record.frozen || !kept.is_empty(), "{block:?}");
        assert!(kept.is_sorted_by(|a, b| a < b), "{block:?} {kept:?}");
    }
});
