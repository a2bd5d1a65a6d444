//! From floats to a tensor's bytes.

use llama_cpp_sys_2 as sys;

use crate::types::Type;

/// Whether [`quantize`] can make tensors of this type.
pub fn can_quantize(ty: Type) -> bool {
    // SAFETY: the type is ggml's.
    let needs_importance = unsafe { sys::ggml_quantize_requires_imatrix(ty.raw()) };
    ty.is_quantized() && !needs_importance && ![Type::Q8_1, Type::Q8_K].contains(&ty)
}

/// `values`, rows of `n_per_row`, in the given type: plain floats, or what [`can_quantize`] says, as ggml quantises it without
/// an importance matrix.
///
/// # Panics
/// If the values are not whole rows, if rows are not whole blocks, if the type is another, or if a value that is to be
/// quantised is not finite.
pub fn quantize(ty: Type, values: &[f32], n_per_row: usize) -> Vec<u8> {
    assert!(
        n_per_row > 0 && values.len().is_multiple_of(n_per_row),
        "quantize: {} values are not whole rows of {n_per_row}",
        values.len()
    );
    let n_rows = values.len() / n_per_row;
    let row = ty.row_bytes(n_per_row);
    let bytes = n_rows * row.unwrap_or_else(|| panic!("quantize: {n_per_row} values are not whole blocks of {ty:?}"));
    let plain = [Type::F32, Type::F16, Type::BF16].contains(&ty);
    assert!(plain || can_quantize(ty), "quantize: to {ty:?}");
    assert!(plain || values.iter().all(|v| v.is_finite()), "quantize: a value is not finite");
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
    assert_eq!(written, bytes, "quantize: bytes written");
    out
}

/// Whether [`dequantize_row`] can read tensors of this type: plain floats and all weights, not integers.
pub fn can_dequantize(ty: Type) -> bool {
    // SAFETY: the type is ggml's: its traits are static.
    let traits = unsafe { sys::ggml_get_type_traits(ty.raw()).as_ref() };
    ty == Type::F32 || traits.is_some_and(|t| t.to_float.is_some())
}

/// The values of one row of a tensor.
///
/// # Panics
/// If `row` is not the bytes of `out.len()` values of the type, or the type has no values.
pub fn dequantize_row(ty: Type, row: &[u8], out: &mut [f32]) {
    assert_eq!(ty.row_bytes(out.len()), Some(row.len()), "dequantize_row: bytes of a row");
    assert!(can_dequantize(ty), "dequantize_row: from {ty:?}");
    if ty == Type::F32 {
        for (out, bytes) in out.iter_mut().zip(row.chunks_exact(4)) {
            *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        return;
    }
    let n = i64::try_from(out.len()).expect("rows are short");
    // SAFETY: the type is ggml's: its traits are static.
    let traits = unsafe { sys::ggml_get_type_traits(ty.raw()).as_ref() }.expect("every type has traits");
    let to_float = traits.to_float.expect("a type of weights");
    // SAFETY: the source is a row of n values of the type, the target has room for n floats.
    unsafe { to_float(row.as_ptr().cast(), out.as_mut_ptr(), n) };
}

/// Writes one row of values as a row of a type of plain floats or of Q8_0.
///
/// # Panics
/// If `out` is not of the size of a row, or the type is another.
pub fn quantize_row(ty: Type, values: &[f32], out: &mut [u8]) {
    assert_eq!(ty.row_bytes(values.len()), Some(out.len()), "quantize_row: bytes of a row");
    assert!([Type::F32, Type::F16, Type::BF16, Type::Q8_0].contains(&ty), "quantize_row: to {ty:?}");
    if ty == Type::F32 {
        for (out, v) in out.chunks_exact_mut(4).zip(values) {
            out.copy_from_slice(&v.to_le_bytes());
        }
        return;
    }
    let n = i64::try_from(values.len()).expect("rows are short");
    // SAFETY: the type is ggml's: its traits are static.
    let traits = unsafe { sys::ggml_get_type_traits_cpu(ty.raw()).as_ref() }.expect("every type has traits");
    let from_float = traits.from_float.expect("one of the types above");
    // SAFETY: the source has n floats, the target is a row of n values of the type.
    unsafe { from_float(values.as_ptr(), out.as_mut_ptr().cast(), n) };
}
