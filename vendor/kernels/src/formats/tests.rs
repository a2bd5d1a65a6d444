//! Every weight type of the list: all products, by all instruction sets, compared with what [`Weight::decode`] writes.
//!
//! Rows are random bytes. A block counts as one that a file might have if its values are of ordinary size.

use fastrand::Rng;

use super::{Block, Format, Row, Weight, with_weight};
use crate::acts::{Acts, token_bytes};
use crate::columns::Columns;
use crate::gemm::{Out, Packed};
use crate::gemv::MAX_GEMV_TOKENS;
use crate::isa::{Isa, Kernel, Simd};

struct Decode<'a> {
    row: Row<'a>,
    n_in: usize,
}

impl Kernel for Decode<'_> {
    type Out = Vec<f32>;

    fn call<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.n_in];
        with_weight!(self.row.format, w => w.decode(s, self.row.bytes, &mut out));
        out
    }
}

/// The values of a row, as the portable code decodes them.
fn decode(row: Row, n_in: usize) -> Vec<f32> {
    Isa::all().pop().expect("portable code").run(Decode { row, n_in })
}

fn block(format: Format) -> Block {
    fn of<W: Weight>(_: W) -> Block {
        W::BLOCK.expect("types of the list have one")
    }
    with_weight!(format, w => of(w))
}

/// A row of ordinary blocks, or for `!finite` one in which at least one value is NaN or infinite.
fn any_row(rng: &mut Rng, format: Format, n_in: usize, finite: bool) -> Vec<u8> {
    let Block { inputs, bytes } = block(format);
    let mut any_block = |accept: &dyn Fn(f32) -> bool| loop {
        let b: Vec<u8> = (0..bytes).map(|_| rng.u8(..)).collect();
        let largest = decode(Row { bytes: &b, format }, inputs).iter().fold(0.0, |a: f32, x| match x.is_finite() {
            true => a.max(x.abs()),
            false => f32::INFINITY,
        });
        if accept(largest) {
            return b;
        }
    };
    let mut row: Vec<Vec<u8>> = (0..n_in / inputs).map(|_| any_block(&|x| (1e-2..1e2).contains(&x))).collect();
    if !finite {
        row[n_in / inputs / 2] = any_block(&|x| x.is_infinite());
    }
    row.concat()
}

fn any_floats(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.f32() + rng.f32() - 1.0).collect()
}

/// A product, and how much the rounding of weights and activations to 8-bit codes, or of scales to 16-bit floats, may change it.
fn dot(w: &[f32], x: &[f32]) -> (f32, f32) {
    let largest = |x: &[f32]| x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let (mut sum, mut bound) = (0.0, 0.0);
    for (w, x) in w.chunks(super::BLOCK).zip(x.chunks(super::BLOCK)) {
        // A panel's step is that of all values which codes might have, not only those of the block: three times the largest at most.
        // Minima may be 30 times as large as values.
        let (w_step, x_step) = (largest(w) * (3.0 / 127.0 * 0.5 + 30.0 * 5e-4), largest(x) / 127.0 * 0.5);
        for (w, x) in w.iter().zip(x) {
            sum += w * x;
            bound += w_step * (x.abs() + x_step) + w.abs() * x_step;
        }
    }
    (sum, bound)
}

struct Results(Vec<Vec<f32>>);

impl Out for Results {
    fn token(&mut self, t: usize) -> &mut [f32] {
        &mut self.0[t]
    }
}

/// Compares results `[row][token]` with products of the decoded rows.
fn check(out: &[Vec<f32>], rows: &[Vec<f32>], tokens: &[Vec<f32>], what: &str) {
    assert_eq!(out.len(), rows.len(), "{what}");
    for (i, (out, w)) in out.iter().zip(rows).enumerate() {
        for (t, (out, x)) in out.iter().zip(tokens).enumerate() {
            let (exact, bound) = dot(w, x);
            let finite = w.iter().all(|w| w.is_finite());
            assert_eq!(out.is_finite(), finite, "{what}, row {i}, token {t}: {out}");
            assert!(!finite || (out - exact).abs() <= bound, "{what}, row {i}, token {t}: {out}, not {exact}");
        }
    }
}

#[test]
fn products_are_those_of_decoded_rows() {
    let mut rng = Rng::with_seed(1);
    for (format, isa) in Format::ALL.iter().flat_map(|f| Isa::all().into_iter().map(move |isa| (*f, isa))) {
        for round in 0..12 {
            let n_in = block(format).inputs * (1 + round % 7);
            let n_rows = rng.usize(1..=isa.panel_rows());
            let bytes: Vec<_> = (0..n_rows).map(|i| any_row(&mut rng, format, n_in, i != 3)).collect();
            let row = |i: usize| Row { bytes: &bytes[i], format };
            let rows: Vec<_> = (0..n_rows).map(|i| decode(row(i), n_in)).collect();
            for (row, bytes) in rows.iter().zip(&bytes) {
                let ours = isa.run(Decode { row: Row { bytes, format }, n_in });
                let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 || !a.is_finite() && !b.is_finite();
                assert!(row.iter().zip(&ours).all(same), "{isa} {format:?}: {row:?} {ours:?}");
            }
            let tokens: Vec<_> = (0..MAX_GEMV_TOKENS).map(|_| any_floats(&mut rng, n_in)).collect();
            let mut acts = vec![0; token_bytes(n_in) * tokens.len()];
            isa.quantize(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>(), format.shares_scales(), &mut acts);
            let acts = Acts::new(&acts, n_in, tokens.len(), format.shares_scales());

            let mut panel = vec![0; isa.panel_bytes(n_in)];
            isa.pack(&row, n_rows, n_in, None, &mut panel);
            let mut by_token = Results(vec![vec![0.0; n_rows]; tokens.len()]);
            let panels = Packed { bytes: &panel, format, is_kept: false };
            isa.gemm(panels, n_rows, acts, &(0..tokens.len()).collect::<Vec<_>>(), &mut by_token);
            let out: Vec<_> = (0..n_rows).map(|i| by_token.0.iter().map(|x| x[i]).collect()).collect();
            check(&out, &rows, &tokens, &format!("gemm {isa} {format:?}"));

            if format.has_gemv() {
                let mut out = Vec::new();
                isa.gemv(&isa.gemv_acts(acts, format), &row, n_rows, &mut |_, x| out.push(x.to_vec()));
                check(&out, &rows, &tokens, &format!("gemv {isa} {format:?}"));
            }

            // Something of each block is kept, as otherwise its scale does not count.
            let kept: Vec<i32> = (0..n_in as i32).filter(|i| i % super::BLOCK as i32 == 7 || rng.bool()).collect();
            let columns = Columns::new(&kept, 1, n_in);
            let layout = isa.column_layout(format, n_rows, &columns);
            let mut tiles = vec![0; layout.n_bytes()];
            isa.reduce_columns(&layout, &row, n_in, &mut tiles);
            let mut x = vec![0.0; n_in];
            kept.iter().for_each(|&i| x[i as usize] = tokens[0][i as usize]);
            let kept_x: Vec<f32> = kept.iter().map(|&i| tokens[0][i as usize]).collect();
            let mut out = vec![0.0; n_rows];
            isa.gemv_columns(&layout, &tiles, &isa.column_acts(&layout, &kept_x), 0, &mut out);
            let out: Vec<_> = out.into_iter().map(|x| vec![x]).collect();
            check(&out, &rows, &[x], &format!("columns {isa} {format:?}"));
        }
    }
}

#[test]
fn names() {
    for format in Format::ALL {
        assert_eq!(Format::from_name(format.name()).map(Format::name), Some(format.name()));
    }
    assert!(Format::from_name("other").is_none() && Format::from_name("F32").is_none());
}
