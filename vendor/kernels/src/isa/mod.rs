//! Instruction sets: what kernels ask of a processor, and which processor has what.
//!
//! A kernel is written once, over the trait [`Simd`]; each implementor is an instruction set. A value of an implementor is a proof that
//! the processor has the set: only [`Isa`] makes such values, after asking the processor. How weights are stored is unknown here.
//!
//! To add an instruction set:
//!
//! 1. Write a file beside this one (`avx2.rs` is a good model), with its `mod` line below. It has a type whose values cannot be made
//!    elsewhere (a private field), a function `detect` that returns one if the processor has **all** extensions that the file uses, and
//!    `impl Simd`. [`Simd::run`] enables these same extensions with `#[target_feature]`.
//! 2. Add a line to the list `instruction_sets!` below: the better set comes first, as [`Isa::best`] takes the first.
//! 3. Add its extensions to [`features`], which tells users what their processor has.
//!
//! `tests.rs` compares every method of every set that the processor has with its definition, and `tests/` compares the results of all
//! kernels; both go over the list. A build with `-C target-cpu=x86-64` also tests that no vector instruction is left un-inlined.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::OnceLock;

use crate::formats::Format;

/// An instruction set that the processor has.
#[derive(Debug, Clone, Copy)]
pub struct Isa(InstructionSet);

/// [`InstructionSet`] has a variant for each line: its implementor, its name, and whether a build that names a baseline with AVX2 may
/// use it.
macro_rules! instruction_sets {
    ($($(#[$attribute:meta])* $set:ident($implementor:ty), $name:literal, $allowed:expr;)*) => {
        #[derive(Debug, Clone, Copy)]
        enum InstructionSet {
            $($(#[$attribute])* $set($implementor),)*
        }

        impl InstructionSet {
            /// The sets that the processor has.
            fn all() -> Vec<InstructionSet> {
                let sets = [$($(#[$attribute])* <$implementor>::detect().map(InstructionSet::$set),)*];
                sets.into_iter().flatten().collect()
            }

            fn name(self) -> &'static str {
                match self {
                    $($(#[$attribute])* InstructionSet::$set(_) => $name,)*
                }
            }

            fn is_allowed(self) -> bool {
                match self {
                    $($(#[$attribute])* InstructionSet::$set(_) => !cfg!(target_feature = "avx2") || $allowed,)*
                }
            }

            fn run<K: Kernel>(self, kernel: K) -> K::Out {
                match self {
                    $($(#[$attribute])* InstructionSet::$set(s) => s.run(kernel),)*
                }
            }
        }
    };
}

// Best first.
instruction_sets! {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512), "AVX-512", cfg!(target_feature = "avx512f");
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::Avx2<avx2::AvxVnni>), "AVX-VNNI", cfg!(target_feature = "avxvnni");
    // This set is never the best one: see `Isa::of_short_rows`. It tests the code of AVX-VNNI, too, on processors that have AVX-512 only.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx2::Avx2<avx2::Avx512Vnni>), "AVX-512 VNNI of 256 bits", cfg!(target_feature = "avx512f");
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<avx2::Plain>), "AVX2", true;
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(neon::Neon), "NEON", true;
    Portable(portable::Portable), "portable", true;
}

impl Isa {
    /// The best instruction set that the processor has and the build allows.
    ///
    /// A build for any x86-64 finds out at run time what it may use. A build that names a newer baseline, with AVX2
    /// (`-C target-cpu=x86-64-v3`), is held to it: AVX-512 and AVX-VNNI are used only if the baseline has them.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        let find = || InstructionSet::all().into_iter().find(|set| set.is_allowed()).expect("portable code always is");
        *BEST.get_or_init(|| Isa(find()))
    }

    /// All instruction sets that the processor has, whatever the build allows, best first: for tests and benchmarks.
    pub fn all() -> Vec<Isa> {
        InstructionSet::all().into_iter().map(Isa).collect()
    }

    /// Whether it has no vector instructions that the kernels know.
    pub fn is_portable(self) -> bool {
        matches!(self.0, InstructionSet::Portable(_))
    }

    /// What each token after the first adds to a step of few tokens, in steps of one token: somewhat more than was measured for models as wide
    /// as one of 7B and less than for small ones (tests/bench/README.md, "Long contexts and steps"). One token waits for memory, and several
    /// compute meanwhile, the more so with wide vectors. AVX-512 and AVX2 were measured; the others count as AVX2.
    pub fn cost_of_token(self) -> f64 {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(_) => 0.17,
            _ => 0.3,
        }
    }

    /// The instruction set for few tokens with rows of `k` inputs: AVX-512 on vectors of 256 bits, where a step is eight blocks instead of sixteen, if
    /// rows are short and their last step would else be half empty. Answers of SmolLM2, whose rows are 18 blocks, are faster so.
    pub(crate) fn of_short_rows(self, k: usize, format: Format) -> Isa {
        let has_steps = !format.shares_scales() && !matches!(format, Format::Q8_0);
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512(_) if has_steps && k < 1024 && (1..=256).contains(&(k % 512)) => {
                avx2::Avx2::<avx2::Avx512Vnni>::detect().map_or(self, |set| Isa(InstructionSet::Avx512Vnni(set)))
            }
            _ => self,
        }
    }

    /// Runs a kernel with the instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        self.0.run(kernel)
    }
}

/// The name of the instruction set.
impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// An extension of the processor's instructions that kernels use.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// The name as in `-C target-feature`
    pub name: &'static str,
    /// Whether the processor has it
    pub detected: bool,
    /// Whether the build takes it for granted: ggml, which does not look at run time, uses it only then
    pub compiled: bool,
}

/// The extensions that decide which instruction sets run.
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

/// A computation that is written over instruction sets.
pub(crate) trait Kernel {
    type Out;

    /// Computes; implementations are marked `#[inline(always)]`, see [`Simd`].
    fn call<S: Simd>(self, s: S) -> Self::Out;
}

/// Repeats a block for each number. The compiler does not do so by itself with what has assembly in it, see [`Simd::in_order`], or is long: what
/// depends on the number alone would then be computed each time.
macro_rules! unroll {
    ($i:ident in [$($n:literal),*] $body:block) => {
        $({ let $i: usize = $n; $body })*
    };
}
pub(crate) use unroll;

/// Vectors of `LANES` lanes of 32 bits: integers ([`Simd::I`]) or floats ([`Simd::F`]).
///
/// Every method is inlined into [`Simd::run`], which enables the instruction set. In a build for any x86-64 a function that the compiler
/// does not inline there is compiled without the instruction set, and is many times slower. Therefore every function that takes an
/// implementor is marked `#[inline(always)]`, and no closure handles vectors, as a closure cannot be marked.
///
/// What is different for each format is a kernel of its own, which the kernel for all formats runs by [`Simd::run`]: as one function all
/// formats would take the compiler minutes.
///
/// Methods that read or write a slice use its first elements, as many as they say, and panic if it is shorter.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Lanes of a vector: 4, 8 or 16.
    const LANES: usize;
    /// Tokens that a gemm multiplies at once: as many as the registers allow.
    const GEMM_TOKENS: usize;
    /// Sums of rows times tokens that a gemv keeps in registers.
    const GEMV_SUMS: usize;
    /// Vectors of sums that attention keeps in registers for each of six queries.
    const ATTEND_VECS: usize;
    /// What is added to an 8-bit code of a weight before it is stored: 128 where [`Simd::dot`] takes weights without sign, else 0.
    const OFFSET: i32;
    /// A vector of integers.
    type I: Copy;
    /// A vector of floats.
    type F: Copy;

    /// Runs a kernel with the instruction set enabled.
    fn run<K: Kernel>(self, kernel: K) -> K::Out;

    /// Has bytes fetched that will be read: nothing, unless the processor can be told.
    #[inline(always)]
    fn prefetch(self, _bytes: &[u8]) {}
    /// The same integer in every lane.
    fn splat_i(self, x: i32) -> Self::I;
    /// Reads `4 * LANES` bytes, four for each lane.
    fn load_i(self, bytes: &[u8]) -> Self::I;
    /// Adds to each lane of `acc` the dot product of the lane's four weights and four activations.
    ///
    /// The weights are bytes without sign where `OFFSET` is 128, else with sign. The activations are bytes with sign, none of them -128.
    fn dot(self, acc: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// Whether [`Simd::add_products`] adds in 16 bits, which is faster than [`Simd::dot`].
    const SMALL_SUMS: bool = false;
    /// Adds the lanes' dot products of four codes, without sign, and four activations to a small sum, which begins with zeros. A small sum has
    /// room for codes whose largest values together are 127: eight products of codes of 4 bits, four of 5 bits, two of 6 bits.
    #[inline(always)]
    fn add_products(self, small: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        self.dot(small, codes, x)
    }
    /// The lanes of a small sum as integers.
    #[inline(always)]
    fn whole(self, small: Self::I) -> Self::I {
        small
    }
    /// What it is given. Where that was found to be faster, the compiler has to keep the order in which such values are computed: else it would begin
    /// many sums before it ends one, or multiply tokens one by one, and move registers to memory and back for lack of them.
    #[inline(always)]
    fn in_order(self, x: Self::I) -> Self::I {
        x
    }
    /// The same of floats.
    #[inline(always)]
    fn in_order_f(self, x: Self::F) -> Self::F {
        self.as_f(self.in_order(self.as_i(x)))
    }
    /// Adds to each lane of `acc` the lane of a small sum, times the lower or the upper 16 bits of the lane of `factors`, an integer with sign.
    #[inline(always)]
    fn add_scaled<const UPPER: bool>(self, acc: Self::I, small: Self::I, factors: Self::I) -> Self::I {
        let [mut sums, mut by] = [[0u8; 64]; 2];
        self.store_i(small, &mut sums);
        self.store_i(factors, &mut by);
        for (sum, by) in sums.chunks_exact_mut(4).zip(by.chunks_exact(4)) {
            let at = if UPPER { 2 } else { 0 };
            let whole = i32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
            let scaled = whole.wrapping_mul(i16::from_le_bytes([by[at], by[at + 1]]).into());
            sum.copy_from_slice(&scaled.to_le_bytes());
        }
        self.add_i(acc, self.load_i(&sums))
    }
    /// Adds to each lane of `acc` the lower 16 bits of the lanes of `a` and `b`, multiplied, and the upper ones: integers with sign.
    #[inline(always)]
    fn add_pairs(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let [mut sums, mut by] = [[0u8; 64]; 2];
        self.store_i(a, &mut sums);
        self.store_i(b, &mut by);
        for (a, b) in sums.chunks_exact_mut(4).zip(by.chunks_exact(4)) {
            let product = |i: usize| {
                i32::from(i16::from_le_bytes([a[i], a[i + 1]])) * i32::from(i16::from_le_bytes([b[i], b[i + 1]]))
            };
            let sum = product(0).wrapping_add(product(2));
            a.copy_from_slice(&sum.to_le_bytes());
        }
        self.add_i(acc, self.load_i(&sums))
    }
    /// Adds to each lane of `acc` the dot product of the lane's four codes, without sign and at most 127, and four activations, times a factor: an
    /// integer with sign, which is both the lower and the upper 16 bits of the lane of `factors`.
    #[inline(always)]
    fn add_scaled_products(self, acc: Self::I, codes: Self::I, x: Self::I, factors: Self::I) -> Self::I {
        self.add_scaled::<false>(acc, self.add_products(self.splat_i(0), codes, x), factors)
    }
    /// Factors for [`Simd::add_scaled_products`]: `LANES / 4` bytes with sign, from byte `first` on, each in four lanes.
    #[inline(always)]
    fn factors_of_fours(self, bytes: &[u8; 16], first: usize) -> Self::I {
        let mut all = [0u8; 64];
        for (i, x) in all.chunks_exact_mut(2).enumerate().take(2 * Self::LANES) {
            x.copy_from_slice(&i16::from(bytes[first + i / 8] as i8).to_le_bytes());
        }
        self.load_i(&all)
    }
    /// Factors for [`Simd::scaled_sums`]: in each lane the byte, which is below 128, at the place that is said of it.
    #[inline(always)]
    fn factors_at(self, bytes: &[u8; 8], places: &[u8; 16]) -> Self::I {
        self.as_i(self.load_places(bytes, places))
    }
    /// The lanes of two small sums as floats, each times its factor, added.
    #[inline(always)]
    fn scaled_sums(self, sums: [Self::I; 2], factors: [Self::I; 2]) -> Self::F {
        let first = self.mul(self.to_f(self.whole(sums[0])), self.as_f(factors[0]));
        self.fma(self.to_f(self.whole(sums[1])), self.as_f(factors[1]), first)
    }
    /// In each lane the four bytes whose number, in fours, is said of it. `bytes` are 64, or at least 128 of which 128 are read.
    #[inline(always)]
    fn words(self, bytes: &[u8], numbers: &[u32; 16]) -> Self::I {
        let mut all = [0u8; 64];
        for (to, number) in all.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&bytes[4 * *number as usize..][..4]);
        }
        self.load_i(&all)
    }
    /// Rotates each lane to the right, by so many bits as are said of it.
    #[inline(always)]
    fn rotate(self, x: Self::I, by: &[u32; 16]) -> Self::I {
        let mut all = [0u8; 64];
        self.store_i(x, &mut all);
        for (x, by) in all.chunks_exact_mut(4).zip(by) {
            let rotated = u32::from_le_bytes([x[0], x[1], x[2], x[3]]).rotate_right(*by);
            x.copy_from_slice(&rotated.to_le_bytes());
        }
        self.load_i(&all)
    }
    /// In each lane the byte, with sign, at the place that is said of it.
    #[inline(always)]
    fn load_places<const N: usize>(self, bytes: &[u8; N], places: &[u8; 16]) -> Self::F {
        let mut all = [0.0; 16];
        for (to, place) in all.iter_mut().zip(places) {
            *to = f32::from(bytes[usize::from(*place)] as i8);
        }
        self.load_f(&all)
    }
    /// Two floats in turn.
    #[inline(always)]
    fn splat_two(self, x: &[f32; 2]) -> Self::F {
        let mut all = [x[0]; 16];
        all.iter_mut().skip(1).step_by(2).for_each(|to| *to = x[1]);
        self.load_f(&all)
    }
    /// `a + b`, lane by lane.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lanes' bits as floats.
    fn as_f(self, x: Self::I) -> Self::F;
    /// The lanes' bits as integers.
    fn as_i(self, x: Self::F) -> Self::I;
    /// Converts integers to floats.
    fn to_f(self, x: Self::I) -> Self::F;
    /// The nearest integers, ties to even. A float that no integer of 32 bits is near becomes any integer.
    fn round(self, x: Self::F) -> Self::I;
    /// Writes the lanes, which are within -128 and 127, as `LANES` bytes with sign.
    fn store_bytes(self, x: Self::I, out: &mut [u8]);
    /// Writes the lanes, four bytes each.
    fn store_i(self, x: Self::I, out: &mut [u8]);
    /// `a + b`, byte by byte, wrapping.
    fn add_bytes(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lower four bits of each byte.
    fn low_nibbles(self, x: Self::I) -> Self::I;
    /// The upper four bits of each byte.
    fn high_nibbles(self, x: Self::I) -> Self::I;
    /// The first 32 bytes of `bits`, again and again, shifted to the right by `N` bits more each time: of that a vector, from byte `at` on. What
    /// comes into a byte from above is anything.
    #[inline(always)]
    fn upper_bits<const N: usize>(self, bits: &[u8], at: usize) -> Self::I {
        let mut all = [0u8; 64];
        for (i, x) in all.iter_mut().enumerate().take(4 * Self::LANES) {
            let at = at + i;
            *x = bits[at % 32] >> (N * (at / 32));
        }
        self.load_i(&all)
    }
    /// A byte of 16 for each bit that is set, else of 0, from the lowest bit on.
    #[inline(always)]
    fn sixteens(self, bits: u64) -> Self::I {
        let mut all = [0u8; 64];
        for (i, x) in all.iter_mut().enumerate() {
            *x = (bits >> i & 1) as u8 * 16;
        }
        self.load_i(&all)
    }
    /// Each byte shifted to the right, of that the bits of `MASK`, which has none that come into a byte from above.
    fn bits<const SHIFT: u32, const MASK: u8>(self, x: Self::I) -> Self::I;
    /// `codes`, with the bits of `MASK` that `upper`, shifted to the left, has in each byte.
    fn with_bits<const SHIFT: u32, const MASK: u8>(self, codes: Self::I, upper: Self::I) -> Self::I;
    /// Looks up bytes that are below 16.
    fn look_up_bytes(self, table: &[u8; 16], codes: Self::I) -> Self::I;
    /// Looks up the 4-bit codes of two blocks of 32, each in the table of its block, and writes 64 bytes.
    ///
    /// Each block is 16 bytes: the lower nibbles are its first 16 codes, the upper ones the others.
    fn look_up(self, blocks: [&[u8]; 2], tables: &[[u8; 16]; 2], out: &mut [u8]);
    /// Looks up the 4-bit codes of two blocks of 32, each in the table of its block, and writes 64 bytes.
    ///
    /// The blocks are 32 bytes: the lower nibbles are the first block, the upper ones the second.
    fn look_up_interleaved(self, codes: &[u8], tables: &[[u8; 16]; 2], out: &mut [u8]);
    /// The 8-bit codes of two blocks of 32, plus `OFFSET`, in the first `16 / LANES` vectors: what [`Simd::dot`] takes as weights.
    fn unpack_bytes(self, blocks: [&[u8]; 2]) -> [Self::I; 4];
    /// The scales that belong to vector `v` of [`Simd::unpack_bytes`]: in lanes of the first block the 16-bit float at the start of `a`,
    /// in lanes of the second that of `b`.
    fn pair_f16(self, a: &[u8], b: &[u8], v: usize) -> Self::F;
    /// Reads `LANES / 4` floats, each into four lanes.
    #[inline(always)]
    fn each_four(self, x: &[f32]) -> Self::F {
        let mut lanes = [0.0f32; 16];
        for (lanes, x) in lanes.chunks_exact_mut(4).zip(x) {
            lanes.fill(*x);
        }
        self.load_f(&lanes)
    }
    /// Reads `LANES / 4` pieces of 16 bytes, each into four lanes; from one piece to the next it is `stride` bytes.
    #[inline(always)]
    fn load_pieces(self, bytes: &[u8], stride: usize) -> Self::I {
        let mut all = [0u8; 64];
        for i in 0..Self::LANES / 4 {
            all[16 * i..16 * i + 16].copy_from_slice(&bytes[stride * i..stride * i + 16]);
        }
        self.load_i(&all)
    }
    /// Reads four bytes for each lane; from those of one lane to those of the next it is `stride` bytes.
    #[inline(always)]
    fn load_words(self, bytes: &[u8], stride: usize) -> Self::I {
        let mut all = [0u8; 64];
        for (i, to) in all.chunks_exact_mut(4).enumerate().take(Self::LANES) {
            to.copy_from_slice(&bytes[stride * i..stride * i + 4]);
        }
        self.load_i(&all)
    }
    /// The 16-bit floats that are the lower or the upper half of each lane.
    #[inline(always)]
    fn half_f16<const UPPER: bool>(self, x: Self::I) -> Self::F {
        let (mut all, mut floats) = ([0u8; 64], [0.0; 16]);
        self.store_i(x, &mut all);
        for (float, x) in floats.iter_mut().zip(all.chunks_exact(4)).take(Self::LANES) {
            *float = self.f16_at(&x[if UPPER { 2 } else { 0 }..]);
        }
        self.load_f(&floats)
    }
    /// In each lane a byte of 16 for each of the lane's bits `4 * four` to `4 * four + 3` that is set, else of 0.
    #[inline(always)]
    fn sixteens_of_four(self, bits: Self::I, four: usize) -> Self::I {
        let mut all = [0u8; 64];
        self.store_i(bits, &mut all);
        for x in all.chunks_exact_mut(4) {
            let bits = u32::from_le_bytes([x[0], x[1], x[2], x[3]]) >> (4 * four);
            x.iter_mut().enumerate().for_each(|(i, x)| *x = (bits >> i & 1) as u8 * 16);
        }
        self.load_i(&all)
    }
    /// Transposes `LANES` vectors, which are the rows of a square.
    fn transpose(self, rows: &mut [Self::I]);
    /// Transposes four vectors whose fours of lanes are the rows of squares, one beside the other.
    #[inline(always)]
    fn transpose_fours(self, rows: &mut [Self::I; 4]) {
        let mut all = [[0u8; 64]; 4];
        for (row, all) in rows.iter().zip(&mut all) {
            self.store_i(*row, all);
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let mut transposed = [0u8; 64];
            for (lane, to) in transposed.chunks_exact_mut(4).enumerate().take(Self::LANES) {
                to.copy_from_slice(&all[lane % 4][4 * (lane / 4 * 4 + i)..][..4]);
            }
            *row = self.load_i(&transposed);
        }
    }
    /// In every four lanes what lane `k` of them has, shifted to the right by 0, 2, 4 and 6 bits.
    #[inline(always)]
    fn pairs_of_bits(self, x: Self::I, k: usize) -> Self::I {
        let mut all = [0u8; 64];
        self.store_i(x, &mut all);
        for four in all.chunks_exact_mut(16) {
            let word: [u8; 4] = *four[4 * k..].first_chunk().expect("a word of four");
            for (i, to) in four.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&(u32::from_le_bytes(word) >> (2 * i)).to_le_bytes());
            }
        }
        self.load_i(&all)
    }

    /// Reads a 16-bit float, little-endian.
    #[inline(always)]
    fn f16_at(self, bytes: &[u8]) -> f32 {
        self.f16(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
    /// The 16-bit float that has these bits.
    fn f16(self, bits: u16) -> f32;
    /// Reads `LANES` 16-bit floats, little-endian.
    fn load_f16(self, x: &[u8]) -> Self::F;
    /// Writes `LANES` 16-bit floats, little-endian: the nearest ones, ties to even.
    fn store_f16(self, x: Self::F, out: &mut [u8]);
    /// Reads `LANES` bytes with sign.
    fn load_i8(self, x: &[u8]) -> Self::F;
    /// Eight bytes without sign, times a factor.
    fn scale_bytes(self, bytes: [u8; 8], factor: f32) -> [f32; 8];
    /// Writes `d * code + m` for the lower nibbles of 16 bytes to `low` and for the upper ones to `high`; `d` and `m` have an element
    /// for each of the two.
    fn decode_nibbles(self, codes: &[u8], d: [f32; 2], m: [f32; 2], low: &mut [f32], high: &mut [f32]);
    /// Reads `LANES` floats.
    fn load_f(self, x: &[f32]) -> Self::F;
    /// Writes `LANES` floats.
    fn store_f(self, x: Self::F, out: &mut [f32]);
    /// The same float in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Adds the products of eight floats to lanes of `c`. Which lanes these are is open: only the sum of all lanes counts.
    fn fma_eight(self, a: &[f32], b: &[f32; 8], c: Self::F) -> Self::F;
    /// The larger of `a` and `b`; `b` if one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of `a` and `b`; `b` if one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of `a`, which is not negative, and the magnitude of `x`; NaN if one is NaN.
    fn max_abs(self, a: Self::F, x: Self::F) -> Self::F;
    /// `2^n` for `n` within -126 and 127.
    fn exp2_i(self, n: Self::I) -> Self::F;
    /// Writes the codes whose bit in `mask` is set, one after the other. Up to 32 bytes are written: what is behind the codes is open.
    #[inline(always)]
    fn compress_codes(self, codes: &[u8; 32], mask: u32, out: &mut [u8]) {
        let mut n = 0;
        for (i, c) in codes.iter().enumerate() {
            out[n] = *c;
            n += (mask >> i & 1) as usize;
        }
    }
    /// Writes the lanes whose bit in `mask` is set, one after the other. Up to `LANES` floats are written: what is behind the lanes is
    /// open.
    fn compress(self, x: Self::F, mask: u32, out: &mut [f32]);
    /// The sum of the lanes.
    fn reduce_sum(self, x: Self::F) -> f32;
    /// The largest of the lanes. A lane that is NaN may be ignored.
    fn reduce_max(self, x: Self::F) -> f32;
    /// The largest of the lanes, none of which is negative; NaN if one is NaN.
    fn reduce_max_or_nan(self, x: Self::F) -> f32;
}
