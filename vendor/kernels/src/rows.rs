//! Rows of matrices in the formats of files.

use crate::simd::Simd;

/// How a row's bytes are to be read.
#[derive(Clone, Copy)]
pub enum Format<'a> {
    /// Blocks of 32 in 18 bytes: scale (F16), codes of 4 bits less 8
    Q4_0,
    /// Blocks of 32 in 20 bytes: scale and minimum (F16), codes of 4 bits
    Q4_1,
    /// Super-blocks of 256 in 144 bytes: scale and minimum (F16), eight scales and minima of 6 bits, codes of 4 bits
    Q4K,
    /// Blocks of 32 in 34 bytes: scale (F16), signed codes of 8 bits
    Q8_0,
    /// Anything else, with a function that writes a row's values
    Other(&'a (dyn Fn(&[u8], &mut [f32]) + Sync)),
}

impl std::fmt::Debug for Format<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q4K => "Q4_K",
            Format::Q8_0 => "Q8_0",
            Format::Other(_) => "Other",
        })
    }
}

impl Format<'_> {
    /// Whether rows can be multiplied where they are.
    pub fn is_direct(&self) -> bool {
        !matches!(self, Format::Other(_))
    }
}

/// One row of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The file's bytes
    pub bytes: &'a [u8],
    /// How to read them
    pub format: Format<'a>,
}

/// A 16-bit float, little-endian.
#[inline(always)]
pub(crate) fn half<S: Simd>(s: S, bytes: &[u8]) -> f32 {
    s.half(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Scales and minima (to be added) of the eight blocks of 32 in a super-block of Q4_K.
#[inline(always)]
pub(crate) fn q4_k_scales<S: Simd>(s: S, block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin) = (half(s, &block[..2]), half(s, &block[2..4]));
    let word = |i: usize| u32::from_le_bytes([block[i], block[i + 1], block[i + 2], block[i + 3]]);
    // Twelve bytes: six bits of four scales and of four minima, with the two upper bits of the other four above them; then the
    // lower four bits of both of these.
    let (a, b, c) = (word(4), word(8), word(12));
    let scales = [a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 2 & 0x3030_3030)];
    let minima = [b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | (b >> 2 & 0x3030_3030)];
    let words = |w: [u32; 2]| (u64::from(w[0]) | u64::from(w[1]) << 32).to_le_bytes();
    (s.eight(words(scales), d), s.eight(words(minima), -dmin))
}

impl Row<'_> {
    /// Writes the row's values.
    #[inline(always)]
    pub(crate) fn floats<S: Simd>(&self, s: S, out: &mut [f32]) {
        match self.format {
            Format::Q4_0 => {
                for (b, out) in self.bytes.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
                    let d = half(s, &b[..2]);
                    let (low, high) = out.split_at_mut(16);
                    s.four_bits(&b[2..], [d; 2], [-8.0 * d; 2], low, high);
                }
            }
            Format::Q4_1 => {
                for (b, out) in self.bytes.chunks_exact(20).zip(out.chunks_exact_mut(32)) {
                    let (low, high) = out.split_at_mut(16);
                    s.four_bits(&b[4..], [half(s, &b[..2]); 2], [half(s, &b[2..4]); 2], low, high);
                }
            }
            Format::Q4K => {
                for (b, out) in self.bytes.chunks_exact(144).zip(out.chunks_exact_mut(256)) {
                    let (d, m) = q4_k_scales(s, b);
                    for (j, (codes, out)) in b[16..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
                        let (low, high) = out.split_at_mut(32);
                        let (d, m) = ([d[2 * j], d[2 * j + 1]], [m[2 * j], m[2 * j + 1]]);
                        s.four_bits(codes, d, m, low, high);
                        s.four_bits(&codes[16..], d, m, &mut low[16..], &mut high[16..]);
                    }
                }
            }
            Format::Q8_0 => {
                for (b, out) in self.bytes.chunks_exact(34).zip(out.chunks_exact_mut(32)) {
                    let d = s.splat(half(s, &b[..2]));
                    for (q, x) in b[2..].chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                        s.store_f(s.mul(s.bytes(q), d), x);
                    }
                }
            }
            Format::Other(values) => values(self.bytes, out),
        }
    }
}
