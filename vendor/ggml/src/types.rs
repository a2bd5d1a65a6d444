//! Element types of tensors.

#![allow(clippy::unnecessary_cast, reason = "C enums are signed on Windows")]

use llama_cpp_sys_2 as sys;
use std::fmt;

/// Element type of a tensor, with ggml's own ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Type(u32);

/// Ids of types that ggml has had and removed, with their names.
const REMOVED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

impl Type {
    /// 32-bit float
    pub const F32: Type = Type(sys::GGML_TYPE_F32 as u32);
    /// 16-bit float
    pub const F16: Type = Type(sys::GGML_TYPE_F16 as u32);
    /// 16-bit float with the exponent of 32-bit floats
    pub const BF16: Type = Type(sys::GGML_TYPE_BF16 as u32);
    /// 4-bit blocks of 32, scale
    pub const Q4_0: Type = Type(sys::GGML_TYPE_Q4_0 as u32);
    /// 4-bit blocks of 32, scale and minimum
    pub const Q4_1: Type = Type(sys::GGML_TYPE_Q4_1 as u32);
    /// 5-bit blocks of 32, scale
    pub const Q5_0: Type = Type(sys::GGML_TYPE_Q5_0 as u32);
    /// 5-bit blocks of 32, scale and minimum
    pub const Q5_1: Type = Type(sys::GGML_TYPE_Q5_1 as u32);
    /// 8-bit blocks of 32, scale
    pub const Q8_0: Type = Type(sys::GGML_TYPE_Q8_0 as u32);
    /// 8-bit blocks of 32 of activations; never in a file
    pub(crate) const Q8_1: Type = Type(sys::GGML_TYPE_Q8_1 as u32);
    /// 8-bit super-blocks of 256 of activations; never in a file
    pub(crate) const Q8_K: Type = Type(sys::GGML_TYPE_Q8_K as u32);
    /// 2-bit super-blocks of 256
    pub const Q2_K: Type = Type(sys::GGML_TYPE_Q2_K as u32);
    /// 3-bit super-blocks of 256
    pub const Q3_K: Type = Type(sys::GGML_TYPE_Q3_K as u32);
    /// 5-bit super-blocks of 256
    pub const Q5_K: Type = Type(sys::GGML_TYPE_Q5_K as u32);
    /// 4-bit codes of a table, blocks of 32
    pub const IQ4_NL: Type = Type(sys::GGML_TYPE_IQ4_NL as u32);
    /// 4-bit codes of a table, super-blocks of 256
    pub const IQ4_XS: Type = Type(sys::GGML_TYPE_IQ4_XS as u32);
    /// 4-bit super-blocks of 256
    pub const Q4_K: Type = Type(sys::GGML_TYPE_Q4_K as u32);
    /// 6-bit super-blocks of 256
    pub const Q6_K: Type = Type(sys::GGML_TYPE_Q6_K as u32);
    /// 32-bit integer
    pub const I32: Type = Type(sys::GGML_TYPE_I32 as u32);
    /// 64-bit integer
    pub const I64: Type = Type(sys::GGML_TYPE_I64 as u32);

    /// The type with this id in a GGUF file; `None` if this ggml has no such type.
    pub fn from_id(id: u32) -> Option<Type> {
        if id >= sys::GGML_TYPE_COUNT as u32 || Type::removed_name(id).is_some() {
            return None;
        }
        let ty = Type(id);
        (ty.block_size() > 0 && ty.block_bytes() > 0).then_some(ty)
    }

    /// Name of a type that ggml has had and removed.
    pub fn removed_name(id: u32) -> Option<&'static str> {
        REMOVED.iter().find(|(i, _)| *i == id).map(|(_, n)| *n)
    }

    /// ggml's id.
    pub fn id(self) -> u32 {
        self.0
    }

    pub(crate) fn raw(self) -> sys::ggml_type {
        self.0 as sys::ggml_type
    }

    /// Name as in GGUF tools: `Q4_K`, `F16`.
    pub fn name(self) -> String {
        // SAFETY: `self.0` is a valid type id (see `from_id`); ggml returns a static, NUL-terminated string.
        let s = unsafe { std::ffi::CStr::from_ptr(sys::ggml_type_name(self.raw())) };
        let s = s.to_string_lossy();
        match &*s {
            "f32" | "f16" | "bf16" | "f64" | "i8" | "i16" | "i32" | "i64" => s.to_uppercase(),
            _ => s
                .replace("iq", "IQ")
                .replace('q', "Q")
                .replace("xxs", "XXS")
                .replace("xs", "XS")
                .replace("_nl", "_NL")
                .replace("_s", "_S")
                .replace("_m", "_M")
                .replace("tQ", "TQ")
                .replace("mxfp", "MXFP")
                .replace("nvfp", "NVFP"),
        }
    }

    /// Elements in one block (1 for plain types).
    pub fn block_size(self) -> usize {
        // SAFETY: `self.0` is below GGML_TYPE_COUNT, so ggml's trait table has an entry for it.
        usize::try_from(unsafe { sys::ggml_blck_size(self.raw()) }).unwrap_or(0)
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        // SAFETY: as in `block_size`.
        unsafe { sys::ggml_type_size(self.raw()) }
    }

    /// Bytes of a row of `ne0` elements; `None` if `ne0` is not a whole number of blocks or the size overflows.
    pub fn row_bytes(self, ne0: usize) -> Option<usize> {
        let (b, s) = (self.block_size(), self.block_bytes());
        ne0.is_multiple_of(b).then(|| (ne0 / b).checked_mul(s))?
    }

    /// Bytes of a contiguous tensor. `None` if it has no elements, if its rows are not whole blocks, or if it is larger than
    /// any memory (64 TiB), so that no sum of the sizes of a graph overflows.
    pub(crate) fn n_bytes(self, ne: [usize; 4]) -> Option<usize> {
        const MOST: u64 = 1 << 46;
        let bytes = ne[1..].iter().try_fold(self.row_bytes(ne[0])?, |bytes, &n| bytes.checked_mul(n))?;
        (bytes > 0 && bytes as u64 <= MOST).then_some(bytes)
    }

    fn cpu_traits(self) -> &'static sys::ggml_type_traits_cpu {
        // SAFETY: the type is ggml's: its traits are static.
        unsafe { sys::ggml_get_type_traits_cpu(self.raw()).as_ref() }.expect("every type has traits")
    }

    /// Whether ggml's CPU kernels convert rows of floats to the type.
    pub(crate) fn takes_floats(self) -> bool {
        // ggml has a conversion to I32 too, which set_rows and cast do not need.
        self != Type::I32 && self.cpu_traits().from_float.is_some()
    }

    /// Whether ggml's CPU kernels multiply rows of this type with rows of the other.
    pub fn multiplies(self, x: Type) -> bool {
        let traits = self.cpu_traits();
        let dot = Type::from_id(traits.vec_dot_type as u32);
        traits.vec_dot.is_some() && (x == Type::F32 || dot == Some(x) || (x == Type::BF16 && dot == Some(Type::F32)))
    }

    /// Whether `data`, whole blocks of this type, holds no NaN and no infinity. (ggml's own check prints what it finds.)
    pub fn is_finite(self, data: &[u8]) -> bool {
        let half = |b: &[u8]| b[1] & 0x7c != 0x7c;
        // Where a block has its scales, as 16-bit floats (ggml-common.h).
        let scales: &[usize] = match self {
            Type::F32 => return data.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
            Type::F16 => return data.chunks_exact(2).all(half),
            Type::BF16 => return data.chunks_exact(2).all(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 != 0x7f80),
            Type::Q4_0 | Type::Q5_0 | Type::Q8_0 | Type::IQ4_NL | Type::IQ4_XS => &[0],
            Type::Q4_1 | Type::Q5_1 | Type::Q4_K | Type::Q5_K => &[0, 2],
            Type::Q2_K => &[80, 82],
            Type::Q3_K => &[108],
            Type::Q6_K => &[208],
            // The rest is rare enough to be decoded.
            _ => {
                let mut values = vec![0.0; self.block_size()];
                return data.chunks_exact(self.block_bytes()).all(|block| {
                    !crate::can_dequantize(self) || {
                        crate::dequantize_row(self, block, &mut values);
                        values.iter().all(|v| v.is_finite())
                    }
                });
            }
        };
        data.chunks_exact(self.block_bytes()).all(|block| scales.iter().all(|&at| half(&block[at..at + 2])))
    }

    /// Whether the type stores blocks with scales.
    pub fn is_quantized(self) -> bool {
        // SAFETY: as in `block_size`.
        unsafe { sys::ggml_is_quantized(self.raw()) }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
