//! Reduced weights: the kept rows and columns of a model's matrices, made once, for masks that do not change with the batch.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ggml::{Store, TensorId, Type, Usage};
use kernels::ColumnLayout;

use super::block::{Block, BlockKind, Masks};
use super::made::{ADVICE, Fill, Gathered, Made};
use super::reduce::{OwnColumns, column_layout, column_type, reduce_columns};
use super::score::multiply;
use crate::error::Result;
use crate::system::parallel;
use crate::weights::{Kernel, Layer, Linear, Matrix, Mlp, Placement, Weight};

/// What a matrix does in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Queries of attention: its rows are kept
    Q,
    /// Keys of attention: their rows are kept where the texts are whole and each head has keys of its own; never in advance
    K,
    /// Values of attention: as keys
    V,
    /// Output of attention: its columns are kept
    Output,
    /// Gate of an MLP: its rows are kept
    Gate,
    /// What the gate is multiplied with, or the first matrix of an MLP without a gate: its rows are kept
    Up,
    /// Output of an MLP: its columns are kept
    Down,
}

impl Role {
    /// Whether the kept units are rows of the matrix, not columns.
    fn keeps_rows(self) -> bool {
        !matches!(self, Role::Output | Role::Down)
    }

    /// The matrices of a block that are reduced in advance.
    fn of_block(layer: &Layer, kind: BlockKind) -> Vec<(Role, &Linear)> {
        match kind {
            BlockKind::Attn => vec![(Role::Q, &layer.attn.q), (Role::Output, &layer.attn.output)],
            BlockKind::Mlp => match &layer.mlp {
                Mlp::Gated { gate, up, down, .. } => vec![(Role::Gate, gate), (Role::Up, up), (Role::Down, down)],
                Mlp::Plain { up, down } => vec![(Role::Up, up), (Role::Down, down)],
                Mlp::Experts(_) => vec![],
            },
        }
    }
}

/// Bytes of what is made of a block's matrices that are reduced in advance, were all of their units kept: rows or columns, biases, and the
/// units' numbers.
pub fn reducible_bytes(layer: &Layer, kind: BlockKind) -> u64 {
    let bytes = |(role, linear): (Role, &Linear)| {
        let matrix = &linear.weight.rows;
        let columns = || column_type(matrix, matrix.n_in()).row_bytes(matrix.n_in()).unwrap_or(0);
        let row = if role.keeps_rows() { matrix.row_bytes() } else { columns() };
        ((row + size_of::<f32>()) * matrix.n_out() + size_of::<i32>() * matrix.n_in()) as u64
    };
    Role::of_block(layer, kind).into_iter().map(bytes).sum()
}

/// A reduced matrix, by whom it is for.
#[derive(Debug)]
pub enum ReducedMatrix {
    /// Rows or columns for ggml's kernels
    Ggml(TensorId),
    /// Rows for our own kernels: a copy, as rows that lie apart in the file are read at a third of the speed
    OwnRows(Matrix),
    /// Columns for our own kernels
    OwnColumns(OwnColumns),
}

/// A reduced matrix with its bias.
#[derive(Debug)]
pub struct ReducedLinear {
    /// The kept rows or columns
    pub matrix: ReducedMatrix,
    /// F32: of kept rows their part of the bias; of columns all of it, with what stands in for those that are left out
    pub bias: Option<TensorId>,
}

/// The kept units of a block.
#[derive(Debug, Clone, Copy)]
pub struct ReducedUnits {
    /// I32 `[n]`: their numbers
    pub ids: TensorId,
    /// How many there are
    pub n: usize,
}

/// Something of each matrix that is reduced.
type ByRole<T> = BTreeMap<(Block, Role), T>;

/// Mean inputs `[n_channels]` of blocks' last matrices that stand in for what is left out; 0 for channels that are kept.
pub type LeftOut = BTreeMap<Block, Vec<f32>>;

/// Reduced weights of all blocks that a mask shrinks.
#[derive(Debug)]
pub struct Reduced {
    store: Rc<Store>,
    units: BTreeMap<Block, ReducedUnits>,
    linears: ByRole<ReducedLinear>,
    n_bytes: u64,
}

impl Reduced {
    /// Gathers the units of `masks` out of the layers' weights, on `n_threads` threads. [`crate::error::Kind::Memory`] if they do not
    /// fit.
    pub fn new(
        layers: &[Layer],
        placement: &Placement,
        masks: &Masks,
        left_out: &LeftOut,
        n_threads: usize,
    ) -> Result<Reduced> {
        let (mut own, own_bytes) = own_matrices(layers, masks, n_threads)?;
        let mut tensors = Made::new(placement, "the reduced weights");
        let (mut units, mut linears) = (BTreeMap::new(), BTreeMap::new());
        for (&block, kept) in masks {
            let layer = &layers[block.il];
            let width = unit_width(layer, block.kind);
            let ids: Vec<u8> = kept.iter().flat_map(|k| k.to_le_bytes()).collect();
            let ids = tensors.push("ids", Type::I32, [kept.len(), 1], Usage::GetRows, block.il, Fill::Bytes(ids))?;
            units.insert(block, ReducedUnits { ids, n: kept.len() });
            for (role, linear) in Role::of_block(layer, block.kind) {
                let source = &linear.weight.rows;
                let gathered = Gathered { source, kept, width };
                let matrix = match own.remove(&(block, role)) {
                    Some(matrix) => matrix,
                    None => ReducedMatrix::Ggml(tensors.push_gathered(gathered, role.keeps_rows(), block.il)?),
                };
                let bias = match role.keeps_rows() {
                    true => linear.bias.as_ref().map(|b| rows_of_bias(&b.values(), kept, width)),
                    false => bias_of_columns(linear, left_out.get(&block)),
                };
                let bias = bias.map(|b| tensors.push_floats("bias", &b, [b.len(), 1], block.il)).transpose()?;
                linears.insert((block, role), ReducedLinear { matrix, bias });
            }
        }
        let (store, ggml_bytes) = tensors.make(n_threads)?;
        Ok(Reduced { store: Rc::new(store), units, linears, n_bytes: ggml_bytes + own_bytes })
    }

    /// Where the tensors are.
    pub fn store(&self) -> &Rc<Store> {
        &self.store
    }

    /// What a block keeps; `None` if it stays whole.
    pub fn units(&self, block: Block) -> Option<ReducedUnits> {
        self.units.get(&block).copied()
    }

    /// A matrix of a block; `None` if it stays whole.
    pub fn linear(&self, block: Block, role: Role) -> Option<&ReducedLinear> {
        self.linears.get(&(block, role))
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

/// Rows or columns of a unit.
pub fn unit_width(layer: &Layer, kind: BlockKind) -> usize {
    match kind {
        BlockKind::Attn => layer.attn.n_embd_head,
        BlockKind::Mlp => 1,
    }
}

/// The kept units' part of a bias.
fn rows_of_bias(bias: &[f32], kept: &[i32], width: usize) -> Vec<f32> {
    kept.iter().flat_map(|&k| bias[k as usize * width..][..width].iter().copied()).collect()
}

/// The bias of a matrix of which only some columns are used: its own, and what the mean inputs of the others would add.
fn bias_of_columns(linear: &Linear, left_out: Option<&Vec<f32>>) -> Option<Vec<f32>> {
    let bias = linear.bias.as_ref().map(|b| b.values());
    let Some(mean) = left_out else { return bias };
    let mut sum = multiply(&linear.weight.rows, mean);
    bias.iter().flatten().zip(&mut sum).for_each(|(b, s)| *s += b);
    Some(sum)
}

/// A matrix to be made for our own kernels.
struct OwnJob<'a> {
    role: (Block, Role),
    gathered: Gathered<'a>,
    /// Columns are kept, laid out like this
    layout: Option<Arc<ColumnLayout>>,
    n_bytes: usize,
}

impl OwnJob<'_> {
    fn make(&self, out: &mut [u8]) {
        let Gathered { source, kept, width } = self.gathered;
        if let Some(layout) = &self.layout {
            return reduce_columns(source, layout, out);
        }
        let units = out.chunks_exact_mut(width * source.row_bytes());
        units.zip(kept).for_each(|(to, &unit)| to.copy_from_slice(source.rows(unit as usize * width, width)));
    }
}

/// Whether our own kernels multiply the reduced matrix of a weight. They have columns for a few tokens of every type; rows only if they
/// read this type's where they are.
fn is_own(role: Role, weight: &Weight) -> bool {
    match role.keeps_rows() {
        true => weight.kernel == Kernel::Own,
        false => weight.kernel.is_ever_own(),
    }
}

/// The reduced matrices for our own kernels, made one by one on several threads; and their bytes.
fn own_matrices(layers: &[Layer], masks: &Masks, n_threads: usize) -> Result<(ByRole<ReducedMatrix>, u64)> {
    let mut jobs: Vec<OwnJob> = Vec::new();
    for (&block, kept) in masks {
        let layer = &layers[block.il];
        let width = unit_width(layer, block.kind);
        for (role, linear) in Role::of_block(layer, block.kind) {
            if !is_own(role, &linear.weight) {
                continue;
            }
            let source = &linear.weight.rows;
            let layout = (!role.keeps_rows()).then(|| Arc::new(column_layout(source, kept, width)));
            let n_bytes = layout.as_ref().map_or(kept.len() * width * source.row_bytes(), |l| l.n_bytes());
            jobs.push(OwnJob { role: (block, role), gathered: Gathered { source, kept, width }, layout, n_bytes });
        }
    }
    let sizes: Vec<usize> = jobs.iter().map(|j| j.n_bytes).collect();
    let (pages, ranges) = parallel::make(&sizes, n_threads, "the reduced weights", ADVICE, |i, out| jobs[i].make(out))?;
    let n_bytes = pages.len() as u64;
    let made = |(job, range): (OwnJob, _)| {
        let (pages, source) = (pages.clone(), job.gathered.source);
        let matrix = match job.layout {
            Some(layout) => ReducedMatrix::OwnColumns(OwnColumns { layout, pages, range }),
            None => ReducedMatrix::OwnRows(Matrix::made(pages, range, source.ty(), source.n_in())),
        };
        (job.role, matrix)
    };
    Ok((jobs.into_iter().zip(ranges).map(made).collect(), n_bytes))
}
