//! A line of the tensor table.

use ggml::Type;

/// A tensor as the file describes it; type, shape, size and position have been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Name, at most 63 bytes.
    pub name: String,
    /// Element type.
    pub ty: Type,
    /// Number of dimensions in the file, 1 to 4.
    pub n_dims: u32,
    /// Shape; unused dimensions are 1.
    pub ne: [u64; 4],
    /// Which of the model's files it is in.
    pub part: usize,
    /// Bytes from the start of the file's data section.
    pub offset: u64,
    /// Size in bytes.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        self.ne.iter().product()
    }
}
