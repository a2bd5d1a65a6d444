//! What the operations of a graph refuse, and that ggml computes all that they accept.

mod common;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use ggml::{Builder, Division, Executor, Graph, Op, Parts, Rope, Source, Tensor, Type};

const ROPE: Rope = Rope {
    n_dims: 8,
    neox: false,
    n_ctx_orig: 64,
    freq_base: 10000.0,
    freq_scale: 1.0,
    ext_factor: 0.0,
    attn_factor: 1.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
};

struct Nothing;

impl Op for Nothing {
    fn compute(&self, _: &[Source], _: &mut Parts) {}
}

/// Divides its result into parts of so many columns.
struct Columns(usize);

impl Op for Columns {
    fn division(&self, _: [usize; 4]) -> Division {
        Division { rows: 1, columns: self.0 }
    }

    fn compute(&self, _: &[Source], _: &mut Parts) {}
}

/// `[m, n]` whose elements along the first dimension are not neighbours.
fn transposed<'g>(b: &Builder<'g>, ty: Type, [m, n]: [usize; 2]) -> Tensor<'g> {
    b.permute(input(b, ty, [n, m, 1, 1]), [1, 0, 2, 3])
}

#[test]
fn builder_refuses() {
    const HUGE: usize = 1 << 40;
    assert_violations(&[
        ("input x: shape", |b| ignore(input(b, Type::Q4_0, [33, 1, 1, 1]))),
        ("input x: shape", |b| ignore(f32s(b, [4, 0, 1, 1]))),
        ("input x: shape", |b| ignore(f32s(b, [0, 1, 1, 1]))),
        ("input x: shape", |b| ignore(f32s(b, [HUGE, HUGE, HUGE, HUGE]))),
        ("input x: shape", |b| ignore(f32s(b, [usize::MAX, 1, 1, 1]))),
        ("name: a NUL", |b| b.name(f32s(b, [1, 1, 1, 1]), "a\0b")),
        ("more tensors than it was made for", |b| (0..65).for_each(|_| ignore(f32s(b, [1, 1, 1, 1])))),
    ]);
    assert_panics("a graph of 9999999 tensors", || ignore(Graph::build(9_999_999, |_| ())));
}

#[test]
fn leaf_refuses() {
    let (store, ids) = zeros(&[(Type::F32, [1, 1, 1, 1]); 3]);
    let (other, _) = zeros(&[(Type::F32, [1, 1, 1, 1]); 3]);
    assert_panics("leaf: the tensor is of another store", || {
        ignore(Graph::build(8, |b| ignore(b.leaf(&other, ids[0]))))
    });
    assert_panics("leaf: the graph has more tensors of stores", || {
        Graph::build(2, |b| ids.iter().for_each(|&id| ignore(b.leaf(&store, id))));
    });
    // The same tensor again takes no room.
    Graph::build(1, |b| (0..9).for_each(|_| ignore(b.leaf(&store, ids[0]))));
}

#[test]
fn get_rows_refuses() {
    assert_violations(&[
        ("get_rows: ids", |b| ignore(b.get_rows(f32s(b, [4, 4, 1, 1]), f32s(b, [2, 1, 1, 1])))),
        ("get_rows: ids", |b| ignore(b.get_rows(f32s(b, [4, 4, 1, 1]), input(b, Type::I64, [2, 1, 1, 1])))),
        ("get_rows: ids", |b| ignore(b.get_rows(f32s(b, [4, 4, 1, 1]), input(b, Type::I32, [2, 2, 1, 1])))),
        ("get_rows: ids", |b| ignore(b.get_rows(f32s(b, [4, 4, 2, 1]), input(b, Type::I32, [2, 1, 1, 1])))),
        ("get_rows: of", |b| ignore(b.get_rows(f32s(b, [4, 4, 1, 2]), input(b, Type::I32, [2, 1, 1, 1])))),
        ("get_rows: of", |b| ignore(b.get_rows(transposed(b, Type::F32, [4, 3]), input(b, Type::I32, [2, 1, 1, 1])))),
        ("get_rows: type I64", |b| {
            ignore(b.get_rows(input(b, Type::I64, [4, 4, 1, 1]), input(b, Type::I32, [2, 1, 1, 1])))
        }),
        ("get_rows: result", |b| {
            ignore(b.get_rows(f32s(b, [1 << 30, 4, 1, 1]), input(b, Type::I32, [1 << 30, 1, 1, 1])))
        }),
    ]);
}

#[test]
fn mul_mat_refuses() {
    assert_violations(&[
        ("mul_mat: shapes", |b| ignore(b.mul_mat(f32s(b, [4, 4, 1, 1]), f32s(b, [5, 4, 1, 1])))),
        ("mul_mat: shapes", |b| ignore(b.mul_mat(f32s(b, [4, 4, 2, 1]), f32s(b, [4, 4, 3, 1])))),
        ("mul_mat: shapes", |b| ignore(b.mul_mat(f32s(b, [4, 4, 1, 2]), f32s(b, [4, 4, 1, 1])))),
        ("mul_mat: types", |b| ignore(b.mul_mat(input(b, Type::I32, [4, 4, 1, 1]), f32s(b, [4, 4, 1, 1])))),
        ("mul_mat: types", |b| ignore(b.mul_mat(f32s(b, [4, 4, 1, 1]), input(b, Type::F16, [4, 4, 1, 1])))),
        ("mul_mat: types", |b| {
            ignore(b.mul_mat(input(b, Type::Q4_0, [32, 4, 1, 1]), input(b, Type::Q4_0, [32, 4, 1, 1])))
        }),
        ("mul_mat: the rows", |b| ignore(b.mul_mat(transposed(b, Type::F32, [4, 3]), f32s(b, [4, 4, 1, 1])))),
        ("mul_mat: the rows", |b| ignore(b.mul_mat(f32s(b, [4, 4, 1, 1]), transposed(b, Type::F32, [4, 3])))),
        ("mul_mat: result", |b| ignore(b.mul_mat(f32s(b, [1, 1 << 30, 1, 1]), f32s(b, [1, 1 << 30, 1, 1])))),
        ("mul_mat_id: shapes", |b| {
            ignore(b.mul_mat_id(f32s(b, [4, 3, 5, 1]), f32s(b, [4, 3, 7, 1]), input(b, Type::I32, [2, 7, 1, 1])))
        }),
        ("mul_mat_id: shapes", |b| {
            ignore(b.mul_mat_id(f32s(b, [4, 3, 5, 1]), f32s(b, [4, 1, 6, 1]), input(b, Type::I32, [2, 7, 1, 1])))
        }),
        ("mul_mat_id: shapes", |b| {
            ignore(b.mul_mat_id(f32s(b, [4, 3, 5, 1]), f32s(b, [5, 1, 7, 1]), input(b, Type::I32, [2, 7, 1, 1])))
        }),
        ("mul_mat_id: types", |b| {
            ignore(b.mul_mat_id(f32s(b, [4, 3, 5, 1]), f32s(b, [4, 1, 7, 1]), f32s(b, [2, 7, 1, 1])))
        }),
        ("mul_mat_id: a tensor", |b| {
            let x = b.permute(f32s(b, [4, 7, 2, 1]), [0, 2, 1, 3]);
            ignore(b.mul_mat_id(f32s(b, [4, 3, 5, 1]), x, input(b, Type::I32, [2, 7, 1, 1])))
        }),
        ("mul_mat_hadamard: matrix", |b| ignore(b.mul_mat_hadamard(f32s(b, [12, 1, 1, 1]), f32s(b, [6, 6, 1, 1])))),
        ("mul_mat_hadamard: matrix", |b| ignore(b.mul_mat_hadamard(f32s(b, [8, 1, 1, 1]), f32s(b, [8, 4, 1, 1])))),
        ("mul_mat_hadamard: [12", |b| ignore(b.mul_mat_hadamard(f32s(b, [12, 1, 1, 1]), f32s(b, [8, 8, 1, 1])))),
        ("mul_mat_hadamard: types", |b| {
            ignore(b.mul_mat_hadamard(input(b, Type::F16, [8, 1, 1, 1]), f32s(b, [8, 8, 1, 1])))
        }),
    ]);
}

#[test]
fn elementwise_operations_refuse() {
    assert_violations(&[
        ("add: [3", |b| ignore(b.add(f32s(b, [4, 4, 1, 1]), f32s(b, [3, 4, 1, 1])))),
        ("mul: [4, 4, 2", |b| ignore(b.mul(f32s(b, [4, 4, 1, 1]), f32s(b, [4, 4, 2, 1])))),
        ("add: types", |b| ignore(b.add(f32s(b, [4, 4, 1, 1]), input(b, Type::F16, [4, 4, 1, 1])))),
        ("add: types", |b| ignore(b.add(input(b, Type::Q4_0, [32, 4, 1, 1]), f32s(b, [32, 4, 1, 1])))),
        ("mul: types", |b| ignore(b.mul(input(b, Type::I32, [4, 4, 1, 1]), f32s(b, [4, 4, 1, 1])))),
        ("mul: types", |b| ignore(b.mul(input(b, Type::F16, [4, 4, 1, 1]), input(b, Type::BF16, [4, 4, 1, 1])))),
        ("add: the rows", |b| ignore(b.add(transposed(b, Type::F32, [4, 3]), f32s(b, [4, 3, 1, 1])))),
        ("mul: the rows", |b| ignore(b.mul(transposed(b, Type::F32, [4, 3]), f32s(b, [4, 3, 1, 1])))),
        ("rms_norm: eps", |b| ignore(b.rms_norm(f32s(b, [4, 1, 1, 1]), -1.0))),
        ("rms_norm: eps", |b| ignore(b.rms_norm(f32s(b, [4, 1, 1, 1]), f32::NAN))),
        ("rms_norm: type F16", |b| ignore(b.rms_norm(input(b, Type::F16, [4, 1, 1, 1]), 1e-5))),
        ("rms_norm: the rows", |b| ignore(b.rms_norm(transposed(b, Type::F32, [4, 3]), 1e-5))),
        ("swiglu: shapes", |b| ignore(b.swiglu(f32s(b, [4, 4, 1, 1]), f32s(b, [4, 3, 1, 1])))),
        ("swiglu: types", |b| ignore(b.swiglu(f32s(b, [4, 1, 1, 1]), input(b, Type::F16, [4, 1, 1, 1])))),
        ("swiglu: types", |b| ignore(b.swiglu(input(b, Type::I32, [4, 1, 1, 1]), input(b, Type::I32, [4, 1, 1, 1])))),
        ("swiglu: the rows", |b| ignore(b.swiglu(transposed(b, Type::F32, [4, 3]), f32s(b, [4, 3, 1, 1])))),
        ("swiglu: the rows", |b| ignore(b.swiglu(f32s(b, [4, 3, 1, 1]), transposed(b, Type::F32, [4, 3])))),
        ("geglu: shapes", |b| ignore(b.geglu(f32s(b, [4, 4, 1, 1]), f32s(b, [4, 3, 1, 1])))),
        ("layer_norm: eps", |b| ignore(b.layer_norm(f32s(b, [4, 1, 1, 1]), f32::NAN))),
        ("layer_norm: type F16", |b| ignore(b.layer_norm(input(b, Type::F16, [4, 1, 1, 1]), 1e-5))),
        ("layer_norm: the rows", |b| ignore(b.layer_norm(transposed(b, Type::F32, [4, 3]), 1e-5))),
        ("scale: type F16", |b| ignore(b.scale(input(b, Type::F16, [4, 1, 1, 1]), 2.0))),
        ("scale: the tensor", |b| ignore(b.scale(transposed(b, Type::F32, [4, 3]), 2.0))),
        ("tanh: type I32", |b| ignore(b.tanh(input(b, Type::I32, [4, 1, 1, 1])))),
        ("relu: the tensor", |b| ignore(b.relu(transposed(b, Type::F32, [4, 3])))),
        ("sub: [3", |b| ignore(b.sub(f32s(b, [4, 4, 1, 1]), f32s(b, [3, 4, 1, 1])))),
        ("div: types", |b| ignore(b.div(f32s(b, [4, 4, 1, 1]), input(b, Type::F16, [4, 4, 1, 1])))),
        ("scale_and_shift: the tensor", |b| ignore(b.scale_and_shift(transposed(b, Type::F32, [4, 3]), 2.0, 1.0))),
        ("sqr: type F16", |b| ignore(b.sqr(input(b, Type::F16, [4, 1, 1, 1])))),
        ("sqrt: the tensor", |b| ignore(b.sqrt(transposed(b, Type::F32, [4, 3])))),
        ("sum_rows: the tensor", |b| ignore(b.sum_rows(transposed(b, Type::F32, [4, 3])))),
        ("argsort: type I32", |b| ignore(b.argsort(input(b, Type::I32, [4, 1, 1, 1]), true))),
        ("zeros: shape", |b| ignore(b.zeros([4, 0, 1, 1]))),
        ("arange: 0", |b| ignore(b.arange(0))),
    ]);
}

#[test]
fn rope_refuses() {
    fn rope(b: &Builder, ty: Type, ne: [usize; 4], pos: (Type, [usize; 4]), factors: Option<(Type, usize)>, r: &Rope) {
        let factors = factors.map(|(ty, n)| input(b, ty, [n, 1, 1, 1]));
        b.rope(input(b, ty, ne), input(b, pos.0, pos.1), factors, r);
    }
    const NE: [usize; 4] = [8, 2, 3, 1];
    const POS: (Type, [usize; 4]) = (Type::I32, [3, 1, 1, 1]);
    assert_violations(&[
        ("rope: positions", |b| rope(b, Type::F32, NE, (Type::I64, POS.1), None, &ROPE)),
        ("rope: positions", |b| rope(b, Type::F32, NE, (Type::I32, [4, 1, 1, 1]), None, &ROPE)),
        ("rope: positions", |b| rope(b, Type::F32, NE, (Type::I32, [3, 4, 1, 1]), None, &ROPE)),
        ("rope: positions", |b| {
            let pos = b.view(input(b, Type::I32, [6, 3, 1, 1]), [1, 3, 1, 1], [24, 72, 72], 0);
            b.rope(f32s(b, NE), b.permute(pos, [1, 0, 2, 3]), None, &ROPE);
        }),
        ("rope: 10 dimensions", |b| rope(b, Type::F32, NE, POS, None, &Rope { n_dims: 10, ..ROPE })),
        ("rope: 7 dimensions", |b| rope(b, Type::F32, NE, POS, None, &Rope { n_dims: 7, ..ROPE })),
        ("rope: 0 dimensions", |b| rope(b, Type::F32, NE, POS, None, &Rope { n_dims: 0, ..ROPE })),
        ("rope: heads", |b| rope(b, Type::F32, [9, 2, 3, 1], POS, None, &ROPE)),
        ("rope: heads", |b| {
            let t = b.permute(f32s(b, [2, 8, 3, 1]), [1, 0, 2, 3]);
            b.rope(t, input(b, POS.0, POS.1), None, &ROPE);
        }),
        ("rope: type BF16", |b| rope(b, Type::BF16, NE, POS, None, &ROPE)),
        ("rope: factors", |b| rope(b, Type::F32, NE, POS, Some((Type::F16, 4)), &ROPE)),
        ("rope: factors", |b| rope(b, Type::F32, NE, POS, Some((Type::F32, 3)), &ROPE)),
        // Half of a head is rotated, but ggml reads the factors of all of it.
        ("rope: factors", |b| rope(b, Type::F32, NE, POS, Some((Type::F32, 2)), &Rope { n_dims: 4, ..ROPE })),
    ]);
}

#[test]
fn operations_in_place_refuse() {
    assert_violations(&[
        ("reshape: [4, 4", |b| ignore(b.reshape(f32s(b, [4, 4, 1, 1]), [4, 5, 1, 1]))),
        ("reshape: [4, 4", |b| ignore(b.reshape(f32s(b, [4, 4, 1, 1]), [1 << 33, 1 << 33, 1 << 2, 0]))),
        ("reshape: the tensor", |b| ignore(b.reshape(transposed(b, Type::F32, [4, 3]), [12, 1, 1, 1]))),
        ("reshape: [32, 4", |b| ignore(b.reshape(input(b, Type::Q4_0, [32, 4, 1, 1]), [16, 8, 1, 1]))),
        ("reinterpret: F32", |b| ignore(b.reinterpret(f32s(b, [4, 4, 1, 1]), Type::I32, [4, 5, 1, 1]))),
        ("reinterpret: Q4_0", |b| {
            ignore(b.reinterpret(input(b, Type::Q4_0, [32, 1, 1, 1]), Type::I32, [4, 1, 1, 1]));
        }),
        ("reinterpret: the tensor", |b| {
            ignore(b.reinterpret(transposed(b, Type::F32, [4, 3]), Type::I32, [4, 3, 1, 1]))
        }),
        ("permute: axes", |b| ignore(b.permute(f32s(b, [4, 4, 1, 1]), [0, 0, 1, 2]))),
        ("permute: axes", |b| ignore(b.permute(f32s(b, [4, 4, 1, 1]), [0, 1, 2, 4]))),
        ("permute: blocks", |b| ignore(b.permute(input(b, Type::Q8_0, [32, 32, 1, 1]), [1, 0, 2, 3]))),
        ("cont: [4, 4", |b| ignore(b.cont(f32s(b, [4, 4, 1, 1]), [4, 5, 1, 1]))),
        ("cont: [32, 4", |b| ignore(b.cont(input(b, Type::Q4_0, [32, 4, 1, 1]), [16, 8, 1, 1]))),
        ("cont: [4, 4", |b| ignore(b.cont(f32s(b, [4, 4, 1, 1]), [usize::MAX, 1, 1, 1]))),
        ("view: shape", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 0, 1, 1], [16, 64, 64], 0))),
        ("view: shape", |b| ignore(b.view(input(b, Type::Q4_0, [64, 4, 1, 1]), [16, 1, 1, 1], [36, 36, 36], 0))),
        ("is beyond", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 5, 1, 1], [16, 64, 64], 0))),
        ("is beyond", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 4, 1, 1], [16, 64, 64], 4))),
        ("is beyond", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 2, 1, 1], [usize::MAX - 3, 64, 64], 0))),
        ("is beyond", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 3, 1, 1], [1 << 63, 64, 64], 0))),
        ("is beyond", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 1, 1, 1], [16, 64, 64], usize::MAX - 3))),
        ("cuts blocks", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [2, 1, 1, 1], [16, 64, 64], 2))),
        ("cuts blocks", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [2, 2, 1, 1], [10, 64, 64], 0))),
        ("cuts blocks", |b| ignore(b.view(input(b, Type::Q4_0, [64, 4, 1, 1]), [32, 1, 1, 1], [36, 36, 36], 9))),
        // One row read again and again is no more than a row of memory, but ggml counts its elements.
        ("view: [4, 8", |b| ignore(b.view(f32s(b, [4, 4, 1, 1]), [4, 8, 1, 1], [0, 0, 0], 0))),
    ]);
}

#[test]
fn cast_refuses() {
    assert_violations(&[
        ("cast: [33", |b| ignore(b.cast(f32s(b, [33, 1, 1, 1]), Type::Q8_0))),
        ("cast: from F32 to I64", |b| ignore(b.cast(f32s(b, [32, 1, 1, 1]), Type::I64))),
        ("cast: from I32 to F16", |b| ignore(b.cast(input(b, Type::I32, [32, 1, 1, 1]), Type::F16))),
        ("cast: from Q8_0 to F16", |b| ignore(b.cast(input(b, Type::Q8_0, [32, 1, 1, 1]), Type::F16))),
        ("cast: from Q8_0 to Q4_0", |b| ignore(b.cast(input(b, Type::Q8_0, [32, 1, 1, 1]), Type::Q4_0))),
        ("cast: the rows", |b| ignore(b.cast(transposed(b, Type::F32, [32, 3]), Type::Q8_0))),
    ]);
}

#[test]
fn set_rows_refuses() {
    fn set(b: &Builder, a: (Type, [usize; 4]), rows: (Type, [usize; 4]), ids: (Type, [usize; 4])) {
        b.set_rows(input(b, a.0, a.1), input(b, rows.0, rows.1), input(b, ids.0, ids.1));
    }
    const A: (Type, [usize; 4]) = (Type::F32, [4, 8, 2, 1]);
    const ROWS: (Type, [usize; 4]) = (Type::F32, [4, 3, 2, 1]);
    const IDS: (Type, [usize; 4]) = (Type::I64, [3, 1, 1, 1]);
    assert_violations(&[
        ("set_rows: shapes", |b| set(b, A, (Type::F32, [5, 3, 2, 1]), IDS)),
        ("set_rows: shapes", |b| set(b, A, (Type::F32, [4, 3, 1, 1]), IDS)),
        ("set_rows: shapes", |b| set(b, (Type::F32, [4, 8, 2, 2]), (Type::F32, [4, 3, 2, 2]), IDS)),
        ("set_rows: rows of F16", |b| set(b, A, (Type::F16, ROWS.1), IDS)),
        ("set_rows: ids", |b| set(b, A, ROWS, (Type::F32, IDS.1))),
        ("set_rows: ids", |b| set(b, A, ROWS, (Type::I64, [4, 1, 1, 1]))),
        ("set_rows: ids", |b| set(b, A, ROWS, (Type::I64, [3, 2, 1, 1]))),
        ("set_rows: type I32", |b| set(b, (Type::I32, A.1), ROWS, IDS)),
        ("set_rows: type I64", |b| set(b, (Type::I64, A.1), ROWS, IDS)),
        ("set_rows: the rows", |b| {
            let a = b.permute(f32s(b, [8, 4, 2, 1]), [1, 0, 2, 3]);
            b.set_rows(a, f32s(b, ROWS.1), input(b, IDS.0, IDS.1));
        }),
        ("set_rows: the rows", |b| {
            let rows = b.permute(f32s(b, [3, 4, 2, 1]), [1, 0, 2, 3]);
            b.set_rows(f32s(b, A.1), rows, input(b, IDS.0, IDS.1));
        }),
    ]);
}

#[test]
fn attention_refuses() {
    fn flash(b: &Builder, q: (Type, [usize; 4]), k: (Type, [usize; 4]), v: (Type, [usize; 4]), m: (Type, [usize; 4])) {
        b.flash_attn(input(b, q.0, q.1), input(b, k.0, k.1), input(b, v.0, v.1), input(b, m.0, m.1), 1.0, 0.0);
    }
    const Q: (Type, [usize; 4]) = (Type::F32, [8, 3, 4, 2]);
    const K: (Type, [usize; 4]) = (Type::F16, [8, 5, 2, 2]);
    const M: (Type, [usize; 4]) = (Type::F16, [5, 3, 1, 2]);
    assert_violations(&[
        ("flash_attn: q", |b| flash(b, (Type::F32, [6, 3, 4, 2]), K, K, M)),
        ("flash_attn: q", |b| flash(b, Q, K, (Type::F16, [8, 6, 2, 2]), M)),
        ("flash_attn: q", |b| flash(b, Q, K, (Type::F16, [8, 5, 4, 2]), M)),
        // ggml repeats keys over heads, but not over sequences.
        ("flash_attn: q", |b| flash(b, Q, (Type::F16, [8, 5, 2, 1]), (Type::F16, [8, 5, 2, 1]), M)),
        ("flash_attn: 4 heads on 3", |b| flash(b, Q, (Type::F16, [8, 5, 3, 2]), (Type::F16, [8, 5, 3, 2]), M)),
        ("flash_attn: types", |b| flash(b, (Type::F16, Q.1), K, K, M)),
        ("flash_attn: types", |b| flash(b, Q, (Type::I32, K.1), K, M)),
        ("flash_attn: types", |b| flash(b, Q, K, (Type::I32, K.1), M)),
        ("flash_attn: the rows", |b| {
            let k = b.permute(input(b, Type::F16, [5, 8, 2, 2]), [1, 0, 2, 3]);
            b.flash_attn(f32s(b, Q.1), k, input(b, K.0, K.1), input(b, M.0, M.1), 1.0, 0.0);
        }),
        ("flash_attn: mask", |b| flash(b, Q, K, K, (Type::F32, M.1))),
        ("flash_attn: mask", |b| flash(b, Q, K, K, (Type::F16, [6, 3, 1, 2]))),
        ("flash_attn: mask", |b| flash(b, Q, K, K, (Type::F16, [5, 2, 1, 2]))),
        ("flash_attn: mask", |b| flash(b, Q, K, K, (Type::F16, [5, 3, 3, 2]))),
        ("flash_attn: mask", |b| flash(b, Q, K, K, (Type::F16, [5, 3, 1, 3]))),
        ("flash_attn: mask", |b| {
            let m = b.permute(input(b, Type::F16, [3, 5, 1, 2]), [1, 0, 2, 3]);
            b.flash_attn(f32s(b, Q.1), input(b, K.0, K.1), input(b, K.0, K.1), m, 1.0, 0.0);
        }),
        ("soft_max: input", |b| {
            ignore(b.soft_max(input(b, Type::F16, [4, 3, 1, 1]), Some(f32s(b, [4, 3, 1, 1])), 1.0))
        }),
        ("soft_max: input", |b| ignore(b.soft_max(transposed(b, Type::F32, [4, 3]), Some(f32s(b, [4, 3, 1, 1])), 1.0))),
        ("soft_max: mask", |b| {
            ignore(b.soft_max(f32s(b, [4, 3, 1, 1]), Some(input(b, Type::BF16, [4, 3, 1, 1])), 1.0))
        }),
        ("soft_max: mask", |b| ignore(b.soft_max(f32s(b, [4, 3, 1, 1]), Some(transposed(b, Type::F32, [4, 3])), 1.0))),
        ("soft_max: mask", |b| ignore(b.soft_max(f32s(b, [4, 3, 1, 1]), Some(f32s(b, [5, 3, 1, 1])), 1.0))),
        ("soft_max: mask", |b| ignore(b.soft_max(f32s(b, [4, 3, 1, 1]), Some(f32s(b, [4, 2, 1, 1])), 1.0))),
        ("soft_max: mask", |b| ignore(b.soft_max(f32s(b, [4, 3, 2, 1]), Some(f32s(b, [4, 3, 3, 1])), 1.0))),
        ("soft_max: mask", |b| ignore(b.soft_max(f32s(b, [4, 3, 2, 3]), Some(f32s(b, [4, 3, 2, 2])), 1.0))),
        ("add_sinks: to operation", |b| b.add_sinks(b.scale(f32s(b, [4, 3, 2, 1]), 1.0), f32s(b, [2, 1, 1, 1]))),
        ("add_sinks: type", |b| {
            b.add_sinks(b.soft_max(f32s(b, [4, 3, 2, 1]), None, 1.0), input(b, Type::F16, [2, 1, 1, 1]));
        }),
        ("add_sinks: [3, 1, 1, 1] for 2", |b| {
            b.add_sinks(b.soft_max(f32s(b, [4, 3, 2, 1]), None, 1.0), f32s(b, [3, 1, 1, 1]));
        }),
        ("add_sinks: it has", |b| {
            let weights = b.soft_max(f32s(b, [4, 3, 2, 1]), None, 1.0);
            b.add_sinks(weights, f32s(b, [2, 1, 1, 1]));
            b.add_sinks(weights, f32s(b, [2, 1, 1, 1]));
        }),
    ]);
}

#[test]
fn concat_and_custom_refuse() {
    assert_violations(&[
        ("concat: dimension 4", |b| ignore(b.concat(f32s(b, [4, 3, 1, 1]), f32s(b, [4, 3, 1, 1]), 4))),
        ("concat: types", |b| ignore(b.concat(f32s(b, [4, 3, 1, 1]), input(b, Type::I32, [4, 3, 1, 1]), 0))),
        ("concat: shapes", |b| ignore(b.concat(f32s(b, [4, 3, 1, 1]), f32s(b, [4, 2, 1, 1]), 0))),
        ("concat: shapes", |b| ignore(b.concat(f32s(b, [4, 3, 1, 1]), f32s(b, [5, 3, 1, 1]), 1))),
        ("concat: the rows", |b| ignore(b.concat(f32s(b, [4, 3, 1, 1]), transposed(b, Type::F32, [4, 3]), 1))),
        ("concat: the rows", |b| ignore(b.concat(transposed(b, Type::F32, [4, 3]), f32s(b, [4, 3, 1, 1]), 1))),
        ("concat: result", |b| ignore(b.concat(f32s(b, [1 << 44, 1, 1, 1]), f32s(b, [1, 1, 1, 1]), 0))),
        ("custom: shape", |b| ignore(b.custom(Type::Q4_0, [33, 1, 1, 1], &[f32s(b, [1, 1, 1, 1])], Nothing))),
        ("custom: shape", |b| ignore(b.custom(Type::F32, [4, 0, 1, 1], &[f32s(b, [1, 1, 1, 1])], Nothing))),
        ("custom: 0 sources", |b| ignore(b.custom(Type::F32, [4, 1, 1, 1], &[], Nothing))),
        ("custom: 10 sources", |b| ignore(b.custom(Type::F32, [4, 1, 1, 1], &[f32s(b, [1, 1, 1, 1]); 10], Nothing))),
        ("custom: parts of 0", |b| ignore(b.custom(Type::F32, [4, 1, 1, 1], &[f32s(b, [1, 1, 1, 1])], Columns(0)))),
        ("custom: parts of 32", |b| ignore(b.custom(Type::Q8_0, [64, 1, 1, 1], &[f32s(b, [1, 1, 1, 1])], Columns(32)))),
    ]);
}

/// Builds each graph that the builder does not refuse, and computes it on two threads: ggml would end the process.
/// Returns whether it was computed.
fn compute_accepted(
    tensors: &[(Type, [u64; 4])],
    f: &dyn for<'g> Fn(&Builder<'g>, &[Tensor<'g>]) -> Tensor<'g>,
) -> bool {
    let (store, ids) = zeros(tensors);
    thread_local!(static EXECUTOR: RefCell<Executor> = RefCell::new(executor()));
    let mut schedule = EXECUTOR.with_borrow(|e| e.schedule());
    let mut loaded = false;
    // What is refused is no concern here.
    let _ = panic_of(|| {
        let (graph, _) = Graph::build(32, |b| {
            let leaves: Vec<_> = ids.iter().map(|&id| b.leaf(&store, id)).collect();
            b.output(f(b, &leaves))
        });
        schedule.load(graph).expect("memory");
        loaded = true;
    });
    if loaded {
        EXECUTOR.with_borrow_mut(|e| e.compute(&mut schedule, 2)).expect("computes");
    }
    loaded
}

#[test]
fn what_is_accepted_of_one_type_is_computed() {
    let ids = (Type::I32, [2, 1, 1, 1]);
    let longs = (Type::I64, [2, 1, 1, 1]);
    for ty in all_types() {
        let ne = [256, 6, 1, 1];
        let ok =
            |tensors: &[_], f: &dyn for<'g> Fn(&Builder<'g>, &[Tensor<'g>]) -> Tensor<'g>| compute_accepted(tensors, f);
        assert_eq!(ok(&[(ty, ne), ids], &|b, t| b.get_rows(t[0], t[1])), ty == Type::I32 || ggml::can_dequantize(ty));
        let experts = [(ty, [256, 4, 3, 1]), (Type::F32, [256, 1, 2, 1]), (Type::I32, [2, 2, 1, 1])];
        let of_experts = ok(&experts, &|b, t| b.mul_mat_id(t[0], t[1], t[2]));
        let of_weights = ok(&[(ty, ne), (Type::F32, ne)], &|b, t| b.mul_mat(t[0], t[1]));
        assert_eq!(of_experts, of_weights, "{ty}");
        let into_cache = ok(&[(ty, ne), (Type::F32, [256, 2, 1, 1]), longs], &|b, t| b.set_rows(t[0], t[1], t[2]));
        let of_caches = [Type::F32, Type::F16, Type::BF16, Type::Q8_0, Type::Q4_0].contains(&ty);
        assert!(into_cache || !of_caches, "{ty}");
        for dim in 0..4 {
            assert!(ok(&[(ty, ne); 2], &|b, t| b.concat(t[0], t[1], dim)), "{ty}");
        }
        assert!(ok(&[(ty, ne)], &|b, t| b.cont(b.permute(t[0], [0, 2, 1, 3]), [256, 3, 2, 1])), "{ty}");
        assert!(ok(&[(ty, ne)], &|b, t| b.cont(b.reshape(t[0], [256, 2, 3, 1]), [256, 6, 1, 1])), "{ty}");
        assert_eq!(
            ok(&[(ty, ne)], &|b, t| b.cont(b.permute(t[0], [1, 0, 2, 3]), ne.map(|n| n as usize))),
            ty.block_size() == 1
        );
        let row = ty.row_bytes(256).unwrap();
        assert!(
            ok(&[(ty, ne)], &|b, t| b.cont(b.view(t[0], [256, 2, 1, 1], [3 * row, 0, 0], row), [256, 2, 1, 1])),
            "{ty}"
        );
        // These take F32 at least.
        let computed = [
            ok(&[(ty, ne)], &|b, t| b.rms_norm(t[0], 1e-5)),
            ok(&[(ty, ne)], &|b, t| b.layer_norm(t[0], 1e-5)),
            ok(&[(ty, ne)], &|b, t| b.gelu(b.relu(b.tanh(b.scale(t[0], 0.5))))),
            ok(&[(ty, ne); 2], &|b, t| b.swiglu(t[0], t[1])),
            ok(&[(ty, ne); 2], &|b, t| b.geglu(t[0], t[1])),
            ok(&[(ty, [256, 3, 2, 1]), ids], &|b, t| b.rope(t[0], t[1], None, &ROPE)),
            ok(&[(ty, [256, 3, 2, 1]), ids, (ty, [256, 1, 1, 1])], &|b, t| b.rope(t[0], t[1], Some(t[2]), &ROPE)),
            ok(&[(Type::F32, ne), (ty, ne)], &|b, t| b.soft_max(t[0], Some(t[1]), 1.0)),
            ok(&[(ty, ne), (Type::F32, ne)], &|b, t| b.soft_max(t[0], Some(t[1]), 1.0)),
            ok(&[(ty, ne)], &|b, t| b.soft_max(t[0], None, 1.0)),
            ok(&[(Type::F32, [4, 3, 256, 1]), (ty, [256, 1, 1, 1])], &|b, t| {
                let weights = b.soft_max(t[0], None, 1.0);
                b.add_sinks(weights, t[1]);
                weights
            }),
            ok(&[(ty, ne); 2], &|b, t| b.swiglu_oai(t[0], t[1], 1.5, 2.0)),
            ok(&[(ty, [256, 2, 2, 1]), (Type::F32, [256, 4, 1, 1]), (Type::I32, [2, 2, 1, 1])], &|b, t| {
                b.add_id(t[0], t[1], t[2])
            }),
            ok(&[(ty, [256, 6, 1, 1]), (Type::F32, [64, 64, 1, 1])], &|b, t| b.mul_mat_hadamard(t[0], t[1])),
        ];
        assert!(ty != Type::F32 || computed == [true; 14], "{computed:?}");
    }
}

#[test]
fn what_is_accepted_of_two_types_is_computed() {
    let mut products = 0;
    for a in all_types() {
        for b in all_types() {
            let ok = |ne: [u64; 4], other: [u64; 4], f: &dyn for<'g> Fn(&Builder<'g>, &[Tensor<'g>]) -> Tensor<'g>| {
                compute_accepted(&[(a, ne), (b, other)], f)
            };
            let product = ok([256, 6, 1, 1], [256, 3, 2, 1], &|b, t| b.mul_mat(t[0], t[1]));
            products += usize::from(product);
            // Rows and matrices in another order, as attention has them.
            fn permuted<'g>(b: &Builder<'g>, t: Tensor<'g>) -> Tensor<'g> {
                b.permute(t, [0, 2, 1, 3])
            }
            let again = ok([256, 2, 6, 1], [256, 2, 4, 1], &|b, t| b.mul_mat(permuted(b, t[0]), permuted(b, t[1])));
            assert!(!again || product);
            ok([256, 6, 1, 1], [256, 1, 1, 1], &|b, t| b.add(t[0], t[1]));
            ok([256, 6, 1, 1], [256, 2, 1, 1], &|b, t| b.mul(t[0], t[1]));
            let cast = ok([256, 6, 1, 1], [256, 1, 1, 1], &|builder, t| builder.cast(t[0], b));
            assert!(cast || a != b || a.is_quantized(), "{a}");
            let q = (Type::F32, [256, 3, 4, 1]);
            let mask = (Type::F16, [5, 3, 1, 1]);
            let tensors = [q, (a, [256, 5, 2, 1]), (b, [256, 5, 2, 1]), mask];
            compute_accepted(&tensors, &|b, t| b.flash_attn(t[0], t[1], t[2], t[3], 1.0, 0.0));
            let tensors = [tensors.as_slice(), &[(Type::F32, [4, 1, 1, 1])]].concat();
            compute_accepted(&tensors, &|b, t| {
                let out = b.flash_attn(t[0], t[1], t[2], t[3], 1.0, 0.0);
                b.add_sinks(out, t[4]);
                out
            });
        }
    }
    assert!(products > 30, "{products}");
}

#[test]
fn an_operation_panics_in_its_sources_and_parts() {
    struct Check(fn(&[Source], &mut Parts));
    impl Op for Check {
        fn division(&self, _: [usize; 4]) -> Division {
            Division { rows: 2, columns: 2 }
        }
        fn compute(&self, sources: &[Source], parts: &mut Parts) {
            (self.0)(sources, parts)
        }
    }
    // Each case is an operation on `[4, 3]` F32 and on its transpose, with a result `[4, 4]` F32 in parts of 2 by 2.
    let cases: &[fn(&[Source], &mut Parts)] = &[
        |s, _| ignore(s[0].bytes([3, 0, 0])),
        |s, _| ignore(s[0].bytes([0, 1, 0])),
        |s, _| ignore(s[0].bytes([0, 0, 1])),
        |s, _| ignore(s[1].bytes([0, 0, 0])),
        |s, _| ignore(s[1].all_bytes()),
        |s, _| ignore(s[0].along(3, 0)),
        |s, _| ignore(s[0].row::<i32>(0)),
        |_, p| {
            while let Some(mut part) = p.next() {
                part.bytes();
            }
        },
        |_, p| {
            while let Some(mut part) = p.next() {
                part.elements::<f32>();
            }
        },
        |_, p| {
            while let Some(mut part) = p.next() {
                part.row::<i32>(part.rows().start);
            }
        },
        |_, p| {
            while let Some(mut part) = p.next() {
                part.row::<f32>(part.rows().end);
            }
        },
    ];
    let mut executor = executor();
    for (i, &case) in cases.iter().enumerate() {
        let mut schedule = executor.schedule();
        let (graph, _) = Graph::build(16, |b| {
            let sources = [f32s(b, [4, 3, 1, 1]), transposed(b, Type::F32, [4, 3])];
            b.output(b.custom(Type::F32, [4, 4, 1, 1], &sources, Check(case)))
        });
        schedule.load(graph).unwrap();
        let message = panic_of(|| ignore(executor.compute(&mut schedule, 2)));
        assert_eq!(message.as_deref(), Some("an operation of the program's own panicked"), "case {i}");
    }
}

/// Adds one to each element, and counts the parts.
struct Count {
    division: Division,
    parts: Arc<AtomicUsize>,
}

impl Op for Count {
    fn division(&self, ne: [usize; 4]) -> Division {
        Division { columns: if self.division.columns == 0 { ne[0] } else { self.division.columns }, ..self.division }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut part) = parts.next() {
            self.parts.fetch_add(1, Ordering::Relaxed);
            for i in part.rows() {
                let columns = part.columns();
                let row = [i % 7, i / 7 % 3, i / 21];
                let x = &sources[0].elements::<f32>(row)[columns];
                part.row::<f32>(i).iter_mut().zip(x).for_each(|(y, x)| *y = x + 1.0);
            }
        }
    }
}

#[test]
fn the_parts_of_an_operation_are_computed_once_each() {
    let ne = [10, 7, 3, 2];
    let x: Vec<f32> = (0..420).map(|i| i as f32).collect();
    let mut executor = executor();
    for (rows, columns, expected) in [(1, 0, 42), (5, 0, 9), (1000, 0, 1), (4, 3, 11 * 4), (1, 1, 420), (42, 100, 1)] {
        let parts = Arc::new(AtomicUsize::new(0));
        let op = Count { division: Division { rows, columns }, parts: parts.clone() };
        let mut schedule = executor.schedule();
        let (graph, (input, output)) = Graph::build(16, |b| {
            let (x, input) = b.input("x", Type::F32, ne);
            (input, b.output(b.custom(Type::F32, ne, &[x], op)))
        });
        schedule.load(graph).unwrap();
        // Several runs: the counter of parts starts again each time.
        for run in 1..=5 {
            schedule.set(input, &x);
            executor.compute(&mut schedule, 2).unwrap();
            let mut y = vec![0.0; 420];
            schedule.get(output, &mut y);
            assert!(y.iter().zip(&x).all(|(y, x)| *y == x + 1.0));
            assert_eq!(parts.load(Ordering::Relaxed), run * expected, "{rows} {columns}");
        }
    }
}

#[test]
fn operations_compute() {
    let mut executor = executor();
    let mut schedule = executor.schedule();
    let (graph, (inputs, outputs)) = Graph::build(64, |b| {
        let (a, a_slot) = b.input("a", Type::F32, [2, 3, 1, 1]);
        let (x, x_slot) = b.input("x", Type::F32, [2, 2, 1, 1]);
        let (ids, ids_slot) = b.input("ids", Type::I32, [2, 1, 1, 1]);
        let ids_as_floats = b.cast(ids, Type::F32);
        let outputs = [
            b.mul_mat(a, x),
            b.concat(x, x, 0),
            b.concat(a, x, 1),
            b.get_rows(a, ids),
            b.mul_mat_hadamard(x, f32s(b, [2, 2, 1, 1])),
            b.cont(b.permute(x, [1, 0, 2, 3]), [4, 1, 1, 1]),
            b.sub(a, b.reshape(ids_as_floats, [2, 1, 1, 1])),
            b.div(b.scale_and_shift(x, 2.0, 1.0), b.sqr(b.scale_and_shift(x, 0.0, 2.0))),
            b.sqrt(b.sum_rows(b.sqr(a))),
            b.cast(b.argsort(b.reshape(a, [6, 1, 1, 1]), false), Type::F32),
            b.cast(b.argsort(b.reshape(a, [6, 1, 1, 1]), true), Type::F32),
            b.set_rows(b.zeros([2, 3, 1, 1]), x, ids),
            b.reinterpret(b.get_rows(b.reinterpret(a, Type::I32, [2, 3, 1, 1]), ids), Type::F32, [4, 1, 1, 1]),
            b.arange(3),
        ];
        ([a_slot, x_slot, ids_slot], outputs.map(|t| (b.output(t), t.n_elements())))
    });
    schedule.load(graph).unwrap();
    schedule.set(inputs[0], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    schedule.set(inputs[1], &[1.0f32, 0.0, 10.0, 1.0]);
    schedule.set(inputs[2], &[2i32, 0]);
    executor.compute(&mut schedule, 2).unwrap();
    let expected: [&[f32]; 14] = [
        &[1.0, 3.0, 5.0, 12.0, 34.0, 56.0],
        &[1.0, 0.0, 1.0, 0.0, 10.0, 1.0, 10.0, 1.0],
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 0.0, 10.0, 1.0],
        &[5.0, 6.0, 1.0, 2.0],
        &[1.0, 1.0, 11.0, 9.0].map(|v: f32| v / 2f32.sqrt()),
        &[1.0, 10.0, 0.0, 1.0],
        &[-1.0, 2.0, 1.0, 4.0, 3.0, 6.0],
        &[0.75, 0.25, 5.25, 0.75],
        &[5f32.sqrt(), 5.0, 61f32.sqrt()],
        &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        &[5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
        &[10.0, 1.0, 0.0, 0.0, 1.0, 0.0],
        &[5.0, 6.0, 1.0, 2.0],
        &[0.0, 1.0, 2.0],
    ];
    for ((slot, n), expected) in outputs.into_iter().zip(expected) {
        let mut got = vec![0.0f32; n];
        schedule.get(slot, &mut got);
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} {expected:?}");
    }
}
