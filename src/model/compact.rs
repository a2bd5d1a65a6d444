//! Reduced weights that are made once: for masks that do not change with the batch.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ggml::{Place, Store, TensorId, TensorSpec, Type, Usage};
use kernels::ColumnWeights;

use super::Model;
use super::memory;
use super::native::reduce_columns;
use super::weights::memory_for;
use crate::error::{Error, Result};
use crate::prune::Masks;
use crate::prune::plan::{Block, Kind};
use crate::prune::reduce::Matrix;
use crate::prune::score::multiply;

/// What to do when reduced weights do not fit.
const ADVICE: &str = "prune without them (/prune off), or use a smaller model";

/// Reduced weights of one block.
#[derive(Debug)]
pub struct CompactBlock {
    /// I32 `[n_kept]`: the kept units
    pub ids: TensorId,
    /// Matrices with their biases: queries and output of attention; gate, up and down of an MLP. Rows that our own kernels multiply
    /// are read where the file has them: no matrix is made.
    pub matrices: Vec<(Option<TensorId>, Option<TensorId>)>,
    /// The last of these, if our own kernels multiply it
    pub columns: Option<Arc<ColumnWeights>>,
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

/// A block: the numbers of its ids and of its matrices with their biases among the parts, and its columns.
type Numbered = (Block, usize, Vec<(Option<usize>, Option<usize>)>, Option<Arc<ColumnWeights>>);

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
        let mut numbers: Vec<Numbered> = Vec::new();
        let mut owners: Vec<Block> = Vec::new();
        let mut columns = native_columns(model, masks, n_threads)?;
        let column_bytes: u64 = columns.values().map(|c| c.n_bytes() as u64).sum();
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
                let w = match model.native.multiplies(&weight, 1) {
                    true => None,
                    false => Some(push("rows", matrix.ty(), [matrix.n_in(), n], Usage::MulMat, Source::Rows(matrix))?),
                };
                let bias = bias.map(|b| {
                    let all = model.vector(b);
                    let units = kept.iter().flat_map(|&k| all[k as usize * width..][..width].iter().copied());
                    push("bias", Type::F32, [n, 1], Usage::Add, floats(units.collect()))
                });
                matrices.push((w, bias.transpose()?));
            }
            let matrix = &model.matrices[&last.0];
            let columns = columns.remove(&block);
            let ty = matrix.column_type(n);
            let w = match columns {
                Some(_) => None,
                None => Some(push("columns", ty, [n, matrix.n_out()], Usage::MulMat, Source::Columns(matrix))?),
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
            numbers.push((block, ids, matrices, columns));
        }

        let bytes = |s: &TensorSpec| s.ty.row_bytes(s.ne[0] as usize).expect("whole blocks") as u64 * s.ne[1];
        let n_bytes = parts.iter().map(|p| bytes(&p.spec)).sum::<u64>();
        memory::require(n_bytes, "the reduced weights", ADVICE)?;
        let specs: Vec<TensorSpec> = parts.iter().map(|p| p.spec.clone()).collect();
        let mut store = Store::new(&specs, None).map_err(|e| {
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
            .map(|(block, ids, matrices, columns)| {
                let id = |i: Option<usize>| i.map(|i| tensors[i]);
                let matrices = matrices.into_iter().map(|(w, b)| (id(w), id(b))).collect();
                (block, CompactBlock { ids: tensors[ids], matrices, columns })
            })
            .collect();
        Ok(Compact { blocks, store: Rc::new(store), n_bytes: n_bytes + column_bytes })
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

/// The columns that our own kernels multiply, block by block on several threads.
fn native_columns(model: &Model, masks: &Masks, n_threads: usize) -> Result<BTreeMap<Block, Arc<ColumnWeights>>> {
    let h = model.hparams();
    let jobs: Vec<(Block, &[i32], TensorId)> = (masks.iter())
        .map(|(&block, kept)| {
            let (attn, ffn) = model.tensors.blocks(block.il);
            let last = if block.kind == Kind::Attn { attn.output.0 } else { ffn.down.0 };
            (block, &kept[..], last)
        })
        .filter(|job| model.native.weights.contains_key(&job.2))
        .collect();
    // No more than a byte for each weight.
    let weights = |job: &(Block, &[i32], TensorId)| {
        let matrix = &model.matrices[&job.2];
        (matrix.n_in() * matrix.n_out()) as u64
    };
    memory::require(jobs.iter().map(weights).sum(), "the reduced weights", ADVICE)?;
    let (next, matrices) = (AtomicUsize::new(0), &model.matrices);
    let (jobs, next, n_embd_head) = (&jobs, &next, h.n_embd_head);
    let work = move || {
        let mut made = Vec::new();
        while let Some(&(block, kept, weight)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let width = if block.kind == Kind::Attn { n_embd_head } else { 1 };
            made.push((block, Arc::new(reduce_columns(&matrices[&weight], kept, width))));
        }
        made
    };
    Ok(std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads.min(jobs.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    }))
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
