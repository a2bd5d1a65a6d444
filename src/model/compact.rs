//! Reduced weights that are made once: for masks that do not change with the batch.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use ggml::{Place, Store, TensorId, TensorSpec, Type, Usage};
use kernels::ColumnLayout;

use super::Model;
use super::native::{MadeColumns, column_layout, reduce_columns};
use super::weights::memory_for;
use crate::error::{Error, Result};
use crate::prune::Masks;
use crate::prune::plan::{Block, Kind};
use crate::prune::reduce::Matrix;
use crate::prune::score::multiply;
use crate::system::memory;

/// What to do when reduced weights do not fit.
const ADVICE: &str = "prune without them (/prune off), or use a smaller model";

/// A reduced matrix.
#[derive(Debug)]
pub enum Made {
    /// For ggml's kernels
    Tensor(TensorId),
    /// Rows for our own kernels: a copy, as rows that lie apart in the file are read at a third of the speed
    Rows(Matrix),
    /// Columns for our own kernels
    Columns(MadeColumns),
}

/// Reduced weights of one block.
#[derive(Debug)]
pub struct CompactBlock {
    /// I32 `[n_kept]`: the kept units
    pub ids: TensorId,
    /// Matrices with their biases: queries and output of attention; gate, up and down of an MLP
    pub matrices: Vec<(Made, Option<TensorId>)>,
}

/// Reduced weights of all blocks that a mask shrinks.
#[derive(Debug)]
pub struct Compact {
    store: Rc<Store>,
    blocks: BTreeMap<Block, CompactBlock>,
    n_bytes: u64,
}

/// A tensor to be made, and what goes into it.
struct Part<'a> {
    spec: TensorSpec,
    source: Source<'a>,
}

/// A matrix that is made, or its number among the parts.
enum Numbered {
    Part(usize),
    Made(Made),
}

/// A block: the number of its ids among the parts, and its matrices with the numbers of their biases.
type NumberedBlock = (Block, usize, Vec<(Numbered, Option<usize>)>);

enum Source<'a> {
    Bytes(Vec<u8>),
    Rows(&'a Matrix),
    Columns(&'a Matrix),
}

impl Compact {
    /// Gathers the units of `masks`, with `n_threads` threads. `left_out` holds mean inputs, `[n_channels]`, that stand in for
    /// what a block leaves out. [`crate::error::Kind::Memory`] if it does not fit.
    pub fn new(
        model: &Model,
        masks: &Masks,
        left_out: &BTreeMap<Block, Vec<f32>>,
        n_threads: usize,
    ) -> Result<Compact> {
        let h = model.hparams();
        let mut parts: Vec<Part> = Vec::new();
        let mut numbers: Vec<NumberedBlock> = Vec::new();
        let mut owners: Vec<Block> = Vec::new();
        let (mut native, native_bytes) = native(model, masks, n_threads)?;
        for (&block, kept) in masks {
            let (attn, ffn) = model.tensors.blocks(block.il);
            let width = if block.kind == Kind::Attn { h.n_embd_head } else { 1 };
            let n = kept.len() * width;
            let mut push = |name: &str, ty, ne: [usize; 2], usage, source| -> Result<usize> {
                let ne = [ne[0] as u64, ne[1] as u64, 1, 1];
                let (_, memory) =
                    memory_for(&model.placement, ty, [ne[0], ne[1]], usage, block.il, false).ok_or_else(|| {
                        Error::unsupported(format!("no device can compute with reduced weights of type {ty}"))
                    })?;
                let name = format!("compact_{name}-{}", block.il);
                parts.push(Part { spec: TensorSpec { name, ty, ne, place: Place::Buffer(memory) }, source });
                owners.push(block);
                Ok(parts.len() - 1)
            };
            let ids: Vec<u8> = kept.iter().flat_map(|k| k.to_le_bytes()).collect();
            let ids = push("ids", Type::I32, [kept.len(), 1], Usage::Add, Source::Bytes(ids))?;
            let floats = |v: Vec<f32>| Source::Bytes(v.iter().flat_map(|x| x.to_le_bytes()).collect());
            let (rows, last) = match block.kind {
                Kind::Attn => (vec![attn.q], attn.output),
                Kind::Mlp => (vec![ffn.gate, ffn.up], ffn.down),
            };
            let mut matrices = Vec::new();
            for (weight, bias) in rows {
                let matrix = &model.matrices[&weight];
                let w = match native.remove(&weight) {
                    Some(made) => Numbered::Made(made),
                    None => {
                        let ne = [matrix.n_in(), n];
                        Numbered::Part(push("rows", matrix.ty(), ne, Usage::MulMat, Source::Rows(matrix))?)
                    }
                };
                let bias = bias.map(|b| {
                    let all = model.vector(b);
                    let units = kept.iter().flat_map(|&k| all[k as usize * width..][..width].iter().copied());
                    push("bias", Type::F32, [n, 1], Usage::Add, floats(units.collect()))
                });
                matrices.push((w, bias.transpose()?));
            }
            let matrix = &model.matrices[&last.0];
            let w = match native.remove(&last.0) {
                Some(made) => Numbered::Made(made),
                None => {
                    let (ty, ne) = (matrix.column_type(n), [n, matrix.n_out()]);
                    Numbered::Part(push("columns", ty, ne, Usage::MulMat, Source::Columns(matrix))?)
                }
            };
            let bias = match (last.1.map(|b| model.vector(b)), left_out.get(&block)) {
                (None, None) => None,
                (Some(bias), None) => Some(bias),
                (bias, Some(mean)) => {
                    let mut sum = multiply(matrix, mean);
                    bias.iter().flatten().zip(&mut sum).for_each(|(b, s)| *s += b);
                    Some(sum)
                }
            };
            let bias = bias.map(|b| push("bias", Type::F32, [matrix.n_out(), 1], Usage::Add, floats(b)));
            matrices.push((w, bias.transpose()?));
            numbers.push((block, ids, matrices));
        }

        let bytes = |s: &TensorSpec| s.ty.row_bytes(s.ne[0] as usize).expect("whole blocks") as u64 * s.ne[1];
        let n_bytes = parts.iter().map(|p| bytes(&p.spec)).sum::<u64>();
        memory::require(n_bytes, "the reduced weights", ADVICE)?;
        let specs: Vec<TensorSpec> = parts.iter().map(|p| p.spec.clone()).collect();
        let mut store = Store::new(&specs, Vec::new()).map_err(|e| {
            Error::memory(format!("{} for the reduced weights could not be had", memory::human(e.bytes as u64)))
        })?;
        store.set_weights();
        let tensors: Vec<TensorId> = store.ids().collect();
        // One tensor after the other: what was gathered of a tensor is given back before the next.
        for ((part, &id), block) in parts.into_iter().zip(&tensors).zip(owners) {
            let kept = &masks[&block];
            let width = if block.kind == Kind::Attn { h.n_embd_head } else { 1 };
            let n_rows = part.spec.ne[1] as usize;
            let row = part.spec.ty.row_bytes(part.spec.ne[0] as usize).expect("whole blocks");
            let data = match part.source {
                Source::Bytes(bytes) => bytes,
                Source::Rows(m) => {
                    parallel(n_rows, row, n_threads, |range, out| m.gather_rows(kept, width, range, out))
                }
                Source::Columns(m) => {
                    parallel(n_rows, row, n_threads, |range, out| m.gather_columns(kept, width, range, out))
                }
            };
            store.fill(&[(id, &data)], 1, &mut |_| std::ops::ControlFlow::Continue(()));
        }
        let blocks = (numbers.into_iter())
            .map(|(block, ids, matrices)| {
                let made = |w| match w {
                    Numbered::Part(i) => Made::Tensor(tensors[i]),
                    Numbered::Made(made) => made,
                };
                let matrices = matrices.into_iter().map(|(w, b)| (made(w), b.map(|i| tensors[i]))).collect();
                (block, CompactBlock { ids: tensors[ids], matrices })
            })
            .collect();
        Ok(Compact { blocks, store: Rc::new(store), n_bytes: n_bytes + native_bytes })
    }

    /// Where the tensors are.
    pub fn store(&self) -> &Rc<Store> {
        &self.store
    }

    /// A block's tensors; `None` if it stays whole.
    pub fn block(&self, block: Block) -> Option<&CompactBlock> {
        self.blocks.get(&block)
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

/// A matrix to be made for our own kernels.
struct Job<'a> {
    weight: TensorId,
    matrix: &'a Matrix,
    kept: &'a [i32],
    /// Rows or columns of a unit
    width: usize,
    /// Columns are kept, laid out like this
    layout: Option<Arc<ColumnLayout>>,
    n_bytes: usize,
}

impl Job<'_> {
    fn make(&self, out: &mut [u8]) {
        let Job { matrix, kept, width, .. } = *self;
        if let Some(layout) = &self.layout {
            return reduce_columns(matrix, layout, out);
        }
        let units = out.chunks_exact_mut(width * matrix.row(0).len());
        units.zip(kept).for_each(|(to, &unit)| to.copy_from_slice(matrix.rows(unit as usize * width, width)));
    }
}

/// The matrices that our own kernels multiply, made one by one on several threads; and their bytes.
fn native(model: &Model, masks: &Masks, n_threads: usize) -> Result<(HashMap<TensorId, Made>, u64)> {
    let mut jobs: Vec<Job> = Vec::new();
    for (&block, kept) in masks {
        let (attn, ffn) = model.tensors.blocks(block.il);
        let (width, rows, last) = match block.kind {
            Kind::Attn => (model.hparams().n_embd_head, vec![attn.q.0], attn.output.0),
            Kind::Mlp => (1, vec![ffn.gate.0, ffn.up.0], ffn.down.0),
        };
        // Columns are made for a few tokens alone, and for all types; rows only if they are multiplied where they are.
        for weight in rows.into_iter().filter(|w| model.native.multiplies(w, 1)) {
            let matrix = &model.matrices[&weight];
            let n_bytes = kept.len() * width * matrix.row(0).len();
            jobs.push(Job { weight, matrix, kept, width, layout: None, n_bytes });
        }
        if model.native.weights.contains_key(&last) {
            let matrix = &model.matrices[&last];
            let layout = column_layout(matrix, kept, width);
            let n_bytes = layout.n_bytes();
            jobs.push(Job { weight: last, matrix, kept, width, layout: Some(Arc::new(layout)), n_bytes });
        }
    }
    let sizes: Vec<usize> = jobs.iter().map(|j| j.n_bytes).collect();
    let (pages, ranges) = memory::make(&sizes, n_threads, "the reduced weights", ADVICE, |i, out| jobs[i].make(out))?;
    let n_bytes = pages.len();
    let mut made = HashMap::new();
    for (job, range) in jobs.into_iter().zip(ranges) {
        let pages = pages.clone();
        let matrix = match job.layout {
            Some(layout) => Made::Columns(MadeColumns { layout, pages, range }),
            None => Made::Rows(Matrix::made(pages, range, job.matrix.ty(), job.matrix.n_in())),
        };
        made.insert(job.weight, matrix);
    }
    Ok((made, n_bytes as u64))
}

/// Rows of `row` bytes, made by several threads.
fn parallel(
    n_rows: usize,
    row: usize,
    n_threads: usize,
    make: impl Fn(std::ops::Range<usize>, &mut [u8]) + Sync,
) -> Vec<u8> {
    let mut out = vec![0u8; n_rows * row];
    let share = n_rows.div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        for (i, out) in out.chunks_mut(share * row).enumerate() {
            let make = &make;
            scope.spawn(move || make(i * share..(i * share + out.len() / row), out));
        }
    });
    out
}
