//! From floats to a tensor's bytes.

use llama_cpp_sys_2 as sys;

use crate::types::Type;

/// Whether [`quantize`] can make tensors of this type.
pub fn can_quantize(ty: Type) -> bool {
    // SAFETY: the type is ggml's.
    let needs_importance = unsafe { sys::ggml_quantize_requires_imatrix(ty.raw()) };
    ty.is_quantized() && !needs_importance && ![Type::Q8_1, Type::Q8_K].contains(&ty)
}

/// `values`, rows of `n_per_row`, in the given type: plain floats, or ggml's own quantisation without importance matrix.
///
/// # Panics
/// If the values are not whole rows, or rows not whole blocks, or the type needs an importance matrix.
pub fn quantize(ty: Type, values: &[f32], n_per_row: usize) -> Vec<u8> {
    assert!(n_per_row > 0 && values.len().is_multiple_of(n_per_row), "whole rows");
    let n_rows = values.len() / n_per_row;
    let bytes = ty.row_bytes(n_per_row).expect("whole blocks") * n_rows;
    // SAFETY: the type is ggml's.
    assert!(!unsafe { sys::ggml_quantize_requires_imatrix(ty.raw()) }, "{ty:?} needs an importance matrix");
    if ty == Type::F32 {
        return values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
    let mut out = vec![0u8; bytes];
    let (n_rows, n_per_row) = (n_rows.try_into().expect("fits"), n_per_row.try_into().expect("fits"));
    // SAFETY: the source holds n_rows * n_per_row floats, the target as many rows of the type.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            ty.raw(),
            values.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            n_rows,
            n_per_row,
            std::ptr::null(),
        )
    };
    assert_eq!(written, bytes, "bytes written");
    out
}
