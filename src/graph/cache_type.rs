//! Element types of a KV cache.

use ggml::Type;

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    /// 32-bit floats
    F32,
    /// 16-bit floats (the default)
    F16,
    /// 16-bit floats with the exponent of 32-bit ones
    BF16,
    /// 8-bit blocks
    Q8_0,
    /// 5-bit blocks, with a least value
    Q5_1,
    /// 5-bit blocks
    Q5_0,
    /// 4-bit blocks, with a least value
    Q4_1,
    /// 4-bit blocks of numbers that lie closer near 0
    Iq4Nl,
    /// 4-bit blocks
    Q4_0,
}

impl CacheType {
    /// All of them.
    pub const ALL: [CacheType; 9] = [
        CacheType::F32,
        CacheType::F16,
        CacheType::BF16,
        CacheType::Q8_0,
        CacheType::Q5_1,
        CacheType::Q5_0,
        CacheType::Q4_1,
        CacheType::Iq4Nl,
        CacheType::Q4_0,
    ];

    /// The tensors' type.
    pub fn tensor_type(self) -> Type {
        match self {
            CacheType::F32 => Type::F32,
            CacheType::F16 => Type::F16,
            CacheType::BF16 => Type::BF16,
            CacheType::Q8_0 => Type::Q8_0,
            CacheType::Q5_1 => Type::Q5_1,
            CacheType::Q5_0 => Type::Q5_0,
            CacheType::Q4_1 => Type::Q4_1,
            CacheType::Iq4Nl => Type::IQ4_NL,
            CacheType::Q4_0 => Type::Q4_0,
        }
    }

    /// Whether elements are in blocks with a scale.
    pub fn is_quantized(self) -> bool {
        self.tensor_type().is_quantized()
    }

    /// Name as in flags.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::BF16 => "bf16",
            CacheType::Q8_0 => "q8_0",
            CacheType::Q5_1 => "q5_1",
            CacheType::Q5_0 => "q5_0",
            CacheType::Q4_1 => "q4_1",
            CacheType::Iq4Nl => "iq4_nl",
            CacheType::Q4_0 => "q4_0",
        }
    }
}
