//! Element types, and the conversion of rows.

mod common;

use common::*;
use ggml::{Type, can_dequantize, can_quantize, dequantize_row, quantize, quantize_row};

/// Types that rows of floats can be converted to, but for two whose conversion takes most of a minute.
fn of_floats() -> Vec<Type> {
    let plain = |ty| [Type::F32, Type::F16, Type::BF16].contains(&ty);
    let slow = |ty: Type| ["IQ1_M", "IQ2_S"].contains(&&*ty.name());
    all_types().into_iter().filter(|&ty| (plain(ty) || can_quantize(ty)) && !slow(ty)).collect()
}

#[test]
fn types_have_ids_names_and_sizes() {
    assert_eq!(Type::from_id(2), Some(Type::Q4_0));
    assert_eq!(Type::Q4_0.id(), 2);
    assert_eq!(Type::from_id(4), None);
    assert_eq!(Type::removed_name(4), Some("Q4_2"));
    assert_eq!(Type::from_id(u32::MAX), None);
    let names = [Type::F32, Type::BF16, Type::Q4_K, Type::IQ4_XS, Type::IQ4_NL].map(|t| t.name());
    assert_eq!(names, ["F32", "BF16", "Q4_K", "IQ4_XS", "IQ4_NL"]);
    assert_eq!((Type::Q4_0.block_size(), Type::Q4_0.block_bytes()), (32, 18));
    assert_eq!([32, 33, 64].map(|n| Type::Q4_0.row_bytes(n)), [Some(18), None, Some(36)]);
    assert_eq!(Type::F32.row_bytes(usize::MAX / 2), None);
    assert!(Type::Q4_0.is_quantized() && !Type::F16.is_quantized());
}

#[test]
fn values_that_are_not_finite_are_found() {
    for ty in of_floats() {
        let values: Vec<f32> = (0..512).map(|i| (i as f32).sin()).collect();
        assert!(ty.is_finite(&quantize(ty, &values, 512)), "{ty}");
    }
    for (ty, nan) in [(Type::F32, 4), (Type::F16, 2), (Type::BF16, 2)] {
        assert!(!ty.is_finite(&vec![0xff; nan * 3]), "{ty}");
    }
    let mut q8 = quantize(Type::Q8_0, &[1.0; 64], 64);
    q8[34..36].copy_from_slice(&[0, 0x7c]);
    assert!(!Type::Q8_0.is_finite(&q8));
}

#[test]
fn rows_come_back_from_what_they_were_quantised_to() {
    let values: Vec<f32> = (0..512).map(|i| (i as f32 * 0.1).sin()).collect();
    for ty in of_floats() {
        let data = quantize(ty, &values, 256);
        assert_eq!(data.len(), 2 * ty.row_bytes(256).unwrap());
        let mut row = [0.0; 256];
        dequantize_row(ty, &data[data.len() / 2..], &mut row);
        let error: f32 = row.iter().zip(&values[256..]).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / 256.0;
        assert!(error < 0.25, "{ty} {error}");
        if [Type::F32, Type::F16, Type::BF16, Type::Q8_0].contains(&ty) {
            let mut out = vec![0; ty.row_bytes(256).unwrap()];
            quantize_row(ty, &values[..256], &mut out);
            let mut again = [0.0; 256];
            dequantize_row(ty, &out, &mut again);
            assert!(again.iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.01), "{ty}");
        }
    }
}

#[test]
fn conversions_refuse() {
    assert_panics("quantize: 3 values are not whole rows of 2", || ignore(quantize(Type::F32, &[0.0; 3], 2)));
    assert_panics("quantize: 3 values are not whole rows of 0", || ignore(quantize(Type::F32, &[0.0; 3], 0)));
    assert_panics("quantize: 16 values are not whole blocks of Q4_0", || ignore(quantize(Type::Q4_0, &[0.0; 32], 16)));
    assert_panics("quantize: a value is not finite", || ignore(quantize(Type::Q4_0, &[f32::NAN; 32], 32)));
    assert_panics("quantize: a value is not finite", || ignore(quantize(Type::Q4_K, &[f32::INFINITY; 256], 256)));
    for ty in all_types() {
        let plain = [Type::F32, Type::F16, Type::BF16].contains(&ty);
        if !plain && !can_quantize(ty) {
            assert_panics("quantize: to", || ignore(quantize(ty, &[0.0; 256], 256)));
        }
        if !can_dequantize(ty) {
            let row = vec![0; ty.row_bytes(256).unwrap()];
            assert_panics("dequantize_row: from", || dequantize_row(ty, &row, &mut [0.0; 256]));
        }
        if !plain && ty != Type::Q8_0 {
            let mut row = vec![0; ty.row_bytes(256).unwrap()];
            assert_panics("quantize_row: to", || quantize_row(ty, &[0.0; 256], &mut row));
        }
        assert_panics("dequantize_row: bytes", || dequantize_row(ty, &[0; 1], &mut [0.0; 256]));
        assert_panics("quantize_row: bytes", || quantize_row(ty, &[0.0; 256], &mut [0; 1]));
    }
}
