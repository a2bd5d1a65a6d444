//! Products of a token with reduced columns.

use fastrand::Rng;
use kernels::{Columns, Format, Isa, Row};

use crate::common::*;

/// Products of the kept columns of rows with one token's kept inputs, tile by tile.
fn reduced(isa: Isa, format: Format, rows: &[Vec<u8>], n_in: usize, columns: &Columns, x: &[f32]) -> Vec<f32> {
    let row = |i: usize| Row { bytes: &rows[i], format };
    let w = isa.column_layout(format, rows.len(), columns);
    assert_eq!(w.n_out(), rows.len());
    let mut tiles = vec![0u8; w.n_bytes()];
    isa.reduce_columns(&w, &row, n_in, &mut tiles);
    let acts = isa.column_acts(&w, x);
    let mut out = vec![UNTOUCHED; rows.len()];
    let (first, rest) = out.split_at_mut(w.tile_rows().min(rows.len()));
    isa.gemv_columns(&w, &tiles, &acts, 0, first);
    if !rest.is_empty() {
        isa.gemv_columns(&w, &tiles, &acts, w.tile_rows(), rest);
    }
    out
}

#[test]
fn gemv_columns() {
    let mut rng = Rng::with_seed(11);
    for number in 0..300 {
        let format = FORMATS[number % FORMATS.len()];
        let n_in = match format {
            Format::Other(_) => rng.usize(1..300),
            _ => block(format).0 * rng.usize(1..6),
        };
        let share = rng.f32();
        // Whole blocks may be missing.
        let gone = rng.usize(..n_in.div_ceil(32));
        let mut kept: Vec<i32> = (0..n_in).filter(|i| i / 32 != gone && rng.f32() < share).map(|i| i as i32).collect();
        if kept.is_empty() {
            kept.push(rng.usize(..n_in) as i32);
        }
        let columns = Columns::new(&kept, 1, n_in);
        let rows: Vec<Vec<u8>> = (0..rng.usize(1..40)).map(|_| any_row(&mut rng, format, n_in)).collect();
        let size = rng.choice([1.0, 1e-20, 1e20]).unwrap();
        let x = any_floats(&mut rng, kept.len(), size);
        for isa in isas() {
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            for (bytes, out) in rows.iter().zip(out) {
                let expected = reduced_dot(&Row { bytes, format }, n_in, &kept, &x);
                assert!(close(out, expected), "{isa} {format:?} {n_in} {kept:?}: {out} {expected:?}");
            }
        }
    }
}

/// A product of kept inputs, and by how much it may be off as a block's inputs become codes.
fn reduced_dot(row: &Row, n_in: usize, kept: &[i32], x: &[f32]) -> (f64, f64) {
    let all = values(row, n_in);
    let largest = |x: &mut dyn Iterator<Item = f32>| x.fold(0.0f64, |a, x| a.max(f64::from(x.abs())));
    // Scales and minima of super-blocks, and scales of blocks of other types, become 16-bit floats.
    let (of_scales, of_codes) = match row.format {
        Format::Q4K => (5e-4, 0.0),
        Format::Q2K | Format::Q3K | Format::Q5K | Format::Q6K | Format::Iq4Xs | Format::Other(_) => (5e-4, 0.5 / 127.0),
        _ => (0.0, 0.0),
    };
    let (mut sum, mut bound, mut kept_x) = (0.0, 0.0, vec![0.0f32; n_in]);
    kept.iter().zip(x).for_each(|(&i, &x)| kept_x[i as usize] = x);
    for (w, x) in all.chunks(32).zip(kept_x.chunks(32)) {
        let x_step = largest(&mut x.iter().copied()) / 127.0;
        let w_step = largest(&mut w.iter().copied()) * of_codes;
        for (&w, &x) in w.iter().zip(x).filter(|(_, x)| **x != 0.0) {
            let (w, x) = (f64::from(w), f64::from(x));
            sum += w * x;
            bound += w.abs() * x_step * 0.501 + w_step * (x.abs() + x_step);
        }
    }
    (sum, bound + (ROUNDING + of_scales) * magnitude(row.format, row.bytes, &all, &kept_x))
}

#[test]
fn whole_numbers_are_multiplied_exactly() {
    let mut rng = Rng::with_seed(12);
    for format in [Format::Q4_1, Format::Q4K, Format::Q8_0] {
        for n_in in [256, 512] {
            let kept: Vec<i32> = (0..n_in as i32).filter(|i| i % 8 == 5 || rng.bool()).collect();
            let columns = Columns::new(&kept, 1, n_in);
            let rows: Vec<Vec<u8>> = (0..20).map(|_| whole_row(&mut rng, format, n_in)).collect();
            let all = whole_acts(&mut rng, n_in);
            let x: Vec<f32> = kept.iter().map(|&i| all[i as usize]).collect();
            for isa in isas() {
                let out = reduced(isa, format, &rows, n_in, &columns, &x);
                for (bytes, out) in rows.iter().zip(out) {
                    let w = values(&Row { bytes, format }, n_in);
                    let w: Vec<f32> = kept.iter().map(|&i| w[i as usize]).collect();
                    assert_eq!(out, whole_dot(&w, &x), "{isa} {format:?}");
                }
            }
        }
    }
}

#[test]
fn nan_stays() {
    let mut rng = Rng::with_seed(13);
    for format in FORMATS {
        let n_in = 256;
        let kept: Vec<i32> = (0..n_in as i32).filter(|i| i % 3 != 1).collect();
        let columns = Columns::new(&kept, 1, n_in);
        let mut rows: Vec<Vec<u8>> = (0..20).map(|_| any_row(&mut rng, format, n_in)).collect();
        let mut x = any_floats(&mut rng, kept.len(), 1.0);
        for isa in isas() {
            let bad: Vec<u8> = rows[7].clone();
            match format {
                Format::Other(_) => rows[7][..4].copy_from_slice(&f32::NAN.to_le_bytes()),
                Format::Mxfp4 => rows[7][0] = 255,
                _ => rows[7][floats_at(format)[0]..][..2].copy_from_slice(&0x7e01u16.to_le_bytes()),
            }
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            assert!(out.iter().enumerate().all(|(i, x)| x.is_nan() == (i == 7)), "{isa} {format:?} {out:?}");
            rows[7] = bad;
            let good = std::mem::replace(&mut x[5], f32::INFINITY);
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            assert!(out.iter().all(|x| x.is_nan()), "{isa} {format:?} {out:?}");
            x[5] = good;
        }
    }
}

/// Scales of columns are 16-bit floats: rows of very different size, and what is left out, must not make these overflow.
#[test]
fn any_size() {
    let mut rng = Rng::with_seed(14);
    let n_in = 256;
    let kept: Vec<i32> = (0..n_in as i32).filter(|i| i / 32 != 3 && i % 3 != 1).collect();
    let columns = Columns::new(&kept, 1, n_in);
    let x = any_floats(&mut rng, kept.len(), 1.0);
    let check = |format, rows: Vec<Vec<u8>>| {
        for isa in isas() {
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            for (i, (bytes, out)) in rows.iter().zip(out).enumerate() {
                let expected = reduced_dot(&Row { bytes, format }, n_in, &kept, &x);
                assert!(close(out, expected), "{isa} {format:?} row {i}: {out} {expected:?}");
            }
        }
    };
    let mut rng = Rng::with_seed(15);
    let mut rows: Vec<Vec<u8>> = (0..20).map(|_| any_row(&mut rng, Format::Q4K, n_in)).collect();
    // The first row's scale and minimum are the least that there are.
    rows[0][..4].copy_from_slice(&[1, 0, 1, 0]);
    rows[9][..4].copy_from_slice(&[0xff, 0x6b, 0xff, 0x6b]);
    check(Format::Q4K, rows);
    for size in [3e3, 1e8, 1e-8] {
        let floats = (0..20).map(|_| bytes_of(&any_floats(&mut rng, n_in, size))).collect();
        check(Format::Other(&read_floats), floats);
    }
    // A block of which nothing is kept.
    let mut rows: Vec<Vec<u8>> = (0..20).map(|_| any_row(&mut rng, Format::Q4_1, n_in)).collect();
    rows[4][3 * 20..3 * 20 + 2].copy_from_slice(&0x7e01u16.to_le_bytes());
    for isa in isas() {
        let out = reduced(isa, Format::Q4_1, &rows, n_in, &columns, &x);
        assert!(out.iter().all(|x| x.is_finite()), "{isa}: {out:?}");
    }
}
