//! What every instruction set must compute, compared with references in plain code.
//!
//! Cases are drawn from generators with fixed seeds. Bounds follow from where rounding happens: a code of 8 bits is off by half a
//! step at most, floats by some units in the last place of the sum of magnitudes.

mod acts;
mod attention;
mod columns;
mod common;
mod gemv;
mod panels;

use common::isas;
use kernels::Isa;

#[test]
fn the_best_is_within_the_build() {
    let old = cfg!(target_feature = "avx2") && !cfg!(any(target_feature = "avx512f", target_feature = "avxvnni"));
    let best = if old { "AVX2".to_owned() } else { isas()[0].to_string() };
    assert_eq!(Isa::best().to_string(), best);
}

/// A vector instruction that is a function of its own is many times slower. In a build for any x86-64 the compiler leaves it one if
/// it is used in a function that it does not inline, as a closure may be.
#[test]
#[cfg(all(target_arch = "x86_64", not(target_feature = "avx2"), not(debug_assertions)))]
fn instructions_are_inlined() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let name = b"core_arch3x86";
    let symbols = program.windows(name.len() + 80).filter(|w| w.starts_with(name) && w[name.len()].is_ascii_digit());
    let functions: Vec<_> = symbols
        .map(|w| String::from_utf8_lossy(w.split(|b| *b == 0).next().unwrap()).into_owned())
        // These ask what the processor has.
        .filter(|s| !s.contains("xgetbv") && !s.contains("cpuid"))
        .collect();
    assert!(functions.is_empty(), "{functions:#?}");
}
