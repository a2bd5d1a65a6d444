//! CPU kernels for the weights of a language model, in Rust, chosen at run time by what the processor has.
//!
//! Weights are read as a file has them. For many tokens they are packed, some rows at a time, into panels of 8-bit codes
//! ([`Isa::multiply`]); for a few they are used in place. Activations are 8-bit codes too ([`Acts`]).

mod acts;
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod columns;
mod gemm;
mod gemv;
mod math;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod pack;
mod peak;
mod portable;
mod rows;
mod simd;

use std::cell::RefCell;
use std::fmt;
use std::sync::OnceLock;

pub use acts::{Acts, GROUP, token_bytes};
pub use attend::{Cells, Query};
pub use columns::{ColumnActs, ColumnLayout};
pub use gemm::Out;
pub use gemv::{FEW, Few};
pub use pack::Columns;
pub use rows::{Format, Row};
use simd::{Kernel, Simd};

/// An instruction set that the processor has.
#[derive(Debug, Clone, Copy)]
pub struct Isa(Kind);

/// [`Kind`]: of each instruction set its name, its implementor, and whether a build that names a baseline with AVX2 allows it.
macro_rules! kinds {
    ($($(#[$attribute:meta])* $kind:ident($implementor:ty), $name:literal, $allowed:expr;)*) => {
        #[derive(Debug, Clone, Copy)]
        enum Kind {
            $($(#[$attribute])* $kind($implementor),)*
        }

        impl Kind {
            /// Those that the processor has.
            fn all() -> Vec<Kind> {
                let kinds = [$($(#[$attribute])* <$implementor>::detect().map(Kind::$kind),)*];
                kinds.into_iter().flatten().collect()
            }

            fn name(self) -> &'static str {
                match self {
                    $($(#[$attribute])* Kind::$kind(_) => $name,)*
                }
            }

            fn is_allowed(self) -> bool {
                match self {
                    $($(#[$attribute])* Kind::$kind(_) => !cfg!(target_feature = "avx2") || $allowed,)*
                }
            }

            fn run<K: Kernel>(self, kernel: K) -> K::Out {
                match self {
                    $($(#[$attribute])* Kind::$kind(s) => s.run(kernel),)*
                }
            }
        }
    };
}

// Best first.
kinds! {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512), "AVX-512", cfg!(target_feature = "avx512f");
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::Avx2<avx2::AvxVnni>), "AVX-VNNI", cfg!(target_feature = "avxvnni");
    // Never the best: AVX-VNNI is tested with it where that is missing.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx2::Avx2<avx2::Avx512Vnni>), "AVX-512 VNNI of 256 bits", cfg!(target_feature = "avx512f");
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<avx2::Plain>), "AVX2", true;
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(neon::Neon), "NEON", true;
    Portable(portable::Portable), "portable", true;
}

thread_local! {
    static SCRATCH: RefCell<pack::Scratch> = RefCell::default();
    static BUFFERS: RefCell<attend::Buffers> = RefCell::default();
}

impl Isa {
    /// The best that the processor has and the build allows.
    ///
    /// A build for any x86-64 finds out at run time what it may use. One that names a newer baseline, with AVX2
    /// (`-C target-cpu=x86-64-v3`), is held to it: AVX-512 and AVX-VNNI are used only if the baseline has them.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa(Kind::all().into_iter().find(|k| k.is_allowed()).expect("portable code always is")))
    }

    /// All that the processor has, whatever the build allows, best first: for tests and benchmarks.
    pub fn all() -> Vec<Isa> {
        Kind::all().into_iter().map(Isa).collect()
    }

    fn run<K: Kernel>(self, kernel: K) -> K::Out {
        self.0.run(kernel)
    }

    /// Operations on bytes a second that one thread does at best: measured, for about a tenth of a second, by dot products of what is
    /// in registers. A multiplication and an addition are two.
    pub fn peak(self) -> f64 {
        self.run(peak::Peak)
    }

    /// Rows of a panel: the best number of rows for [`Isa::multiply`].
    pub fn panel_rows(self) -> usize {
        self.run(pack::PanelRows)
    }

    /// Writes the activations of a token into [`token_bytes`] bytes.
    pub fn quantize(self, x: &[f32], out: &mut [u8]) {
        self.run(acts::Quantize { x, out });
    }

    /// The same of the RMS norm of `x`, times `gain`.
    pub fn norm_quantize(self, x: &[f32], gain: &[f32], eps: f32, out: &mut [u8]) {
        self.run(acts::NormQuantize { x, gain, eps, out });
    }

    /// `silu(gate) * up`, element by element.
    pub fn swiglu(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        self.run(acts::Swiglu { gate, up, out });
    }

    /// Bytes of a panel of rows of `k` inputs.
    pub fn panel_bytes(self, k: usize) -> usize {
        self.run(pack::PanelBytes { k })
    }

    /// Packs the weights' rows `row(i)`, `i < n_rows`, of `n_in` inputs (or the kept of these) into a panel of
    /// [`Isa::panel_bytes`].
    ///
    /// # Panics
    /// If these are more than [`Isa::panel_rows`].
    pub fn pack<'r>(
        self,
        row: impl Fn(usize) -> Row<'r>,
        n_rows: usize,
        n_in: usize,
        columns: Option<&Columns>,
        panel: &mut [u8],
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            self.run(pack::Pack { row, n_rows, n_in, columns, scratch, panel });
        })
    }

    /// Multiplies the first `n_rows` rows of a panel with tokens; of two panels the product is `silu(first) * second`.
    ///
    /// # Panics
    /// If a panel is not of as many inputs as the activations.
    pub fn multiply(self, panels: &[&[u8]], n_rows: usize, acts: Acts, tokens: &[usize], out: &mut dyn Out) {
        self.run(gemm::Multiply { panels, n_rows, acts, tokens, out });
    }

    /// Makes up to [`FEW`] tokens ready for [`Isa::multiply_few`] with rows of a format.
    ///
    /// # Panics
    /// If there are more tokens, or none.
    pub fn few(self, acts: Acts, format: Format) -> Few {
        self.run(gemv::MakeFew { acts, format })
    }

    /// Multiplies rows with a few tokens, reading each row once, where it is: `done(i, results)` gets the products of row `i` with all
    /// tokens.
    ///
    /// # Panics
    /// If a row's format is none of those of [`Format::is_direct`].
    pub fn multiply_few<'r>(
        self,
        tokens: &Few,
        row: impl Fn(usize) -> Row<'r>,
        n_rows: usize,
        done: impl FnMut(usize, &[f32]),
    ) {
        self.run(gemv::MultiplyFew { tokens, row, n_rows, done });
    }

    /// How some columns of a matrix of `n_out` rows are laid out.
    pub fn column_layout(self, format: Format, n_out: usize, columns: &Columns) -> ColumnLayout {
        self.run(columns::Layout { format, n_out, columns })
    }

    /// Writes the kept columns of a matrix, whose rows have `n_in` inputs, into [`ColumnLayout::n_bytes`] bytes.
    pub fn reduce_columns<'r>(self, w: &ColumnLayout, row: impl Fn(usize) -> Row<'r>, n_in: usize, tiles: &mut [u8]) {
        self.run(columns::Reduce { w, row, n_in, tiles });
    }

    /// Makes a token's kept inputs ready for [`Isa::multiply_columns`].
    pub fn column_acts(self, w: &ColumnLayout, x: &[f32]) -> ColumnActs {
        self.run(columns::MakeActs { w, x })
    }

    /// Products of kept columns with a token's kept inputs: of as many rows as `out` has floats, from row `first` on, the first of a
    /// tile.
    pub fn multiply_columns(self, w: &ColumnLayout, tiles: &[u8], acts: &ColumnActs, first: usize, out: &mut [f32]) {
        self.run(columns::MultiplyColumns { w, tiles, acts, first, out });
    }

    /// Attention of queries to the cells of one key and value head: `softmax(q k^T * scale) v`, of each query over the first
    /// [`Query::visible`] cells. `done(i, values)` gets the result of query `i`.
    pub fn attend<'c>(
        self,
        queries: &[Query<'c>],
        keys: &Cells<'c>,
        values: &Cells<'c>,
        scale: f32,
        done: &mut dyn FnMut(usize, &[f32]),
    ) {
        BUFFERS.with_borrow_mut(|buffers| self.run(attend::Attend { queries, keys, values, scale, done, buffers }));
    }
}

/// An extension of the processor's instructions that kernels use.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// Name, as in `-C target-feature`
    pub name: &'static str,
    /// The processor has it
    pub detected: bool,
    /// The build takes it for granted: ggml, which does not look at run time, uses it only then
    pub compiled: bool,
}

/// The extensions that decide which kernels run.
pub fn features() -> Vec<Feature> {
    #[cfg(target_arch = "aarch64")]
    use std::arch::is_aarch64_feature_detected as detected;
    #[cfg(target_arch = "x86_64")]
    use std::arch::is_x86_feature_detected as detected;
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    macro_rules! features {
        ($($name:tt),*) => {
            vec![$(Feature { name: $name, detected: detected!($name), compiled: cfg!(target_feature = $name) }),*]
        };
    }
    #[cfg(target_arch = "x86_64")]
    return features!("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni");
    #[cfg(target_arch = "aarch64")]
    return features!("neon", "dotprod");
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    Vec::new()
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}
