//! Any processor: 8 lanes as arrays, in plain Rust. The compiler chooses the instructions.

use std::array::from_fn;

use super::{Kernel, Simd};

/// No proof is needed: every processor runs this.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    pub fn detect() -> Option<Portable> {
        Some(Portable)
    }
}

/// The 4-bit codes of a block of 32 in 16 bytes: the lower nibbles, then the upper ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let bytes = &bytes[..16];
    from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// The bits of the nearest 16-bit float, ties to even.
#[inline(always)]
fn half_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let size = x.to_bits() & 0x7fff_ffff;
    let half = match size {
        0x7f80_0001.. => 0x7e00,
        // From half-way between the largest 16-bit float and the next power of two on, the nearest is infinity.
        0x477f_f000.. => 0x7c00,
        // From 2^-14 on, the least 16-bit float that is normal, 13 bits of the fraction are cut off. Before that just less than half of
        // the last bit that stays is added, or half of it if that bit is set: so ties go to even.
        0x3880_0000.. => ((size - ((127 - 15) << 23) + 0xfff + (size >> 13 & 1)) >> 13) as u16,
        // Below, 16-bit floats are multiples of 2^-24, and so are the sums with 1/2.
        _ => ((f32::from_bits(size) + 0.5).to_bits() - 0.5f32.to_bits()) as u16,
    };
    sign | half
}

impl Simd for Portable {
    const LANES: usize = 8;
    const GEMM_TOKENS: usize = 2;
    const GEMV_SUMS: usize = 4;
    const ATTEND_VECS: usize = 2;
    const OFFSET: i32 = 0;
    type I = [i32; 8];
    type F = [f32; 8];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.call(self)
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn load_i(self, bytes: &[u8]) -> [i32; 8] {
        let bytes = &bytes[..32];
        from_fn(|i| i32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    }

    #[inline(always)]
    fn dot(self, acc: [i32; 8], weights: [i32; 8], x: [i32; 8]) -> [i32; 8] {
        let mut out = acc;
        for ((out, w), x) in out.iter_mut().zip(weights).zip(x) {
            let product = |shift: u32| (w << shift >> 24) * (x << shift >> 24);
            *out = out.wrapping_add((product(0) + product(8)) + (product(16) + product(24)));
        }
        out
    }

    #[inline(always)]
    fn as_f(self, x: [i32; 8]) -> [f32; 8] {
        x.map(|x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    fn as_i(self, x: [f32; 8]) -> [i32; 8] {
        x.map(|x| x.to_bits() as i32)
    }

    #[inline(always)]
    fn to_f(self, x: [i32; 8]) -> [f32; 8] {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn round(self, x: [f32; 8]) -> [i32; 8] {
        x.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    fn store_bytes(self, x: [i32; 8], out: &mut [u8]) {
        out[..8].copy_from_slice(&x.map(|x| x as u8));
    }

    #[inline(always)]
    fn store_i(self, x: [i32; 8], out: &mut [u8]) {
        for (out, x) in out[..32].chunks_exact_mut(4).zip(x) {
            out.copy_from_slice(&x.to_le_bytes());
        }
    }

    #[inline(always)]
    fn add_i(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn add_bytes(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|i| {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            i32::from_le_bytes(from_fn(|j| a[j].wrapping_add(b[j])))
        })
    }

    #[inline(always)]
    fn low_nibbles(self, x: [i32; 8]) -> [i32; 8] {
        x.map(|x| x & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn high_nibbles(self, x: [i32; 8]) -> [i32; 8] {
        x.map(|x| x >> 4 & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn bits<const SHIFT: u32, const MASK: u8>(self, x: [i32; 8]) -> [i32; 8] {
        x.map(|x| x >> SHIFT & i32::from_le_bytes([MASK; 4]))
    }

    #[inline(always)]
    fn with_bits<const SHIFT: u32, const MASK: u8>(self, codes: [i32; 8], upper: [i32; 8]) -> [i32; 8] {
        // What is shifted from one byte into another is out of the mask, which has no bits below the shift.
        from_fn(|i| codes[i] | upper[i] << SHIFT & i32::from_le_bytes([MASK; 4]))
    }

    #[inline(always)]
    fn look_up_bytes(self, table: &[u8; 16], codes: [i32; 8]) -> [i32; 8] {
        codes.map(|x| i32::from_le_bytes(x.to_le_bytes().map(|code| table[usize::from(code)])))
    }

    #[inline(always)]
    fn look_up(self, blocks: [&[u8]; 2], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        for ((block, table), out) in blocks.into_iter().zip(tables).zip(out[..64].chunks_exact_mut(32)) {
            out.copy_from_slice(&nibbles(block).map(|code| table[usize::from(code)]));
        }
    }

    #[inline(always)]
    fn look_up_interleaved(self, codes: &[u8], tables: &[[u8; 16]; 2], out: &mut [u8]) {
        let (low, high) = out[..64].split_at_mut(32);
        for ((code, low), high) in codes[..32].iter().zip(low).zip(high) {
            *low = tables[0][usize::from(code & 15)];
            *high = tables[1][usize::from(code >> 4)];
        }
    }

    #[inline(always)]
    fn unpack_bytes(self, blocks: [&[u8]; 2]) -> [[i32; 8]; 4] {
        let [a, b] = [self.load_i(blocks[0]), self.load_i(blocks[1])];
        [a, b, a, b]
    }

    #[inline(always)]
    fn pair_f16(self, a: &[u8], b: &[u8], v: usize) -> [f32; 8] {
        [self.f16_at(if v == 0 { a } else { b }); 8]
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [[i32; 8]]) {
        let old: [[i32; 8]; 8] = (&*rows).try_into().expect("8 vectors");
        for (i, row) in rows.iter_mut().enumerate() {
            *row = from_fn(|j| old[j][i]);
        }
    }

    #[inline(always)]
    fn store_f16(self, x: [f32; 8], out: &mut [u8]) {
        for (out, x) in out[..16].chunks_exact_mut(2).zip(x) {
            out.copy_from_slice(&half_bits(x).to_le_bytes());
        }
    }

    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> [f32; 8] {
        let x = &x[..8];
        from_fn(|i| f32::from(x[i] as i8))
    }

    #[inline(always)]
    fn scale_bytes(self, bytes: [u8; 8], factor: f32) -> [f32; 8] {
        bytes.map(|b| f32::from(b) * factor)
    }

    #[inline(always)]
    fn decode_nibbles(self, codes: &[u8], d: [f32; 2], m: [f32; 2], low: &mut [f32], high: &mut [f32]) {
        for ((code, low), high) in codes[..16].iter().zip(&mut low[..16]).zip(&mut high[..16]) {
            *low = d[0] * f32::from(code & 15) + m[0];
            *high = d[1] * f32::from(code >> 4) + m[1];
        }
    }

    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        let sign = u32::from(bits & 0x8000) << 16;
        let size = u32::from(bits & 0x7fff) << 13;
        // The exponent is at its place, but its bias is 15 and not 127.
        let number = f32::from_bits(size) * f32::from_bits((127 + 127 - 15) << 23);
        let size = if size < 0x7c00 << 13 { number.to_bits() } else { size | 0x7f80_0000 };
        f32::from_bits(sign | size)
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> [f32; 8] {
        let x = &x[..16];
        from_fn(|i| self.f16_at(&x[2 * i..]))
    }

    #[inline(always)]
    fn load_f(self, x: &[f32]) -> [f32; 8] {
        x[..8].try_into().expect("8 floats")
    }

    #[inline(always)]
    fn store_f(self, x: [f32; 8], out: &mut [f32]) {
        out[..8].copy_from_slice(&x);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] / b[i])
    }

    /// This rounds twice: without an instruction, rounding once is slow.
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn fma_eight(self, a: &[f32], b: &[f32; 8], c: [f32; 8]) -> [f32; 8] {
        self.fma(self.load_f(a), *b, c)
    }

    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn max_abs(self, a: [f32; 8], x: [f32; 8]) -> [f32; 8] {
        // The bits of floats that are not negative, read as integers, have the floats' order, and NaN is above all.
        from_fn(|i| f32::from_bits(a[i].to_bits().max(x[i].abs().to_bits())))
    }

    #[inline(always)]
    fn exp2_i(self, n: [i32; 8]) -> [f32; 8] {
        n.map(|n| f32::from_bits((n.wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn reduce_max(self, x: [f32; 8]) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn compress(self, x: [f32; 8], mask: u32, out: &mut [f32]) {
        let out = &mut out[..8];
        let mut n = 0;
        for (i, x) in x.into_iter().enumerate() {
            out[n] = x;
            n += (mask >> i & 1) as usize;
        }
    }

    #[inline(always)]
    fn reduce_sum(self, x: [f32; 8]) -> f32 {
        x.into_iter().sum()
    }

    #[inline(always)]
    fn reduce_max_or_nan(self, x: [f32; 8]) -> f32 {
        f32::from_bits(x.into_iter().fold(0, |a, x| a.max(x.to_bits())))
    }
}
