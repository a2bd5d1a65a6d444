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
    /// 8-bit blocks of 32, scale
    pub const Q8_0: Type = Type(sys::GGML_TYPE_Q8_0 as u32);
    /// 8-bit blocks of 32 of activations; never in a file
    pub(crate) const Q8_1: Type = Type(sys::GGML_TYPE_Q8_1 as u32);
    /// 8-bit super-blocks of 256 of activations; never in a file
    pub(crate) const Q8_K: Type = Type(sys::GGML_TYPE_Q8_K as u32);
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

    /// Whether `data`, whole rows of this type, holds no NaN and no infinity.
    pub fn validate(self, data: &[u8]) -> bool {
        // SAFETY: the pointer and the length are of one slice; ggml checks that it is whole blocks.
        unsafe { sys::ggml_validate_row_data(self.raw(), data.as_ptr().cast(), data.len()) }
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
