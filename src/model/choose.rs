//! Whose kernels multiply a model's weights fastest here: measured when the model is loaded, on one of its own matrices.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use ggml::{Device, Executor, Graph, Place, Store, TensorSpec, Type, Usage};
use kernels::FEW;

use super::native::{Factor, Product, Quantize, is_direct, words};
use super::weights::{Placement, memory_for};
use crate::gguf::Gguf;
use crate::prune::reduce::Matrix;
use crate::weights::{self, Kernels};

/// Bytes of the matrix that are measured: enough for a steady state, few enough for a load.
const SAMPLE_BYTES: usize = 4 << 20;

/// Bytes of a row: four times those of the widest models.
const LONGEST_ROW: usize = 64 << 10;

/// Tokens of the measured batches: time is a line through both.
const TOKENS: [usize; 2] = [16, 64];

/// A prompt and an answer of this many tokens are what the choice is made for.
const PROMPT: f64 = 512.0;
const ANSWER: f64 = 64.0;

/// Times by number of tokens: `fixed + slope * n` for many, and for one.
#[derive(Debug, Clone, Copy)]
struct Times {
    fixed: f64,
    slope: f64,
    one: f64,
}

impl Times {
    fn of(mut measure: impl FnMut(usize) -> Option<f64>, one: f64) -> Option<Times> {
        let [few, many] = TOKENS;
        let times = [measure(few)?, measure(many)?];
        let slope = (times[1] - times[0]) / (many - few) as f64;
        Some(Times { fixed: times[0] - slope * few as f64, slope, one })
    }

    fn total(&self) -> f64 {
        self.fixed + self.slope * PROMPT + self.one * ANSWER
    }
}

/// Whether our kernels multiply the weights: because the user asked for them, or because they are faster with the matrix `name`.
pub fn native(options: &weights::Options, gguf: &Gguf, name: &str, placement: &Placement, n_threads: usize) -> bool {
    match options.kernels {
        Kernels::Ggml => false,
        Kernels::Native => true,
        // A copy of the weights in memory is ggml's alone: our kernels read the file's.
        Kernels::Auto if options.no_mmap => false,
        // The layers on the GPU are the last ones: all of them, if the first is.
        Kernels::Auto if placement.device(0) != Device::cpu() => false,
        Kernels::Auto => is_faster(gguf, name, placement, n_threads).unwrap_or(false),
    }
}

/// Whether our kernels are faster; `None` if it cannot be measured.
fn is_faster(gguf: &Gguf, name: &str, placement: &Placement, n_threads: usize) -> Option<bool> {
    let info = gguf.tensor(name).filter(|t| t.ty.is_quantized() && t.n_dims == 2)?;
    let (n_in, n_out) = (info.ne[0] as usize, info.ne[1] as usize);
    let row = info.ty.row_bytes(n_in)?;
    let n_rows = (SAMPLE_BYTES.checked_div(row)?).min(n_out);
    // The file's shapes are not checked yet: rows beyond those of any model would ask for memory without bound.
    if n_rows == 0 || row > LONGEST_ROW {
        return None;
    }
    let start = gguf.position(info);
    let matrix = Matrix::mapped(gguf.map(info).clone(), start..start + row * n_rows, info.ty, n_in, n_rows);
    let mut bench = Bench::new(matrix, n_threads)?;
    let panels = Times::of(|n| bench.ours(n), 0.0)?;
    let theirs = bench.theirs(placement)?;
    // A type whose rows cannot be read where they are has its single tokens from ggml.
    let one = if is_direct(info.ty) { bench.ours(1)? } else { theirs.one };
    Some(Times { one, ..panels }.total() < theirs.total())
}

/// One matrix and threads to multiply it with.
struct Bench {
    matrix: Matrix,
    executor: Executor,
    n_threads: usize,
}

impl Bench {
    fn new(matrix: Matrix, n_threads: usize) -> Option<Bench> {
        let executor = Executor::new(&[], n_threads, 64, Arc::new(AtomicBool::new(false))).ok()?;
        Some(Bench { matrix, executor, n_threads })
    }

    /// Least time of a few runs of a graph with one F32 input of `n` tokens.
    fn time(&mut self, n: usize, build: impl for<'g> FnOnce(&ggml::Builder<'g>, ggml::Tensor<'g>)) -> Option<f64> {
        let n_in = self.matrix.n_in();
        let (graph, input) = Graph::build(16, |g| {
            let (x, input) = g.input("x", Type::F32, [n_in, n, 1, 1]);
            build(g, x);
            input
        });
        self.executor.load(graph).ok()?;
        let x: Vec<f32> = (0..n * n_in).map(|i| (i as f32).sin()).collect();
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            self.executor.set(input, &x);
            let start = Instant::now();
            self.executor.compute(self.n_threads).ok()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Some(best)
    }

    /// Our kernels' time.
    fn ours(&mut self, n: usize) -> Option<f64> {
        let factors = vec![Factor { matrix: self.matrix.clone(), kept: None, resident: None }];
        let (n_in, n_out) = (self.matrix.n_in(), self.matrix.n_out());
        self.time(n, move |g, x| {
            let (eps, panels) = (0.0, n > FEW);
            let acts = if n <= FEW { x } else { g.custom(Type::I32, [words(n_in), n, 1, 1], &[x], Quantize { eps }) };
            let (gated, columns, has_ids, ahead) = (false, None, false, false);
            let op = Product { factors, panels, gated, columns, has_ids, ahead, eps, clock: None };
            g.output(g.custom(Type::F32, [n_out, n, 1, 1], &[acts], op));
        })
    }

    /// Times of ggml's kernels on a copy of the matrix in the best memory.
    fn theirs(&mut self, placement: &Placement) -> Option<Times> {
        let matrix = self.matrix.clone();
        let ne = [matrix.n_in() as u64, matrix.n_out() as u64];
        let (_, memory) = memory_for(placement, matrix.ty(), ne, Usage::MulMat, 0, false)?;
        let place = Place::Buffer(memory);
        let spec = TensorSpec { name: "sample".into(), ty: matrix.ty(), ne: [ne[0], ne[1], 1, 1], place };
        let mut store = Store::new(&[spec], Vec::new()).ok()?;
        store.set_weights();
        let id = store.ids().next()?;
        let bytes: Vec<u8> = (0..matrix.n_out()).flat_map(|j| matrix.row(j).iter().copied()).collect();
        store.fill(&[(id, &bytes)], 1, &mut |_| std::ops::ControlFlow::Continue(()));
        let store = std::rc::Rc::new(store);
        let mut time = |n| {
            let store = store.clone();
            self.time(n, move |g, x| {
                g.output(g.mul_mat(g.leaf(&store, id), x));
            })
        };
        let one = time(1)?;
        Times::of(time, one)
    }
}
