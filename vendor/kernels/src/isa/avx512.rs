//! AVX-512 with VNNI: 16 lanes, 32 registers.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// A proof that the processor has AVX-512 F, BW, VL, DQ and VNNI, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// `Some` if the processor has the instructions.
    pub fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx512(()))
    }
}

/// One vector instruction (or a few), whose operands are registers.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` is a proof that the processor has the instruction; it touches no memory.
        unsafe { $e }
    };
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const GEMM_TOKENS: usize = 6;
    const GEMV_SUMS: usize = 16;
    const ATTEND_VECS: usize = 4;
    const OFFSET: i32 = 128;
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
        fn enabled<K: Kernel>(s: Avx512, kernel: K) -> K::Out {
            kernel.call(s)
        }
        // SAFETY: `self` is a proof that the processor has the instructions.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            // SAFETY: a hint, which reads nothing; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn load_i(self, bytes: &[u8]) -> __m512i {
        let bytes: &[u8; 64] = bytes[..64].try_into().expect("64 bytes");
        // SAFETY: 64 readable bytes; the processor has the instruction.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot(self, acc: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        op!(_mm512_dpbusd_epi32(acc, weights, x))
    }

    #[inline(always)]
    fn words(self, bytes: &[u8], numbers: &[u32; 16]) -> __m512i {
        // SAFETY: numbers are 64 readable bytes; the processor has the instruction.
        let numbers = unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) };
        let first = self.load_i(bytes);
        match bytes.len() {
            64 => op!(_mm512_permutexvar_epi32(numbers, first)),
            _ => op!(_mm512_permutex2var_epi32(first, numbers, self.load_i(&bytes[64..]))),
        }
    }

    #[inline(always)]
    fn rotate(self, x: __m512i, by: &[u32; 16]) -> __m512i {
        // SAFETY: 64 readable bytes; the processor has the instructions.
        unsafe { _mm512_rorv_epi32(x, _mm512_loadu_si512(by.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_places<const N: usize>(self, bytes: &[u8; N], places: &[u8; 16]) -> __m512 {
        let mut all = [0u8; 16];
        all[..N].copy_from_slice(bytes);
        // SAFETY: 16 readable bytes each; the processor has the instructions.
        unsafe {
            let places = _mm_loadu_si128(places.as_ptr().cast());
            let x = _mm_shuffle_epi8(_mm_loadu_si128(all.as_ptr().cast()), places);
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))
        }
    }

    #[inline(always)]
    fn splat_two(self, x: &[f32; 2]) -> __m512 {
        let both = u64::from(x[0].to_bits()) | u64::from(x[1].to_bits()) << 32;
        op!(_mm512_castsi512_ps(_mm512_set1_epi64(both as i64)))
    }

    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn as_f(self, x: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn as_i(self, x: __m512) -> __m512i {
        op!(_mm512_castps_si512(x))
    }

    #[inline(always)]
    fn to_f(self, x: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        op!(_mm512_cvtps_epi32(x))
    }

    #[inline(always)]
    fn store_bytes(self, x: __m512i, out: &mut [u8]) {
        let out: &mut [u8; 16] = (&mut out[..16]).try_into().expect("16 bytes");
        // SAFETY: 16 writable bytes; the processor has the instructions.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)) }
    }

    #[inline(always)]
    fn store_i(self, x: __m512i, out: &mut [u8]) {
        let out: &mut [u8; 64] = (&mut out[..64]).try_into().expect("64 bytes");
        // SAFETY: 64 writable bytes; the processor has the instruction.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn add_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi8(a, b))
    }

    #[inline(always)]
    fn low_nibbles(self, x: __m512i) -> __m512i {
        op!(_mm512_and_si512(x, _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn high_nibbles(self, x: __m512i) -> __m512i {
        op!(_mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn upper_bits<const N: usize>(self, bits: &[u8], at: usize) -> __m512i {
        let bits: &[u8; 32] = bits[..32].try_into().expect("32 bytes");
        // SAFETY: 32 readable bytes; the processor has the instructions.
        let bits = unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(bits.as_ptr().cast())) };
        let n = (N * (at / 32)) as i16;
        let (first, second) = op!((_mm256_set1_epi16(n), _mm256_set1_epi16(n + N as i16)));
        op!(_mm512_srlv_epi16(bits, _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)))
    }

    #[inline(always)]
    fn sixteens(self, bits: u64) -> __m512i {
        op!(_mm512_maskz_set1_epi8(bits, 16))
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, x: __m512i) -> __m512i {
        let shifted = op!(_mm512_srl_epi16(x, _mm_cvtsi32_si128(SHIFT as i32)));
        op!(_mm512_and_si512(shifted, _mm512_set1_epi8(MASK as i8)))
    }

    #[inline(always)]
    fn with_bits<const SHIFT: u32, const MASK: u8>(self, codes: __m512i, upper: __m512i) -> __m512i {
        let upper = op!(_mm512_sll_epi16(upper, _mm_cvtsi32_si128(SHIFT as i32)));
        op!(_mm512_or_si512(codes, _mm512_and_si512(upper, _mm512_set1_epi8(MASK as i8))))
    }

    #[inline(always)]
    fn look_up_bytes(self, table: &[u8; 16], codes: __m512i) -> __m512i {
        // SAFETY: 16 readable bytes; the processor has the instructions.
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
        }
    }

    #[inline(always)]
    fn look_up(self, blocks: [&[u8]; 2], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        let a: &[u8; 16] = blocks[0][..16].try_into().expect("16 bytes");
        let b: &[u8; 16] = blocks[1][..16].try_into().expect("16 bytes");
        let out: &mut [u8; 64] = (&mut out[..64]).try_into().expect("64 bytes");
        // SAFETY: blocks and tables are 16 readable bytes, `out` 64 writable ones; the processor has the instructions.
        unsafe {
            let load = |x: &[u8; 16]| _mm_loadu_si128(x.as_ptr().cast());
            let nibbles = |x: __m128i| {
                let high = _mm_srli_epi16::<4>(x);
                _mm256_and_si256(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(x), high), _mm256_set1_epi8(15))
            };
            let half = |x: &[u8; 16], table: &[u8; 16]| {
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load(table)), nibbles(load(x)))
            };
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(a, &tables[0])), half(b, &tables[1]));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
        }
    }

    #[inline(always)]
    fn look_up_interleaved(self, codes: &[u8], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        let codes: &[u8; 32] = codes[..32].try_into().expect("32 bytes");
        let out: &mut [u8; 64] = (&mut out[..64]).try_into().expect("64 bytes");
        // SAFETY: codes are 32 readable bytes, tables 16, `out` 64 writable ones; the processor has the instructions.
        unsafe {
            let x = _mm256_loadu_si256(codes.as_ptr().cast());
            let table = |t: &[u8; 16]| _mm256_broadcastsi128_si256(_mm_loadu_si128(t.as_ptr().cast()));
            let mask = _mm256_set1_epi8(15);
            let low = _mm256_shuffle_epi8(table(&tables[0]), _mm256_and_si256(x, mask));
            let high = _mm256_shuffle_epi8(table(&tables[1]), _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high));
        }
    }

    #[inline(always)]
    fn unpack_bytes(self, blocks: [&[u8]; 2]) -> [__m512i; 4] {
        let a: &[u8; 32] = blocks[0][..32].try_into().expect("32 bytes");
        let b: &[u8; 32] = blocks[1][..32].try_into().expect("32 bytes");
        // SAFETY: blocks are 32 readable bytes; the processor has the instructions.
        let x = unsafe {
            let load = |x: &[u8; 32]| _mm256_loadu_si256(x.as_ptr().cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load(a)), load(b))
        };
        [op!(_mm512_xor_si512(x, _mm512_set1_epi8(-128))); 4]
    }

    #[inline(always)]
    fn each_four(self, x: &[f32]) -> __m512 {
        let x = &x[..4];
        // SAFETY: 4 readable floats; the processor has the instructions.
        let x = unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(x.as_ptr())) };
        op!(_mm512_permutevar_ps(x, _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)))
    }

    #[inline(always)]
    fn load_pieces(self, bytes: &[u8], stride: usize) -> __m512i {
        let b = &bytes[..3 * stride + 16];
        // SAFETY: the four pieces are within `b`; the processor has the instructions.
        unsafe {
            let load = |i: usize| _mm_loadu_si128(b.as_ptr().add(i * stride).cast());
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(0)), load(1));
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(2)), load(3));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    fn load_words(self, bytes: &[u8], stride: usize) -> __m512i {
        let b = &bytes[..15 * stride + 4];
        let word = |i: usize| {
            let i = i * stride;
            i32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
        };
        op!(_mm512_setr_epi32(
            word(0),
            word(1),
            word(2),
            word(3),
            word(4),
            word(5),
            word(6),
            word(7),
            word(8),
            word(9),
            word(10),
            word(11),
            word(12),
            word(13),
            word(14),
            word(15),
        ))
    }

    #[inline(always)]
    fn half_f16<const UPPER: bool>(self, x: __m512i) -> __m512 {
        let x = if UPPER { op!(_mm512_srli_epi32::<16>(x)) } else { x };
        op!(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)))
    }

    #[inline(always)]
    fn sixteens_of_four(self, bits: __m512i, four: usize) -> __m512i {
        // Of each lane the byte that has these bits, four times.
        let bytes = op!(_mm512_add_epi8(
            _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c)),
            _mm512_set1_epi8((four / 2) as i8)
        ));
        let bytes = op!(_mm512_shuffle_epi8(bits, bytes));
        let bit = op!(_mm512_set1_epi32(if four % 2 == 1 { 0x8040_2010_u32 as i32 } else { 0x0804_0201 }));
        op!(_mm512_maskz_set1_epi8(_mm512_test_epi8_mask(bytes, bit), 16))
    }

    #[inline(always)]
    fn transpose_fours(self, rows: &mut [__m512i; 4]) {
        let [a, b, c, d] = *rows;
        let [ab, cd] = op!([_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)]);
        (rows[0], rows[1]) = op!((_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)));
        let [ab, cd] = op!([_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)]);
        (rows[2], rows[3]) = op!((_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)));
    }

    #[inline(always)]
    fn pair_f16(self, a: &[u8], b: &[u8], _v: usize) -> __m512 {
        let a = op!(_mm256_set1_epi16(i16::from_le_bytes([a[0], a[1]])));
        let b = op!(_mm256_set1_epi16(i16::from_le_bytes([b[0], b[1]])));
        op!(_mm512_cvtph_ps(_mm256_mask_blend_epi16(0xff00, a, b)))
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512i]) {
        let r: &mut [__m512i; 16] = rows.try_into().expect("16 vectors");
        // First single lanes change places, then pairs of lanes, then quarters of vectors.
        for i in (0..16).step_by(2) {
            let (a, b) = (r[i], r[i + 1]);
            r[i] = op!(_mm512_unpacklo_epi32(a, b));
            r[i + 1] = op!(_mm512_unpackhi_epi32(a, b));
        }
        for i in (0..16).step_by(4) {
            let [a, b, c, d] = [r[i], r[i + 1], r[i + 2], r[i + 3]];
            r[i] = op!(_mm512_unpacklo_epi64(a, c));
            r[i + 1] = op!(_mm512_unpackhi_epi64(a, c));
            r[i + 2] = op!(_mm512_unpacklo_epi64(b, d));
            r[i + 3] = op!(_mm512_unpackhi_epi64(b, d));
        }
        for i in 0..4 {
            let [a, b, c, d] = [r[i], r[i + 4], r[i + 8], r[i + 12]];
            let (ab, cd) = op!((_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)));
            let (ab2, cd2) = op!((_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)));
            r[i] = op!(_mm512_shuffle_i32x4::<0x88>(ab, cd));
            r[i + 4] = op!(_mm512_shuffle_i32x4::<0x88>(ab2, cd2));
            r[i + 8] = op!(_mm512_shuffle_i32x4::<0xdd>(ab, cd));
            r[i + 12] = op!(_mm512_shuffle_i32x4::<0xdd>(ab2, cd2));
        }
    }

    #[inline(always)]
    fn store_f16(self, x: __m512, out: &mut [u8]) {
        let out: &mut [u8; 32] = (&mut out[..32]).try_into().expect("32 bytes");
        // SAFETY: 32 writable bytes; the processor has the instructions.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m512 {
        let x: &[u8; 16] = x[..16].try_into().expect("16 bytes");
        // SAFETY: 16 readable bytes; the processor has the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn scale_bytes(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        let mut out = [0.0f32; 8];
        let x = op!(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)))));
        // SAFETY: 8 writable floats; the processor has the instructions.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(x, _mm256_set1_ps(factor))) };
        out
    }

    #[inline(always)]
    fn decode_nibbles(self, codes: &[u8], d: [f32; 2], m: [f32; 2], low: &mut [f32], high: &mut [f32]) {
        let codes: &[u8; 16] = codes[..16].try_into().expect("16 bytes");
        // SAFETY: 16 readable bytes; the processor has the instructions.
        let x = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast())) };
        let (l, h) = op!((_mm512_and_si512(x, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(x)));
        self.store_f(self.fma(self.to_f(l), self.splat(d[0]), self.splat(m[0])), low);
        self.store_f(self.fma(self.to_f(h), self.splat(d[1]), self.splat(m[1])), high);
    }

    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        op!(_mm_cvtss_f32(_mm_cvtph_ps(super::avx2::lowest_lane(bits))))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> __m512 {
        let x: &[u8; 32] = x[..32].try_into().expect("32 bytes");
        // SAFETY: 32 readable bytes; the processor has the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_f(self, x: &[f32]) -> __m512 {
        let x: &[f32; 16] = x[..16].try_into().expect("16 floats");
        // SAFETY: 16 readable floats; the processor has the instruction.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store_f(self, x: __m512, out: &mut [f32]) {
        let out: &mut [f32; 16] = (&mut out[..16]).try_into().expect("16 floats");
        // SAFETY: 16 writable floats; the processor has the instruction.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn fma_eight(self, a: &[f32], b: &[f32; 8], c: __m512) -> __m512 {
        let a: &[f32; 8] = a[..8].try_into().expect("8 floats");
        // SAFETY: 8 readable floats each; the processor has the instructions.
        unsafe {
            let a = _mm512_zextps256_ps512(_mm256_loadu_ps(a.as_ptr()));
            let b = _mm512_zextps256_ps512(_mm256_loadu_ps(b.as_ptr()));
            _mm512_fmadd_ps(a, b, c)
        }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max_abs(self, a: __m512, x: __m512) -> __m512 {
        // The bits of floats that are not negative, read as integers, have the floats' order, and NaN is above all.
        op!(_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(_mm512_abs_ps(x)))))
    }

    #[inline(always)]
    fn exp2_i(self, n: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)))))
    }

    #[inline(always)]
    fn reduce_max(self, x: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(x))
    }

    #[inline(always)]
    fn compress_codes(self, codes: &[u8; 32], mask: u32, out: &mut [u8]) {
        let out: &mut [u8; 32] = (&mut out[..32]).try_into().expect("32 bytes");
        let n = (mask as u16).count_ones() as usize;
        // SAFETY: `codes` are 32 readable bytes, `out` 32 writable ones of which at most 16 + 16 are written; the processor has
        // the instructions.
        unsafe {
            let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let high = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().add(16).cast()));
            let low = _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(mask as u16, low));
            let high = _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32((mask >> 16) as u16, high));
            _mm_storeu_si128(out.as_mut_ptr().cast(), low);
            _mm_storeu_si128(out.as_mut_ptr().add(n).cast(), high);
        }
    }

    #[inline(always)]
    fn compress(self, x: __m512, mask: u32, out: &mut [f32]) {
        self.store_f(op!(_mm512_maskz_compress_ps(mask as u16, x)), out);
    }

    #[inline(always)]
    fn reduce_sum(self, x: __m512) -> f32 {
        op!(_mm512_reduce_add_ps(x))
    }

    #[inline(always)]
    fn reduce_max_or_nan(self, x: __m512) -> f32 {
        f32::from_bits(op!(_mm512_reduce_max_epi32(_mm512_castps_si512(x))) as u32)
    }
}
