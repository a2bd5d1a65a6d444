//! NEON with dot products: 4 lanes, 32 registers.
//!
//! Instructions without a stable intrinsic are written out. The matrix instructions of `i8mm` are not used: they take two rows
//! of eight weights, which is another layout of panels.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, Simd};

/// A proof that the processor has NEON and its dot products.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// `Some` if the processor has the instructions.
    pub fn detect() -> Option<Neon> {
        use std::arch::is_aarch64_feature_detected as has;
        (has!("neon") && has!("dotprod")).then_some(Neon(()))
    }
}

/// One vector instruction (or a few), whose operands are registers.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` is a proof that the processor has the instruction; it touches no memory.
        unsafe { $e }
    };
}

/// Adds to each lane of `acc` the dot product of four signed bytes of `a` and of `b`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(acc: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    let mut out = acc;
    // SAFETY: one instruction on registers, which the function enables.
    unsafe {
        asm!(
            "sdot {out:v}.4s, {a:v}.16b, {b:v}.16b",
            out = inout(vreg) out,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// For each mask of four lanes the numbers of the bytes of the lanes that are set, then zeros.
const KEPT: [[u8; 16]; 16] = {
    let mut table = [[0; 16]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut n, mut i) = (0, 0);
        while i < 16 {
            if mask >> (i / 4) & 1 == 1 {
                table[mask][n] = i as u8;
                n += 1;
            }
            i += 1;
        }
        mask += 1;
    }
    table
};

impl Neon {
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8]) -> uint8x16_t {
        let bytes: &[u8; 16] = bytes[..16].try_into().expect("16 bytes");
        // SAFETY: 16 readable bytes; the processor has the instruction.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }

    #[inline(always)]
    fn store_all(self, x: uint8x16_t, out: &mut [u8]) {
        let out: &mut [u8; 16] = (&mut out[..16]).try_into().expect("16 bytes");
        // SAFETY: 16 writable bytes; the processor has the instruction.
        unsafe { vst1q_u8(out.as_mut_ptr(), x) }
    }

    /// The lower and the upper nibbles of 16 bytes.
    #[inline(always)]
    fn nibbles(self, bytes: &[u8]) -> [uint8x16_t; 2] {
        let x = self.load_i(bytes);
        op!([vreinterpretq_u8_s32(self.low_nibbles(x)), vreinterpretq_u8_s32(self.high_nibbles(x))])
    }

    /// Converts bytes without sign to floats.
    #[inline(always)]
    fn widen(self, x: uint8x8_t) -> [float32x4_t; 2] {
        let x = op!(vmovl_u8(x));
        let (a, b) = op!((vmovl_u16(vget_low_u16(x)), vmovl_u16(vget_high_u16(x))));
        op!([vcvtq_f32_u32(a), vcvtq_f32_u32(b)])
    }

    /// Converts 16-bit floats.
    #[inline(always)]
    fn convert_f16(self, bits: uint16x4_t) -> float32x4_t {
        let out;
        // SAFETY: one instruction on registers, which `self` is a proof of.
        unsafe {
            asm!(
                "fcvtl {out:v}.4s, {bits:v}.4h",
                out = lateout(vreg) out,
                bits = in(vreg) bits,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const GEMM_TOKENS: usize = 6;
    const GEMV_SUMS: usize = 16;
    const ATTEND_VECS: usize = 4;
    const OFFSET: i32 = 0;
    type I = int32x4_t;
    type F = float32x4_t;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "neon,dotprod")]
        fn enabled<K: Kernel>(s: Neon, kernel: K) -> K::Out {
            kernel.call(s)
        }
        // SAFETY: `self` is a proof that the processor has the instructions.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> int32x4_t {
        op!(vdupq_n_s32(x))
    }

    #[inline(always)]
    fn load_i(self, bytes: &[u8]) -> int32x4_t {
        op!(vreinterpretq_s32_u8(self.load_bytes(bytes)))
    }

    #[inline(always)]
    fn dot(self, acc: int32x4_t, weights: int32x4_t, x: int32x4_t) -> int32x4_t {
        op!(sdot(acc, weights, x))
    }

    #[inline(always)]
    fn add_scaled<const UPPER: bool>(self, acc: int32x4_t, small: int32x4_t, factors: int32x4_t) -> int32x4_t {
        let upper = if UPPER { factors } else { op!(vshlq_n_s32::<16>(factors)) };
        op!(vmlaq_s32(acc, small, vshrq_n_s32::<16>(upper)))
    }

    #[inline(always)]
    fn load_places<const N: usize>(self, bytes: &[u8; N], places: &[u8; 16]) -> float32x4_t {
        let mut all = [0u8; 16];
        all[..N].copy_from_slice(bytes);
        // SAFETY: 16 readable bytes each; the processor has the instructions.
        let x = unsafe { vqtbl1q_u8(vld1q_u8(all.as_ptr()), vld1q_u8(places.as_ptr())) };
        op!(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vget_low_s8(vreinterpretq_s8_u8(x)))))))
    }

    #[inline(always)]
    fn factors_of_fours(self, bytes: &[u8; 16], first: usize) -> int32x4_t {
        op!(vreinterpretq_s32_s16(vdupq_n_s16((bytes[first] as i8).into())))
    }

    #[inline(always)]
    fn add_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        op!(vaddq_s32(a, b))
    }

    #[inline(always)]
    fn as_f(self, x: int32x4_t) -> float32x4_t {
        op!(vreinterpretq_f32_s32(x))
    }

    #[inline(always)]
    fn as_i(self, x: float32x4_t) -> int32x4_t {
        op!(vreinterpretq_s32_f32(x))
    }

    #[inline(always)]
    fn to_f(self, x: int32x4_t) -> float32x4_t {
        op!(vcvtq_f32_s32(x))
    }

    #[inline(always)]
    fn round(self, x: float32x4_t) -> int32x4_t {
        op!(vcvtnq_s32_f32(x))
    }

    #[inline(always)]
    fn store_bytes(self, x: int32x4_t, out: &mut [u8]) {
        let words = op!(vmovn_s32(x));
        let bytes = op!(vmovn_s16(vcombine_s16(words, words)));
        out[..4].copy_from_slice(&op!(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes))).to_le_bytes());
    }

    #[inline(always)]
    fn store_i(self, x: int32x4_t, out: &mut [u8]) {
        self.store_all(op!(vreinterpretq_u8_s32(x)), out);
    }

    #[inline(always)]
    fn add_bytes(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        op!(vreinterpretq_s32_u8(vaddq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))))
    }

    #[inline(always)]
    fn low_nibbles(self, x: int32x4_t) -> int32x4_t {
        op!(vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(15))))
    }

    #[inline(always)]
    fn high_nibbles(self, x: int32x4_t) -> int32x4_t {
        op!(vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(x))))
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, x: int32x4_t) -> int32x4_t {
        let shifted = op!(vshlq_u8(vreinterpretq_u8_s32(x), vdupq_n_s8(-(SHIFT as i8))));
        op!(vreinterpretq_s32_u8(vandq_u8(shifted, vdupq_n_u8(MASK))))
    }

    #[inline(always)]
    fn with_bits<const SHIFT: u32, const MASK: u8>(self, codes: int32x4_t, upper: int32x4_t) -> int32x4_t {
        let upper = op!(vshlq_u8(vreinterpretq_u8_s32(upper), vdupq_n_s8(SHIFT as i8)));
        let bits = op!(vandq_u8(upper, vdupq_n_u8(MASK)));
        op!(vreinterpretq_s32_u8(vorrq_u8(vreinterpretq_u8_s32(codes), bits)))
    }

    #[inline(always)]
    fn look_up_bytes(self, table: &[u8; 16], codes: int32x4_t) -> int32x4_t {
        let table = self.load_bytes(table);
        op!(vreinterpretq_s32_u8(vqtbl1q_u8(table, vreinterpretq_u8_s32(codes))))
    }

    #[inline(always)]
    fn look_up(self, blocks: [&[u8]; 2], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        for i in 0..2 {
            let table = self.load_bytes(&tables[i]);
            let [low, high] = self.nibbles(blocks[i]);
            self.store_all(op!(vqtbl1q_u8(table, low)), &mut out[32 * i..]);
            self.store_all(op!(vqtbl1q_u8(table, high)), &mut out[32 * i + 16..]);
        }
    }

    #[inline(always)]
    fn look_up_interleaved(self, codes: &[u8], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        let (a, b) = (self.load_bytes(&tables[0]), self.load_bytes(&tables[1]));
        for i in [0, 16] {
            let [low, high] = self.nibbles(&codes[i..]);
            self.store_all(op!(vqtbl1q_u8(a, low)), &mut out[i..]);
            self.store_all(op!(vqtbl1q_u8(b, high)), &mut out[32 + i..]);
        }
    }

    #[inline(always)]
    fn unpack_bytes(self, blocks: [&[u8]; 2]) -> [int32x4_t; 4] {
        let [a, b] = blocks;
        [self.load_i(a), self.load_i(&a[16..]), self.load_i(b), self.load_i(&b[16..])]
    }

    #[inline(always)]
    fn load_pieces(self, bytes: &[u8], _stride: usize) -> int32x4_t {
        self.load_i(bytes)
    }

    #[inline(always)]
    fn half_f16<const UPPER: bool>(self, x: int32x4_t) -> float32x4_t {
        let x = op!(vreinterpretq_u32_s32(x));
        self.convert_f16(if UPPER { op!(vshrn_n_u32::<16>(x)) } else { op!(vmovn_u32(x)) })
    }

    #[inline(always)]
    fn sixteens_of_four(self, bits: int32x4_t, four: usize) -> int32x4_t {
        // Of each lane the byte that has these bits, four times.
        let first = op!(vreinterpretq_u8_u64(vcombine_u64(
            vcreate_u64(0x0404_0404_0000_0000),
            vcreate_u64(0x0c0c_0c0c_0808_0808)
        )));
        let byte = op!(vaddq_u8(first, vdupq_n_u8((four / 2) as u8)));
        let bytes = op!(vqtbl1q_u8(vreinterpretq_u8_s32(bits), byte));
        let bit = op!(vreinterpretq_u8_u32(vdupq_n_u32(if four % 2 == 1 { 0x8040_2010 } else { 0x0804_0201 })));
        op!(vreinterpretq_s32_u8(vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8(16))))
    }

    #[inline(always)]
    fn pair_f16(self, a: &[u8], b: &[u8], v: usize) -> float32x4_t {
        let x = if v < 2 { a } else { b };
        self.convert_f16(op!(vdup_n_u16(u16::from_le_bytes([x[0], x[1]]))))
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [int32x4_t]) {
        let r: &mut [int32x4_t; 4] = rows.try_into().expect("4 vectors");
        // First single lanes change places, then halves of vectors.
        let (a, b) = op!((vtrn1q_s32(r[0], r[1]), vtrn2q_s32(r[0], r[1])));
        let (c, d) = op!((vtrn1q_s32(r[2], r[3]), vtrn2q_s32(r[2], r[3])));
        let (a, b) = op!((vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
        let (c, d) = op!((vreinterpretq_s64_s32(c), vreinterpretq_s64_s32(d)));
        r[0] = op!(vreinterpretq_s32_s64(vtrn1q_s64(a, c)));
        r[1] = op!(vreinterpretq_s32_s64(vtrn1q_s64(b, d)));
        r[2] = op!(vreinterpretq_s32_s64(vtrn2q_s64(a, c)));
        r[3] = op!(vreinterpretq_s32_s64(vtrn2q_s64(b, d)));
    }

    #[inline(always)]
    fn transpose_fours(self, rows: &mut [int32x4_t; 4]) {
        self.transpose(rows);
    }

    #[inline(always)]
    fn pairs_of_bits(self, x: int32x4_t, k: usize) -> int32x4_t {
        let word = match k {
            0 => op!(vdupq_laneq_s32::<0>(x)),
            1 => op!(vdupq_laneq_s32::<1>(x)),
            2 => op!(vdupq_laneq_s32::<2>(x)),
            _ => op!(vdupq_laneq_s32::<3>(x)),
        };
        // A shift to the left by less than 0 is one to the right.
        let by = op!(vcombine_s32(vcreate_s32(0xffff_fffe_0000_0000), vcreate_s32(0xffff_fffa_ffff_fffc)));
        op!(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(word), by)))
    }

    #[inline(always)]
    fn store_f16(self, x: float32x4_t, out: &mut [u8]) {
        let bits: uint16x4_t;
        // SAFETY: one instruction on registers, which `self` is a proof of.
        unsafe {
            asm!(
                "fcvtn {bits:v}.4h, {x:v}.4s",
                bits = lateout(vreg) bits,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out[..8].copy_from_slice(&op!(vget_lane_u64::<0>(vreinterpret_u64_u16(bits))).to_le_bytes());
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> float32x4_t {
        let word = u32::from_le_bytes(x[..4].try_into().expect("4 bytes"));
        let words = op!(vget_low_s16(vmovl_s8(vcreate_s8(u64::from(word)))));
        op!(vcvtq_f32_s32(vmovl_s16(words)))
    }

    #[inline(always)]
    fn scale_bytes(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        let mut out = [0.0f32; 8];
        let [a, b] = self.widen(op!(vcreate_u8(u64::from_le_bytes(bytes))));
        self.store_f(self.mul(a, self.splat(factor)), &mut out);
        self.store_f(self.mul(b, self.splat(factor)), &mut out[4..]);
        out
    }

    #[inline(always)]
    fn decode_nibbles(self, codes: &[u8], d: [f32; 2], m: [f32; 2], low: &mut [f32], high: &mut [f32]) {
        let nibbles = self.nibbles(codes);
        for (i, out) in [low, high].into_iter().enumerate() {
            let (d, m) = (self.splat(d[i]), self.splat(m[i]));
            let [a, b] = self.widen(op!(vget_low_u8(nibbles[i])));
            self.store_f(self.fma(a, d, m), out);
            self.store_f(self.fma(b, d, m), &mut out[4..]);
            let [a, b] = self.widen(op!(vget_high_u8(nibbles[i])));
            self.store_f(self.fma(a, d, m), &mut out[8..]);
            self.store_f(self.fma(b, d, m), &mut out[12..]);
        }
    }

    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        op!(vgetq_lane_f32::<0>(self.convert_f16(vdup_n_u16(bits))))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> float32x4_t {
        let x: &[u8; 8] = x[..8].try_into().expect("8 bytes");
        self.convert_f16(op!(vcreate_u16(u64::from_le_bytes(*x))))
    }

    #[inline(always)]
    fn load_f(self, x: &[f32]) -> float32x4_t {
        let x: &[f32; 4] = x[..4].try_into().expect("4 floats");
        // SAFETY: 4 readable floats; the processor has the instruction.
        unsafe { vld1q_f32(x.as_ptr()) }
    }

    #[inline(always)]
    fn store_f(self, x: float32x4_t, out: &mut [f32]) {
        let out: &mut [f32; 4] = (&mut out[..4]).try_into().expect("4 floats");
        // SAFETY: 4 writable floats; the processor has the instruction.
        unsafe { vst1q_f32(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        op!(vdupq_n_f32(x))
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn fma_eight(self, a: &[f32], b: &[f32; 8], c: float32x4_t) -> float32x4_t {
        let c = self.fma(self.load_f(a), self.load_f(b), c);
        self.fma(self.load_f(&a[4..]), self.load_f(&b[4..]), c)
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // The instruction for the maximum makes NaN of NaN on either side.
        op!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcltq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn max_abs(self, a: float32x4_t, x: float32x4_t) -> float32x4_t {
        // The instruction makes NaN of NaN on either side.
        op!(vmaxq_f32(a, vabsq_f32(x)))
    }

    #[inline(always)]
    fn exp2_i(self, n: int32x4_t) -> float32x4_t {
        op!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))))
    }

    #[inline(always)]
    fn reduce_max(self, x: float32x4_t) -> f32 {
        op!(vmaxnmvq_f32(x))
    }

    #[inline(always)]
    fn compress(self, x: float32x4_t, mask: u32, out: &mut [f32]) {
        let lanes = self.load_bytes(&KEPT[(mask & 15) as usize]);
        self.store_f(op!(vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x), lanes))), out);
    }

    #[inline(always)]
    fn reduce_sum(self, x: float32x4_t) -> f32 {
        op!(vaddvq_f32(x))
    }

    #[inline(always)]
    fn reduce_max_or_nan(self, x: float32x4_t) -> f32 {
        op!(vmaxvq_f32(x))
    }
}
