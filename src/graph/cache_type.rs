//! Element types that a KV cache can have.

use ggml::Type;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    F32,
    F16,
    /// Blocks of 8-bit integers.
    Q8_0,
}

impl CacheType {
    /// The tensors' type.
    pub fn tensor_type(self) -> Type {
        match self {
            CacheType::F32 => Type::F32,
            CacheType::F16 => Type::F16,
            CacheType::Q8_0 => Type::Q8_0,
        }
    }

    /// Name as in flags.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Q8_0 => "q8_0",
        }
    }
}
