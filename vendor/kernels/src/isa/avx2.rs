//! AVX2: 8 lanes, 16 registers.
//!
//! Three instruction sets differ only in the dot product of four bytes: AVX2 itself, which needs several instructions for it, AVX-VNNI,
//! and AVX-512 VNNI on vectors of 256 bits. [`Avx2`] is generic over it.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// A proof that the processor has AVX2, FMA and F16C, and the instructions that `D` is a proof of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<D>(D);

/// A way to compute dot products of four bytes. Its values are proofs that the processor has the instructions.
pub(crate) trait Dot: Copy + Send + Sync {
    /// See [`Simd::OFFSET`].
    const OFFSET: i32;
    /// See [`Simd::GEMM_TOKENS`].
    const GEMM_TOKENS: usize;

    /// See [`Simd::run`].
    fn run<K: Kernel>(s: Avx2<Self>, kernel: K) -> K::Out;
    /// See [`Simd::dot`].
    fn dot(self, acc: __m256i, weights: __m256i, x: __m256i) -> __m256i;
    /// See [`Simd::SMALL_SUMS`].
    const SMALL_SUMS: bool = false;
    /// See [`Simd::add_products`].
    #[inline(always)]
    fn add_products(self, small: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        self.dot(small, codes, x)
    }
    /// See [`Simd::whole`].
    #[inline(always)]
    fn whole(self, small: __m256i) -> __m256i {
        small
    }
    /// See [`Simd::in_order`].
    #[inline(always)]
    fn in_order(self, x: __m256i) -> __m256i {
        x
    }
    /// See [`Simd::add_pairs`].
    fn add_pairs(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i;
}

/// The dot product of AVX2 alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain(());

/// The dot product of AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(());

/// The dot product of AVX-512 VNNI on vectors of 256 bits: the instruction of AVX-VNNI in another encoding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(());

/// Whether the processor has what all three sets have in common.
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

impl Avx2<Plain> {
    /// `Some` if the processor has the instructions.
    pub fn detect() -> Option<Avx2<Plain>> {
        has_avx2().then_some(Avx2(Plain(())))
    }
}

impl Avx2<AvxVnni> {
    /// `Some` if the processor has the instructions.
    pub fn detect() -> Option<Avx2<AvxVnni>> {
        (has_avx2() && is_x86_feature_detected!("avxvnni")).then_some(Avx2(AvxVnni(())))
    }
}

impl Avx2<Avx512Vnni> {
    /// `Some` if the processor has the instructions.
    pub fn detect() -> Option<Avx2<Avx512Vnni>> {
        let has = has_avx2()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Avx2(Avx512Vnni(())))
    }
}

/// [`Dot::run`] with these features enabled.
macro_rules! run_with {
    ($features:literal) => {
        #[inline(always)]
        fn run<K: Kernel>(s: Avx2<Self>, kernel: K) -> K::Out {
            #[target_feature(enable = $features)]
            fn enabled<K: Kernel, D: Dot>(s: Avx2<D>, kernel: K) -> K::Out {
                kernel.call(s)
            }
            // SAFETY: `s` is a proof that the processor has the instructions.
            unsafe { enabled(s, kernel) }
        }
    };
}

/// One vector instruction (or a few), whose operands are registers.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` is a proof that the processor has the instruction; it touches no memory.
        unsafe { $e }
    };
}

/// Moves 16 bits into the lowest lane.
///
/// As an intrinsic the compiler would read bits that are in memory into a register of which it keeps the rest, and have that wait for what was
/// computed there before.
#[inline(always)]
pub(super) fn lowest_lane(bits: u16) -> __m128i {
    let lane: __m128i;
    // SAFETY: a move from one register to another, which every processor with AVX has.
    unsafe {
        asm!("vmovd {lane}, {bits:e}", lane = lateout(xmm_reg) lane, bits = in(reg) u32::from(bits), options(pure, nomem, nostack, preserves_flags));
    }
    lane
}

/// See [`Simd::in_order`].
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn in_order(mut x: __m256i) -> __m256i {
    // SAFETY: a comment in the assembly, and nothing else.
    unsafe { asm!("/* {x} */", x = inout(ymm_reg) x, options(nomem, nostack, preserves_flags)) };
    x
}

impl Dot for Plain {
    const OFFSET: i32 = 0;
    const GEMM_TOKENS: usize = 3;

    run_with!("avx2,fma,f16c");

    #[inline(always)]
    fn dot(self, acc: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // The instruction wants a first operand without sign, so the weight's sign goes to the activation. The sum of two products
        // is below 2^15, as activations are not -128.
        let pairs = op!(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights)));
        op!(_mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
    }

    const SMALL_SUMS: bool = true;

    #[inline(always)]
    fn add_products(self, small: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // A small sum is sixteen sums of 16 bits, two for each lane. A product adds two codes times activations, of 127 times 127 at most.
        op!(_mm256_add_epi16(small, _mm256_maddubs_epi16(codes, x)))
    }

    #[inline(always)]
    fn whole(self, small: __m256i) -> __m256i {
        op!(_mm256_madd_epi16(small, _mm256_set1_epi16(1)))
    }

    #[inline(always)]
    fn in_order(self, x: __m256i) -> __m256i {
        op!(in_order(x))
    }

    #[inline(always)]
    fn add_pairs(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_add_epi32(acc, _mm256_madd_epi16(a, b)))
    }
}

impl Dot for AvxVnni {
    const OFFSET: i32 = 128;
    const GEMM_TOKENS: usize = 4;

    run_with!("avx2,fma,f16c,avxvnni");

    #[inline(always)]
    fn dot(self, acc: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        op!(_mm256_dpbusd_avx_epi32(acc, weights, x))
    }

    #[inline(always)]
    fn add_pairs(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_dpwssd_avx_epi32(acc, a, b))
    }
}

impl Dot for Avx512Vnni {
    const OFFSET: i32 = 128;
    const GEMM_TOKENS: usize = 4;

    run_with!("avx2,fma,f16c,avx512f,avx512vl,avx512vnni");

    #[inline(always)]
    fn dot(self, acc: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        op!(_mm256_dpbusd_epi32(acc, weights, x))
    }

    #[inline(always)]
    fn add_pairs(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_dpwssd_epi32(acc, a, b))
    }
}

/// For each mask of eight lanes the numbers of the lanes that are set, then zeros.
const KEPT: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut n, mut i) = (0, 0);
        while i < 8 {
            if mask >> i & 1 == 1 {
                table[mask][n] = i;
                n += 1;
            }
            i += 1;
        }
        mask += 1;
    }
    table
};

impl<D: Dot> Avx2<D> {
    /// The 4-bit codes of a block of 32 in 16 bytes, each in a byte of its own: the lower nibbles, then the upper ones.
    #[inline(always)]
    fn nibbles(self, block: &[u8]) -> __m256i {
        let block: &[u8; 16] = block[..16].try_into().expect("16 bytes");
        // SAFETY: 16 readable bytes; the processor has the instructions.
        unsafe {
            let x = _mm_loadu_si128(block.as_ptr().cast());
            _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
        }
    }

    /// Looks codes up in a table.
    #[inline(always)]
    fn shuffle(self, table: &[u8; 16], codes: __m256i) -> __m256i {
        // SAFETY: 16 readable bytes; the processor has the instructions.
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes)
        }
    }

    /// Converts eight bytes without sign to integers.
    #[inline(always)]
    fn widen(self, bytes: [u8; 8]) -> __m256i {
        op!(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes))))
    }
}

impl<D: Dot> Simd for Avx2<D> {
    const LANES: usize = 8;
    const GEMM_TOKENS: usize = D::GEMM_TOKENS;
    const GEMV_SUMS: usize = 8;
    const ATTEND_VECS: usize = 2;
    const OFFSET: i32 = D::OFFSET;
    type I = __m256i;
    type F = __m256;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Out {
        D::run(self, kernel)
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            // SAFETY: a hint, which reads nothing; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        op!(_mm256_set1_epi32(x))
    }

    #[inline(always)]
    fn load_i(self, bytes: &[u8]) -> __m256i {
        let bytes: &[u8; 32] = bytes[..32].try_into().expect("32 bytes");
        // SAFETY: 32 readable bytes; the processor has the instruction.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot(self, acc: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        self.0.dot(acc, weights, x)
    }

    const SMALL_SUMS: bool = D::SMALL_SUMS;

    #[inline(always)]
    fn add_products(self, small: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        self.0.add_products(small, codes, x)
    }

    #[inline(always)]
    fn whole(self, small: __m256i) -> __m256i {
        self.0.whole(small)
    }

    #[inline(always)]
    fn in_order(self, x: __m256i) -> __m256i {
        self.0.in_order(x)
    }

    #[inline(always)]
    fn add_scaled<const UPPER: bool>(self, acc: __m256i, small: __m256i, factors: __m256i) -> __m256i {
        // Of each lane these bytes, twice.
        let first = if UPPER { 2 } else { 0 };
        let twice = op!(_mm256_add_epi8(
            _mm256_setr_epi8(
                0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13,
            ),
            _mm256_set1_epi8(first)
        ));
        let twice = op!(_mm256_shuffle_epi8(factors, twice));
        let scaled = match D::SMALL_SUMS {
            // Of the two sums of 16 bits in a lane each is multiplied.
            true => op!(_mm256_madd_epi16(small, twice)),
            false => op!(_mm256_mullo_epi32(small, _mm256_srai_epi32::<16>(twice))),
        };
        op!(_mm256_add_epi32(acc, scaled))
    }

    #[inline(always)]
    fn add_pairs(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        self.0.add_pairs(acc, a, b)
    }

    #[inline(always)]
    fn add_scaled_products(self, acc: __m256i, codes: __m256i, x: __m256i, factors: __m256i) -> __m256i {
        self.add_pairs(acc, op!(_mm256_maddubs_epi16(codes, x)), factors)
    }

    #[inline(always)]
    fn factors_at(self, bytes: &[u8; 8], places: &[u8; 16]) -> __m256i {
        if !D::SMALL_SUMS {
            return self.as_i(self.load_places(bytes, places));
        }
        // Integers of 16 bits, one for either sum of a lane.
        // SAFETY: 16 readable bytes; the processor has the instructions.
        unsafe {
            let places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(places.as_ptr().cast()));
            let twice = _mm256_or_si256(places, _mm256_slli_epi32::<16>(places));
            let all = _mm256_set1_epi64x(i64::from_le_bytes(*bytes));
            _mm256_shuffle_epi8(all, _mm256_or_si256(twice, _mm256_set1_epi16(0x8000_u16 as i16)))
        }
    }

    #[inline(always)]
    fn scaled_sums(self, sums: [__m256i; 2], factors: [__m256i; 2]) -> __m256 {
        if D::SMALL_SUMS {
            let sum = op!(_mm256_madd_epi16(sums[0], factors[0]));
            return self.to_f(self.add_pairs(sum, sums[1], factors[1]));
        }
        let first = self.mul(self.to_f(sums[0]), self.as_f(factors[0]));
        self.fma(self.to_f(sums[1]), self.as_f(factors[1]), first)
    }

    #[inline(always)]
    fn factors_of_fours(self, bytes: &[u8; 16], first: usize) -> __m256i {
        let two = i16::from_le_bytes([bytes[first], bytes[first + 1]]);
        // Each byte becomes the upper one of 16 bits, from where it is shifted with its sign.
        let index = op!(_mm256_setr_epi64x(
            0x0080_0080_0080_0080,
            0x0080_0080_0080_0080,
            0x0180_0180_0180_0180,
            0x0180_0180_0180_0180
        ));
        op!(_mm256_srai_epi16::<8>(_mm256_shuffle_epi8(_mm256_set1_epi16(two), index)))
    }

    #[inline(always)]
    fn load_places<const N: usize>(self, bytes: &[u8; N], places: &[u8; 16]) -> __m256 {
        let mut all = [0u8; 16];
        all[..N].copy_from_slice(bytes);
        // SAFETY: 16 readable bytes each; the processor has the instructions.
        unsafe {
            let places = _mm_loadu_si128(places.as_ptr().cast());
            let x = _mm_shuffle_epi8(_mm_loadu_si128(all.as_ptr().cast()), places);
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x))
        }
    }

    #[inline(always)]
    fn add_i(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn as_f(self, x: __m256i) -> __m256 {
        op!(_mm256_castsi256_ps(x))
    }

    #[inline(always)]
    fn as_i(self, x: __m256) -> __m256i {
        op!(_mm256_castps_si256(x))
    }

    #[inline(always)]
    fn to_f(self, x: __m256i) -> __m256 {
        op!(_mm256_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn round(self, x: __m256) -> __m256i {
        op!(_mm256_cvtps_epi32(x))
    }

    #[inline(always)]
    fn store_bytes(self, x: __m256i, out: &mut [u8]) {
        let out: &mut [u8; 8] = (&mut out[..8]).try_into().expect("8 bytes");
        // SAFETY: 8 writable bytes; the processor has the instructions.
        unsafe {
            let words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packs_epi16(words, words));
        }
    }

    #[inline(always)]
    fn store_i(self, x: __m256i, out: &mut [u8]) {
        let out: &mut [u8; 32] = (&mut out[..32]).try_into().expect("32 bytes");
        // SAFETY: 32 writable bytes; the processor has the instruction.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn add_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_add_epi8(a, b))
    }

    #[inline(always)]
    fn low_nibbles(self, x: __m256i) -> __m256i {
        op!(_mm256_and_si256(x, _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn high_nibbles(self, x: __m256i) -> __m256i {
        op!(_mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn upper_bits<const N: usize>(self, bits: &[u8], at: usize) -> __m256i {
        let n = op!(_mm_cvtsi32_si128((N * (at / 32)) as i32));
        op!(_mm256_srl_epi16(self.load_i(bits), n))
    }

    #[inline(always)]
    fn sixteens(self, bits: u64) -> __m256i {
        let byte_of_bit =
            op!(_mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0));
        let bytes = op!(_mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), byte_of_bit));
        let bit = op!(_mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64));
        let is_set = op!(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit));
        op!(_mm256_and_si256(is_set, _mm256_set1_epi8(16)))
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, x: __m256i) -> __m256i {
        let shifted = op!(_mm256_srl_epi16(x, _mm_cvtsi32_si128(SHIFT as i32)));
        op!(_mm256_and_si256(shifted, _mm256_set1_epi8(MASK as i8)))
    }

    #[inline(always)]
    fn with_bits<const SHIFT: u32, const MASK: u8>(self, codes: __m256i, upper: __m256i) -> __m256i {
        let upper = op!(_mm256_sll_epi16(upper, _mm_cvtsi32_si128(SHIFT as i32)));
        op!(_mm256_or_si256(codes, _mm256_and_si256(upper, _mm256_set1_epi8(MASK as i8))))
    }

    #[inline(always)]
    fn look_up_bytes(self, table: &[u8; 16], codes: __m256i) -> __m256i {
        self.shuffle(table, codes)
    }

    #[inline(always)]
    fn look_up(self, blocks: [&[u8]; 2], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        self.store_i(self.shuffle(&tables[0], self.nibbles(blocks[0])), out);
        self.store_i(self.shuffle(&tables[1], self.nibbles(blocks[1])), &mut out[32..]);
    }

    #[inline(always)]
    fn look_up_interleaved(self, codes: &[u8], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        let x = self.load_i(codes);
        let (low, high) = (self.low_nibbles(x), self.high_nibbles(x));
        self.store_i(self.shuffle(&tables[0], low), out);
        self.store_i(self.shuffle(&tables[1], high), &mut out[32..]);
    }

    #[inline(always)]
    fn unpack_bytes(self, blocks: [&[u8]; 2]) -> [__m256i; 4] {
        let offset = op!(_mm256_set1_epi8(D::OFFSET as u8 as i8));
        let (a, b) = (self.load_i(blocks[0]), self.load_i(blocks[1]));
        let (a, b) = (self.add_bytes(a, offset), self.add_bytes(b, offset));
        [a, b, a, b]
    }

    #[inline(always)]
    fn each_four(self, x: &[f32]) -> __m256 {
        let x: &[f32; 2] = x[..2].try_into().expect("2 floats");
        // SAFETY: 8 readable bytes; the processor has the instructions.
        unsafe {
            let both = _mm256_castpd_ps(_mm256_set1_pd(x.as_ptr().cast::<f64>().read_unaligned()));
            _mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
        }
    }

    #[inline(always)]
    fn load_pieces(self, bytes: &[u8], stride: usize) -> __m256i {
        let b = &bytes[..stride + 16];
        // SAFETY: both pieces of 16 bytes are within `b`; the processor has the instructions.
        unsafe { _mm256_loadu2_m128i(b.as_ptr().add(stride).cast(), b.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_words(self, bytes: &[u8], stride: usize) -> __m256i {
        let b = &bytes[..7 * stride + 4];
        let word = |i: usize| i32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let first = [word(0), word(stride), word(2 * stride), word(3 * stride)];
        let second = [word(4 * stride), word(5 * stride), word(6 * stride), word(7 * stride)];
        op!(_mm256_setr_epi32(first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]))
    }

    #[inline(always)]
    fn half_f16<const UPPER: bool>(self, x: __m256i) -> __m256 {
        let half = match UPPER {
            true => op!(_mm256_srli_epi32::<16>(x)),
            false => op!(_mm256_and_si256(x, _mm256_set1_epi32(0xffff))),
        };
        op!(_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))))
    }

    #[inline(always)]
    fn sixteens_of_four(self, bits: __m256i, four: usize) -> __m256i {
        // Of each lane the byte that has these bits, four times.
        let byte = op!(_mm256_add_epi8(
            _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c),
            _mm256_set1_epi8((four / 2) as i8)
        ));
        let bytes = op!(_mm256_shuffle_epi8(bits, byte));
        let bit = op!(_mm256_set1_epi32(if four % 2 == 1 { 0x8040_2010_u32 as i32 } else { 0x0804_0201 }));
        let is_set = op!(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit));
        op!(_mm256_and_si256(is_set, _mm256_set1_epi8(16)))
    }

    #[inline(always)]
    fn pair_f16(self, a: &[u8], b: &[u8], v: usize) -> __m256 {
        let x = if v == 0 { a } else { b };
        op!(_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes([x[0], x[1]]))))
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m256i]) {
        let r: &mut [__m256i; 8] = rows.try_into().expect("8 vectors");
        // First single lanes change places, then pairs of lanes, then halves of vectors.
        for i in (0..8).step_by(2) {
            let (a, b) = (r[i], r[i + 1]);
            r[i] = op!(_mm256_unpacklo_epi32(a, b));
            r[i + 1] = op!(_mm256_unpackhi_epi32(a, b));
        }
        for i in (0..8).step_by(4) {
            let [a, b, c, d] = [r[i], r[i + 1], r[i + 2], r[i + 3]];
            r[i] = op!(_mm256_unpacklo_epi64(a, c));
            r[i + 1] = op!(_mm256_unpackhi_epi64(a, c));
            r[i + 2] = op!(_mm256_unpacklo_epi64(b, d));
            r[i + 3] = op!(_mm256_unpackhi_epi64(b, d));
        }
        for i in 0..4 {
            let (a, b) = (r[i], r[i + 4]);
            r[i] = op!(_mm256_permute2x128_si256::<0x20>(a, b));
            r[i + 4] = op!(_mm256_permute2x128_si256::<0x31>(a, b));
        }
    }

    #[inline(always)]
    fn transpose_fours(self, rows: &mut [__m256i; 4]) {
        let [a, b, c, d] = *rows;
        let [ab, cd] = op!([_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)]);
        (rows[0], rows[1]) = op!((_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd)));
        let [ab, cd] = op!([_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)]);
        (rows[2], rows[3]) = op!((_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd)));
    }

    #[inline(always)]
    fn pairs_of_bits(self, x: __m256i, k: usize) -> __m256i {
        let word = match k {
            0 => op!(_mm256_shuffle_epi32::<0x00>(x)),
            1 => op!(_mm256_shuffle_epi32::<0x55>(x)),
            2 => op!(_mm256_shuffle_epi32::<0xaa>(x)),
            _ => op!(_mm256_shuffle_epi32::<0xff>(x)),
        };
        op!(_mm256_srlv_epi32(word, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6)))
    }

    #[inline(always)]
    fn store_f16(self, x: __m256, out: &mut [u8]) {
        let out: &mut [u8; 16] = (&mut out[..16]).try_into().expect("16 bytes");
        // SAFETY: 16 writable bytes; the processor has the instruction.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m256 {
        let x: [u8; 8] = x[..8].try_into().expect("8 bytes");
        op!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(x)))))
    }

    #[inline(always)]
    fn scale_bytes(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        let mut out = [0.0f32; 8];
        self.store_f(self.mul(self.to_f(self.widen(bytes)), self.splat(factor)), &mut out);
        out
    }

    #[inline(always)]
    fn decode_nibbles(self, codes: &[u8], d: [f32; 2], m: [f32; 2], low: &mut [f32], high: &mut [f32]) {
        for i in [0, 8] {
            let x = self.widen(codes[i..i + 8].try_into().expect("8 bytes"));
            let (l, h) = op!((_mm256_and_si256(x, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(x)));
            self.store_f(self.fma(self.to_f(l), self.splat(d[0]), self.splat(m[0])), &mut low[i..]);
            self.store_f(self.fma(self.to_f(h), self.splat(d[1]), self.splat(m[1])), &mut high[i..]);
        }
    }

    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        op!(_mm_cvtss_f32(_mm_cvtph_ps(lowest_lane(bits))))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> __m256 {
        let x: &[u8; 16] = x[..16].try_into().expect("16 bytes");
        // SAFETY: 16 readable bytes; the processor has the instruction.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_f(self, x: &[f32]) -> __m256 {
        let x: &[f32; 8] = x[..8].try_into().expect("8 floats");
        // SAFETY: 8 readable floats; the processor has the instruction.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store_f(self, x: __m256, out: &mut [f32]) {
        let out: &mut [f32; 8] = (&mut out[..8]).try_into().expect("8 floats");
        // SAFETY: 8 writable floats; the processor has the instruction.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn fma_eight(self, a: &[f32], b: &[f32; 8], c: __m256) -> __m256 {
        self.fma(self.load_f(a), self.load_f(b), c)
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn max_abs(self, a: __m256, x: __m256) -> __m256 {
        // The bits of floats that are not negative, read as integers, have the floats' order, and NaN is above all.
        let x = op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
        op!(_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(x))))
    }

    #[inline(always)]
    fn exp2_i(self, n: __m256i) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))))
    }

    #[inline(always)]
    fn reduce_max(self, x: __m256) -> f32 {
        let x = op!(_mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
        let x = op!(_mm_max_ps(x, _mm_movehl_ps(x, x)));
        op!(_mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x))))
    }

    #[inline(always)]
    fn compress_codes(self, codes: &[u8; 32], mask: u32, out: &mut [u8]) {
        let mut n = 0;
        for (eight, mask) in codes.chunks_exact(8).zip(mask.to_le_bytes()) {
            let eight = i64::from_le_bytes(eight.try_into().expect("8 bytes"));
            let kept = i64::from_le_bytes(KEPT[usize::from(mask)]);
            let kept = op!(_mm_cvtsi128_si64(_mm_shuffle_epi8(_mm_cvtsi64_si128(eight), _mm_cvtsi64_si128(kept))));
            out[n..n + 8].copy_from_slice(&kept.to_le_bytes());
            n += mask.count_ones() as usize;
        }
    }

    #[inline(always)]
    fn compress(self, x: __m256, mask: u32, out: &mut [f32]) {
        let lanes = self.widen(KEPT[(mask & 0xff) as usize]);
        self.store_f(op!(_mm256_permutevar8x32_ps(x, lanes)), out);
    }

    #[inline(always)]
    fn reduce_sum(self, x: __m256) -> f32 {
        let x = op!(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
        let x = op!(_mm_add_ps(x, _mm_movehl_ps(x, x)));
        op!(_mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x))))
    }

    #[inline(always)]
    fn reduce_max_or_nan(self, x: __m256) -> f32 {
        let x = op!(_mm256_castps_si256(x));
        let x = op!(_mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)));
        let x = op!(_mm_max_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x)));
        let x = op!(_mm_max_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)));
        f32::from_bits(op!(_mm_cvtsi128_si32(x)) as u32)
    }
}
